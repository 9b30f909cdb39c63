"""ADMM toward a plan, and freezing share by share, against what they say they do, in NumPy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jpq_jax

SHAPE = (8, 6)


def target() -> np.ndarray:
    return np.random.default_rng(0).normal(size=SHAPE)


def top(w: np.ndarray, keep: int) -> np.ndarray:
    least = np.sort(np.abs(w).ravel())[-keep]
    return np.where(np.abs(w) >= least, w, 0)


def train(optimizer: Any, steps: int, start: Any = None) -> tuple[np.ndarray, Any]:
    """Toward the target by plain gradients."""
    params = {"kernel": jnp.asarray(target() if start is None else start, jnp.float32)}
    state = optimizer.init(params)

    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any]:
        gradients = {"kernel": params["kernel"] - jnp.asarray(target(), jnp.float32)}
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return np.asarray(params["kernel"], np.float64), state


RATE = 0.2


def rho_at(count: int) -> float:
    return 0.5 if count < 5 else 1.0


def schedule(count: jax.Array) -> jax.Array:
    return jnp.where(count < 5, 0.5, 1.0)


@pytest.mark.parametrize("penalty", ["gradient", "proximal"])
def test_it_is_admm_step_by_step(penalty: Any):
    options = {"rho": schedule, "every": 3, "penalty": penalty}
    planner, sgd = jpq_jax.pruning(0.25), optax.sgd(RATE)
    if penalty == "gradient":
        optimizer = optax.chain(jpq_jax.admm_to(planner, **options), sgd)
    else:
        optimizer = optax.chain(sgd, jpq_jax.admm_to(planner, **options, learning_rate=RATE))
    got, state = train(optimizer, 10)

    w, z, u, before = target(), np.zeros(SHAPE), np.zeros(SHAPE), np.zeros(SHAPE)
    for count in range(10):
        rho = rho_at(count)
        u = u * rho_at(max(count - 1, 0)) / rho
        if count % 3 == 0:
            before, z = z, top(w + u, 12)
            u = u + w - z
            primal, dual = np.linalg.norm(w - z), rho * np.linalg.norm(z - before)
            scales = max(np.linalg.norm(w), np.linalg.norm(z)), rho * np.linalg.norm(u)
        if penalty == "gradient":
            w = w - RATE * (w - target() + rho * (w - z + u))
        else:
            w = (w - RATE * (w - target()) + RATE * rho * (z - u)) / (1 + RATE * rho)
    np.testing.assert_allclose(got, w, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(optax.tree.get(state, "split_dual")["kernel"], rho * u, atol=1e-5)
    residuals = optax.tree.get(state, "split_residuals")
    np.testing.assert_allclose(residuals, [9, primal, dual, *scales], rtol=1e-4)


def on_a_step(values: np.ndarray) -> bool:
    ratio = values / np.abs(values).min()
    return np.allclose(ratio, np.round(ratio), atol=1e-3)


def are_powers_of_two(values: np.ndarray) -> bool:
    return set(np.abs(np.frexp(values)[0])) == {0.5}


@pytest.mark.parametrize(
    ("planner", "most", "holds"),
    [
        (jpq_jax.joint(jpq_jax.Budget(bits=30)), 30, None),
        (jpq_jax.pruning({"kernel": 0.25}), 12, None),
        (jpq_jax.clustering(1, zero=False), 48, None),
        (jpq_jax.clustering(2, grid="uniform"), 48, on_a_step),
        (jpq_jax.clustering(2, grid="power-of-two"), 48, are_powers_of_two),
    ],
    ids=["joint", "share of a leaf", "codebook", "uniform", "power-of-two"],
)
def test_any_plan_is_what_weights_are_pulled_to(planner: Any, most: int, holds: Any):
    """By a strong pull the weights themselves come near the feasible set, so that ending in it costs little."""
    optimizer = optax.chain(
        jpq_jax.admm_to(planner, rho=optax.linear_schedule(1.0, 8.0, 100), every=5),
        optax.sgd(0.1),
    )
    got, state = train(optimizer, 150)
    codes = jpq_jax.finalize({"kernel": jnp.asarray(got, jnp.float32)}, state)["kernel"]
    ended = np.asarray(codes if isinstance(codes, jax.Array) else jpq_jax.dequantize(codes))
    assert 0 < np.count_nonzero(ended) <= most
    assert np.linalg.norm(got - ended) < 0.1 * np.linalg.norm(ended)
    assert holds is None or holds(ended[ended != 0].astype(np.float64))


def test_the_dual_variable_is_kept_when_rho_is_set_from_outside():
    """As `optax.inject_hyperparams` lets a user do, who then knows no schedule."""
    make = optax.inject_hyperparams(
        jpq_jax.admm_to, static_args=("planner", "every", "penalty", "where")
    )
    optimizer = make(jpq_jax.pruning(0.25), rho=0.5, every=100)
    params = {"kernel": jnp.asarray(target(), jnp.float32)}
    zeros, state = jax.tree.map(jnp.zeros_like, params), optimizer.init(params)
    _, state = optimizer.update(zeros, state, params)
    dual = np.asarray(optax.tree.get(state, "split_dual")["kernel"])
    pulled, state = optimizer.update(zeros, state, params)
    stronger, _ = optimizer.update(zeros, optax.tree.set(state, rho=jnp.float32(2.0)), params)
    pruned = target() - top(target(), 12)
    np.testing.assert_allclose(dual, 0.5 * pruned, rtol=1e-6)
    np.testing.assert_allclose(pulled["kernel"], 0.5 * pruned + dual, rtol=1e-5)
    np.testing.assert_allclose(stronger["kernel"], 2.0 * pruned + dual, rtol=1e-5)


def test_without_a_pull_nothing_changes():
    params = {"kernel": jnp.asarray(target(), jnp.float32)}
    optimizer = jpq_jax.admm_to(jpq_jax.pruning(0.25), rho=0.0, every=1)
    zeros, state = jax.tree.map(jnp.zeros_like, params), optimizer.init(params)
    for _ in range(2):
        updates, state = optimizer.update(zeros, state, params)
        np.testing.assert_array_equal(updates["kernel"], 0)


def test_the_dual_variable_outlasts_a_pause():
    params = {"kernel": jnp.asarray(target(), jnp.float32)}
    pause = jpq_jax.admm_to(
        jpq_jax.pruning(0.25), rho=lambda count: jnp.where(count == 1, 0.0, 0.5), every=1
    )
    zeros, state = jax.tree.map(jnp.zeros_like, params), pause.init(params)
    duals = []
    for _ in range(2):
        _, state = pause.update(zeros, state, params)
        duals.append(np.asarray(optax.tree.get(state, "split_dual")["kernel"]))
    assert duals[0].any()
    np.testing.assert_array_equal(*duals)


def test_the_dual_variable_of_narrow_params_takes_small_steps():
    """In bfloat16 it would stop at 256 times what is added."""
    w = jnp.full((4, 8), 2.0**-10, jnp.bfloat16).at[0].set(1.0)
    optimizer = jpq_jax.admm_to(jpq_jax.pruning(0.25), rho=1.0, every=1)
    zeros, state = {"kernel": jnp.zeros_like(w)}, optimizer.init({"kernel": w})
    update = jax.jit(optimizer.update)
    for _ in range(600):
        _, state = update(zeros, state, {"kernel": w})
    np.testing.assert_allclose(state.split_dual["kernel"][1:], 600 * 2.0**-10, rtol=1e-5)


def test_it_comes_to_rest_at_the_best_support():
    """With a pull well above the loss's curvature, which is 1: the set is not convex, and below that it goes round."""
    planner = jpq_jax.pruning(0.25)
    optimizer = optax.chain(jpq_jax.admm_to(planner, rho=4.0, every=10), optax.sgd(0.05))
    primal, ended = [], []
    for steps in (12, 60, 160):
        reached, state = train(optimizer, steps)
        split = optax.tree.get(state, "SplitState")
        primal.append(float(split.split_residuals.primal))
        last = 10 * ((steps - 1) // 10)  # of the projections
        ended.append(bool(jpq_jax.has_converged(split, not_before=last)))
        assert not jpq_jax.has_converged(split, not_before=last + 1)
    assert primal[0] > 10 * primal[1] > 100 * primal[2]
    assert ended == [False, True, True]
    codes = jpq_jax.finalize({"kernel": jnp.asarray(reached, jnp.float32)}, state)
    np.testing.assert_allclose(codes["kernel"], top(target(), 12), atol=1e-3)


def test_one_projection_is_not_convergence():
    optimizer = jpq_jax.admm_to(jpq_jax.pruning(1.0), rho=1.0, every=1)
    _, state = train(optax.chain(optimizer, optax.sgd(0.1)), 1)
    assert not bool(jpq_jax.has_converged(optax.tree.get(state, "SplitState")))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_residuals_of_any_scale_are_finite(scale: float):
    params = {"kernel": jnp.asarray(scale * target(), jnp.float32)}
    optimizer = jpq_jax.admm_to(jpq_jax.pruning(0.25), rho=1.0, every=1)
    zeros, state = jax.tree.map(jnp.zeros_like, params), optimizer.init(params)
    for _ in range(2):
        _, state = optimizer.update(zeros, state, params)
    expected = np.linalg.norm(target() - top(target(), 12))
    residuals = optax.tree.get(state, "split_residuals")
    assert all(np.isfinite(residuals))
    # The second target is that of W + U, in which what was pruned counts twice.
    assert 0 < float(residuals.primal) / scale <= 4 * expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every=0"),
        ({"every": 1, "rho": -1.0}, "rho=-1.0"),
        ({"every": 1, "rho": float("nan")}, "rho=nan"),
        ({"every": 1, "penalty": "l1"}, "penalty='l1'"),
        ({"every": 1, "penalty": "proximal"}, "learning_rate"),
    ],
)
def test_bad_options(options: Any, message: str):
    with pytest.raises(ValueError, match=message):
        jpq_jax.admm_to(jpq_jax.pruning(0.5), **{"rho": 1.0} | options)


