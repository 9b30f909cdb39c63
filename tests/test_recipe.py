"""Recipes of several stages: they go on from any step, end early if told so, and hand over what they should."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jpq_jax
from jpq_jax.recipe import Run, Stage, advance, begin, is_over, like, projected

SHAPE = (10, 8)


def target() -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)


def ye_2018() -> list[Stage]:
    sgd = optax.sgd(0.05)
    prune = optax.chain(jpq_jax.admm_to(jpq_jax.pruning(0.2), rho=4.0, every=5), sgd)
    retrain = optax.chain(sgd, jpq_jax.mask_updates())
    cluster = jpq_jax.admm_to(jpq_jax.clustering(1, zero=False), rho=4.0, every=5)
    return [
        Stage("prune", 30, prune),
        Stage("retrain", 10, retrain, inherit=projected),
        Stage("cluster", 30, optax.chain(cluster, sgd, jpq_jax.mask_updates())),
        Stage("retrain clusters", 10, optax.chain(sgd, jpq_jax.cluster_updates()), projected),
    ]


@functools.partial(jax.jit, static_argnums=0)
def step(update: Any, params: Any, state: Any) -> tuple[Any, Any]:
    updates, state = update({"kernel": params["kernel"] - target()}, state, params)
    return optax.apply_updates(params, updates), state


def one_update(stages: list[Stage], run: Run) -> Run:
    params, state = step(stages[run.stage].optimizer.update, run.params, run.state)
    return advance(stages, run._replace(params=params, state=state))


def go_on(stages: list[Stage], run: Run, updates: int | None = None) -> tuple[Run, list[str]]:
    """To the end, or for so many updates; and the names of the stages on the way."""
    names = []
    while not is_over(stages, run) and (updates is None or len(names) < updates):
        names.append(stages[run.stage].name)
        run = one_update(stages, run)
    return run, names


STAGES = ye_2018()  # made once, so that their updates are compiled once


def started(stages: list[Stage]) -> Run:
    return begin(stages, {"kernel": 0.1 * target() + 0.5})


def test_prune_retrain_cluster_retrain():
    stages = ye_2018()
    run, names = go_on(stages, started(stages))
    assert names == 30 * ["prune"] + 10 * ["retrain"] + 30 * ["cluster"] + 10 * ["retrain clusters"]
    kernel = np.asarray(run.params["kernel"])
    assert (kernel != 0).sum() == 16
    assert len(np.unique(kernel[kernel != 0])) == 2
    codes = jpq_jax.validate(jpq_jax.finalize(run.params, run.state))
    np.testing.assert_array_equal(jpq_jax.dequantize(codes)["kernel"], kernel)
    assert int(codes["kernel"].bits) == 1
    wanted = np.asarray(target())
    for value in np.unique(kernel[kernel != 0]):  # the mean of its targets
        assert value == pytest.approx(wanted[kernel == value].mean(), abs=0.35)


@pytest.mark.parametrize("after", [1, 30, 79])
def test_a_run_goes_on_from_any_step(after: int):
    stages = STAGES
    whole, _ = go_on(stages, started(stages))
    part, _ = go_on(stages, started(stages), after)
    shapes = like(stages, part.stage, part.params)
    assert jax.tree.structure(shapes.state) == jax.tree.structure(part.state)
    saved = [np.asarray(leaf) for leaf in jax.tree.leaves((part.params, part.state))]
    params, state = jax.tree.unflatten(
        jax.tree.structure((shapes.params, shapes.state)), [jnp.asarray(leaf) for leaf in saved]
    )
    again, _ = go_on(stages, Run(part.stage, part.step, params, state))
    np.testing.assert_array_equal(again.params["kernel"], whole.params["kernel"])


def test_a_stage_may_end_early():
    def settled(state: Any) -> jax.Array:
        return jpq_jax.has_converged(optax.tree.get(state, "SplitState"), relative=0.05)

    first, *rest = ye_2018()
    stages = [first._replace(until=settled, steps=300), *rest]
    _, names = go_on(stages, started(stages))
    assert 5 < names.count("prune") < 300
    assert names.count("retrain") == 10


def test_bits_are_carried_over():
    sgd = optax.sgd(0.05)
    budget = jpq_jax.Budget(bits=40)
    stages = [
        Stage("compress", 5, jpq_jax.latent(sgd, jpq_jax.joint(budget), every=1)),
        Stage(
            "fine-tune",
            5,
            jpq_jax.latent(optax.chain(sgd, jpq_jax.mask_updates()), jpq_jax.clustering(8)),
            inherit=projected,
            carry={"clustered_bits": "joint_leaf_bits"},
        ),
    ]
    run, _ = go_on(stages, started(stages), 5)
    assert run.stage == 1
    found = jpq_jax.finalize(*go_on(stages, run, 5)[0][2:])
    assert jpq_jax.rate_bits(found, "paper") <= 40


def test_what_cannot_be():
    stages = ye_2018()
    with pytest.raises(ValueError, match="at least 1 step"):
        begin([], {})
    with pytest.raises(ValueError, match=r"\('prune', 0\)"):
        begin([stages[0]._replace(steps=0)], {"kernel": target()})
    over, _ = go_on(stages[:1], started(stages[:1]))
    with pytest.raises(ValueError, match="all 1 stages are over"):
        advance(stages[:1], over)
    lost = [stages[0]._replace(steps=1), stages[1]._replace(carry={"clustered_bits": "no_bits"})]
    with pytest.raises(ValueError, match="'no_bits': got 0 fields"):
        go_on(lost, started(lost), 1)


@pytest.mark.parametrize(
    ("old", "message"),
    [
        ("split_count", r"got \(\(\), 'int32'\), expected \(\(1,\), 'int32'\)"),
        ("count", "got 2 fields"),
    ],
)
def test_a_field_is_carried_over_only_where_it_is_clear_what_that_means(old: str, message: str):
    sgd = optax.sgd(0.05)
    pull = jpq_jax.admm_to(jpq_jax.pruning(0.2), rho=4.0, every=5)
    counting = optax.scale_by_schedule(lambda _: 1.0)
    stages = [
        Stage("prune", 1, optax.chain(pull, counting, sgd, counting)),
        Stage(
            "cluster",
            1,
            jpq_jax.latent(sgd, jpq_jax.clustering(8)),
            carry={"clustered_bits": old},
        ),
    ]
    with pytest.raises(ValueError, match=message):
        go_on(stages, started(stages), 1)
