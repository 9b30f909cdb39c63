"""What the norms see of a compressed model: statistics over many batches, in few digits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.augmented import augmented
from experiments.config import Config
from experiments.data import Dataset, normalize
from experiments.model import Model
from jpq_jax.rounding import rounded

_FORGOTTEN = 16  # batches at first, in which running means forget what they have been
_PRICE = 2.0**-15  # of a bit, by a number's square: errors of about 0.5 %


def seen_by_norms(model: Model, dataset: Dataset, config: Config) -> Callable[[Any, Any], Any]:
    """From params and statistics to the running statistics' mean over `norm_batches` batches; to those given, if that is 0.

    In training a running mean is that of the last few batches, so noisy that a compressed ResNet-20 loses a percent by it.
    """
    if not config.norm_batches:
        return lambda _, statistics: statistics

    @jax.jit
    def one(params: Any, statistics: Any, images: jax.Array, key: jax.Array) -> Any:
        shown = normalize(augmented(config, key, images), dataset.mean, dataset.std)
        return model.seen(params, statistics, shown, jax.random.fold_in(key, 3))[1]

    def over_batches(params: Any, statistics: Any) -> Any:
        number = _FORGOTTEN + config.norm_batches
        total = jax.tree.map(jnp.zeros_like, statistics)
        seen = dataset.train.some(number * config.batch_size)
        for i, (images, _) in enumerate(seen.batches(config.batch_size)):
            key = jax.random.fold_in(jax.random.key(config.seed), i)
            statistics = one(params, statistics, jnp.asarray(images), key)
            if i >= _FORGOTTEN:
                total = jax.tree.map(jnp.add, total, statistics)
        return jax.tree.map(lambda x: x / config.norm_batches, total)

    return over_batches


def in_few_digits(statistics: Any) -> Any:
    """As a file under a budget in bytes has them."""
    return jax.tree.map(lambda x: jnp.asarray(rounded(np.asarray(x), 1.0, _PRICE)), statistics)