def test_pruned_weights_stay_pruned_while_the_others_are_clustered():
    start = top(target(), 24)
    optimizer = optax.chain(
        jpq_jax.admm_to(jpq_jax.clustering(2, zero=False), rho=1.0, every=2),
        optax.sgd(0.1, momentum=0.9),
        jpq_jax.mask_updates(),
    )
    reached, state = train(optimizer, 100, start)
    np.testing.assert_array_equal(reached == 0, start == 0)
    codes = jpq_jax.finalize({"kernel": jnp.asarray(reached, jnp.float32)}, state)["kernel"]
    np.testing.assert_array_equal(np.asarray(codes.code) == 0, start == 0)
    assert int(codes.bits) == 2


def shares(count: Any) -> Any:
    return jnp.where(count < 40, 0.25, jnp.where(count < 80, 0.5, 1.0))


@pytest.mark.parametrize(("share", "number"), [(0.09, 27), (0.15, 45), (1 / 7, 43), (1.0, 300)])
def test_a_share_of_the_weights_is_rounded_up_as_it_is_written(share: float, number: int):
    params = {"kernel": jnp.arange(1.0, 301.0).reshape(15, 20)}
    freeze = jpq_jax.freeze_shares(jpq_jax.pruning(1.0), share, every=1)
    zeros = jax.tree.map(jnp.zeros_like, params)
    _, state = freeze.update(zeros, freeze.init(params), params)
    assert int(jnp.sum(state.frozen["kernel"])) == number


