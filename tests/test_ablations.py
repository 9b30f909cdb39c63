"""What an ablation compares: two recipes, from the same dense model, in equally many epochs."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

import jpq_jax
from experiments.ablations import Ablation, ablations, compressed, dense
from experiments.data import load
from experiments.model import build
from jpq_jax.plan import compressed_leaves, plan_leaves

EPOCHS = 4
IMAGES = 256
ALL = ablations(IMAGES // 128, EPOCHS)


@pytest.mark.parametrize("ablation", ALL, ids=lambda ablation: ablation.name)
def test_every_side_ends_in_codes(ablation: Ablation) -> None:
    params = build("lenet5", 0).params
    for last in (ablation.extra[-1].optimizer, ablation.plain[-1].optimizer):

        def ended(params: Any, optimizer: Any = last) -> Any:
            updates, state = optimizer.update(params, optimizer.init(params), params)
            return jpq_jax.finalize(updates, state)

        with jax.numpy_dtype_promotion("standard"):  # which optax's schedules need
            codes = jax.eval_shape(ended, params)
        assert jax.tree.structure(jax.eval_shape(jpq_jax.dequantize, codes)) == jax.tree.structure(
            params
        )


def test_a_side_is_trained_from_the_dense_model_through_its_stages() -> None:
    dataset = load("mnist", None).with_train_images(IMAGES)
    model = build("lenet300", 0)
    first, second = jax.random.split(jax.random.key(0))
    with jax.numpy_dtype_promotion("standard"):
        params = dense(model, dataset, 1, first)
        codes, had = compressed(model, params, ALL[0].extra, dataset, EPOCHS, second)
    assert not np.array_equal(params["fc3"]["kernel"], model.params["fc3"]["kernel"])
    assert had == [2, 2]
    kernels = compressed_leaves(jpq_jax.dequantize(codes), plan_leaves(params))
    kept = [np.asarray(kernel) != 0 for kernel in kernels]
    assert 0 < sum(mask.sum() for mask in kept) <= 0.01 * sum(mask.size for mask in kept)