def test_what_is_frozen_stays_and_the_rest_moves():
    inner = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9))
    freeze = jpq_jax.freeze_shares(jpq_jax.clustering(2, zero=False), shares, every=10)
    optimizer = optax.chain(inner, freeze)
    early, first = train(optimizer, 5)
    later, second = train(optimizer, 39)
    frozen = np.asarray(optax.tree.get(first, "frozen")["kernel"])
    np.testing.assert_array_equal(
        frozen, np.abs(target()) >= np.sort(np.abs(target()).ravel())[-12]
    )
    np.testing.assert_array_equal(early[frozen], later[frozen])
    assert (early[~frozen] != later[~frozen]).all()
    assert len(np.unique(early[frozen])) <= 4
    middle, third = train(optimizer, 79)
    more = np.asarray(optax.tree.get(third, "frozen")["kernel"])
    assert more.sum() == 24
    assert more[frozen].all()
    np.testing.assert_array_equal(middle[frozen], later[frozen])
    final, state = train(optimizer, 300)
    assert len(np.unique(final)) <= 4
    codes = jpq_jax.validate(jpq_jax.finalize({"kernel": jnp.asarray(final, jnp.float32)}, state))
    np.testing.assert_allclose(jpq_jax.dequantize(codes)["kernel"], final, rtol=1e-6)
    del second


def test_zeros_are_frozen_at_the_end_only():
    start = top(target(), 24)
    freeze = jpq_jax.freeze_shares(jpq_jax.clustering(1), shares, every=1)
    optimizer = optax.chain(optax.sgd(0.1), freeze)
    _, state = train(optimizer, 3, start)
    assert not np.asarray(optax.tree.get(state, "frozen")["kernel"])[start == 0].any()
    _, state = train(optimizer, 85, start)
    assert np.asarray(optax.tree.get(state, "frozen")["kernel"]).all()


def test_shares_are_of_what_pruning_has_left():
    start = top(target(), 24)
    freeze = jpq_jax.freeze_shares(jpq_jax.clustering(1), 0.25, every=1)
    optimizer = optax.chain(optax.sgd(0.1), jpq_jax.mask_updates(), freeze)
    reached, state = train(optimizer, 3, start)
    frozen = np.asarray(optax.tree.get(state, "frozen")["kernel"])
    np.testing.assert_array_equal(frozen, top(target(), 6) != 0)
    np.testing.assert_array_equal(reached == 0, start == 0)


@pytest.mark.parametrize("zero", [True, False])
def test_a_leaf_of_zeros_stays_finite(zero: bool):
    freeze = jpq_jax.freeze_shares(jpq_jax.clustering(2, zero=zero), 0.5, every=2)
    reached, _ = train(optax.chain(optax.sgd(0.1), freeze), 6, np.zeros(SHAPE))
    assert np.isfinite(reached).all()


def test_frozen_weights_are_at_their_values_though_updates_are_narrow():
    params = {"kernel": jnp.asarray(target(), jnp.float32)}
    freeze = jpq_jax.freeze_shares(jpq_jax.clustering(2, zero=False), 1.0, every=1)
    narrow = jax.tree.map(lambda w: jnp.zeros_like(w, jnp.bfloat16), params)
    updates, _ = freeze.update(narrow, freeze.init(params), params)
    reached = np.asarray(optax.apply_updates(params, updates)["kernel"])
    assert len(np.unique(reached.round(5))) <= 4  # p + (q - p) is q to the last places


def test_leaves_may_be_put_to_their_values_one_after_the_other():
    params = {name: jnp.asarray(w, jnp.float32) for name, w in (("a", target()), ("b", target()))}
    values = jpq_jax.clustering(2, zero=False)
    first = jpq_jax.freeze_shares(values, 1.0, every=1, where=lambda path, _: path == "a")
    then = jpq_jax.freeze_shares(
        values,
        lambda count: jnp.where(count < 5, 0.0, 1.0),
        every=1,
        where=lambda path, _: path == "b",
    )
    optimizer = optax.chain(optax.sgd(0.01), first, then)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    numbers = []
    for _ in range(8):
        updates, state = update(params, state, params)
        params = optax.apply_updates(params, updates)
        # Added to a weight for the first time, what is missing to its value leaves a last digit.
        numbers.append([len(np.unique(np.round(params[name], 5))) for name in "ab"])
    assert numbers == [*5 * [[4, 48]], *3 * [[4, 4]]]
    codes = jpq_jax.finalize(params, state)
    for name in "ab":
        np.testing.assert_array_equal(jpq_jax.dequantize(codes)[name], params[name])
