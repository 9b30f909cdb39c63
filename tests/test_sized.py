"""Training under a budget in bytes: the file keeps to it, the plan knows how large it gets, nothing is lost for good."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiled import THOROUGH

import jpq_jax
from jpq_jax import Budget, artifact, finalize, joint, latent, leaves_with_paths
from jpq_jax.projection import lines
from jpq_jax.projection.sized import at_price
from jpq_jax.projection.sized_plan import Setting, SizedPlan

SHAPES = {"conv": (3, 3, 8, 16), "dense": (100, 40), "out": (40, 10)}


def net(seed: int = 0, scale: float = 1.0, dtype: Any = jnp.float32) -> dict[str, Any]:
    """Kernels whose lines are of different size, and biases."""
    rng = np.random.default_rng(seed)
    params = {}
    for name, shape in SHAPES.items():
        kernel = rng.laplace(size=shape) * rng.gamma(1.0, size=shape[-1]) * 0.1
        bias = rng.normal(size=shape[-1]) * 0.1
        params[name] = {
            "kernel": jnp.asarray(kernel * scale, dtype),
            "bias": jnp.asarray(bias * scale, dtype),
        }
    return params


def trained(
    params: Any, nbytes: int, steps: int = 4, noise: float = 0.01, **options: Any
) -> tuple[Any, Any]:
    """After some updates at random."""
    optimizer = latent(optax.sgd(1.0), joint(Budget(nbytes=nbytes), **options), every=1)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    rng = np.random.default_rng(1)
    for _ in range(steps):
        drawn = jax.tree.map(
            lambda p: (
                jnp.asarray(noise * rng.normal(size=p.shape), jnp.float32)
                * jnp.mean(jnp.abs(p.astype(jnp.float32)))
            ),
            params,
        )
        drawn = jax.tree.map(lambda g, p: g.astype(p.dtype), drawn, params)
        updates, state = update(drawn, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("scale", [1.0, 1e-18, 1e18, 1e-30, 1e30] if THOROUGH else [1.0, 1e-30])
@pytest.mark.parametrize("nbytes", [150, 700, 3000] if THOROUGH else [150, 3000])
def test_the_file_keeps_to_the_budget_and_uses_it(nbytes: int, scale: float) -> None:
    codes = finalize(*trained(net(scale=scale), nbytes))
    size = len(artifact.encode(codes))
    assert 0.95 * nbytes - 8 <= size <= nbytes
    dense = jpq_jax.dequantize(codes)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(dense))
    assert all(isinstance(codes[name]["kernel"], jpq_jax.Codes) for name in SHAPES)


@pytest.mark.parametrize("nbytes", [400, 1500, 4000])
def test_the_plan_knows_how_large_the_file_gets(nbytes: int) -> None:
    params, state = trained(net(), nbytes, steps=8)
    as_planned = artifact.leaf_bytes(jax.jit(finalize)(params, state))
    numbers = as_planned.nbytes - as_planned.container
    assert float(state.latent_plan.sized_bits_used) / 8 == pytest.approx(numbers, rel=0.05, abs=20)
    assert 0.9 * nbytes - 20 <= as_planned.nbytes <= 1.02 * nbytes + 20


def test_params_are_what_the_codes_say() -> None:
    params, state = trained(net(), 1500)
    said = jpq_jax.dequantize(jax.jit(finalize)(params, state))
    for (path, got), (_, expected) in zip(
        leaves_with_paths(params), leaves_with_paths(said), strict=True
    ):
        np.testing.assert_array_equal(got != 0, expected != 0, err_msg=path)
        np.testing.assert_allclose(got, expected, rtol=1e-6, err_msg=path)


def test_numbers_are_the_cheapest_of_their_neighbours() -> None:
    """Against float64: of the nearest, the next toward 0, and 0."""
    _, state = trained(net(), 1500)
    plan, latents = state.latent_plan, jax.tree.leaves(state.latents)
    for i, (w, got) in enumerate(zip(latents, plan.numbers(latents), strict=True)):
        unit, step = float(plan.sized_units[i]), float(plan.sized_steps[i])
        price = float(plan.sized_multiplier) / float(plan.sized_weights[i])
        kinds = np.asarray(lines.classes_of(plan.sized_lines[i]))
        prices = np.asarray(plan.sized_prices[i], np.float64)
        wide = np.asarray(w, np.float64)
        near = np.clip(np.rint(wide / step), -127, 127)

        def cost(
            number: np.ndarray,
            wide: np.ndarray = wide,
            step: float = step,
            unit: float = unit,
            price: float = price,
            prices: np.ndarray = prices,
            kinds: np.ndarray = kinds,
        ) -> np.ndarray:
            bits = prices[kinds, number.astype(int) + lines.REACH]
            return ((wide - step * number) / unit) ** 2 + price * bits

        least = np.minimum(
            np.minimum(cost(near), cost(near - np.sign(near))), cost(np.zeros_like(near))
        )
        np.testing.assert_allclose(cost(np.asarray(got, np.float64)), least, rtol=1e-4, atol=1e-12)


def test_plans_of_weights_that_stay_settle() -> None:
    used = []
    for steps in (4, 8, 16, 32):
        _, state = trained(net(), 1500, steps=steps, noise=0.0)
        used.append(float(state.latent_plan.sized_bits_used))
    assert max(used) <= 8 * 1500
    assert min(used) >= 0.95 * max(used)


def test_less_is_lost_than_by_compressing_afterwards_with_plain_rounding() -> None:
    """The plan's error against that of rounding to one step everywhere, at as many bytes."""
    params = net()
    codes = finalize(*trained(params, 1500, noise=0.0, steps=6))
    kernels = [params[name]["kernel"] for name in SHAPES]

    def error(dense: list[Any]) -> float:
        return sum(float(((q - w) ** 2).sum()) for q, w in zip(dense, kernels, strict=True))

    low, high = 1e-3, 10.0
    for _ in range(20):
        step = (low * high) ** 0.5
        rounded = jax.tree.map(lambda w, s=step: np.rint(w / s) * np.float32(s), params)
        fits = artifact.leaf_bytes(rounded).nbytes <= 1500
        low, high = (low, step) if fits else (step, high)
    rounded = jax.tree.map(lambda w: np.rint(w / high) * np.float32(high), params)
    got = jpq_jax.dequantize(codes)
    assert error([got[n]["kernel"] for n in SHAPES]) < 0.95 * error(
        [rounded[n]["kernel"] for n in SHAPES]
    )


def test_a_leaf_that_begins_as_zeros_is_found() -> None:
    params = net()
    params["dense"]["bias"] = jnp.zeros(40)
    params["out"]["kernel"] = jnp.zeros((40, 10))
    optimizer = latent(optax.sgd(1.0), joint(Budget(nbytes=2000)), every=1)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    grown = net(3)
    for _ in range(20):
        drawn = jax.tree.map(jnp.zeros_like, params)
        drawn["out"]["kernel"] = -grown["out"]["kernel"] / 20
        drawn["dense"]["bias"] = -grown["dense"]["bias"] / 20
        updates, state = update(drawn, state, params)
        params = optax.apply_updates(params, updates)
    for name, leaf in (("out", "kernel"), ("dense", "bias")):
        kept = np.corrcoef(np.ravel(params[name][leaf]), np.ravel(grown[name][leaf]))[0, 1]
        assert kept > 0.8, name


def test_the_budget_falls_by_its_schedule() -> None:
    ramp = optax.linear_schedule(8.0, 1.0, 30)
    used = []
    for steps in (1, 15, 36):
        _, state = trained(net(), 600, steps=steps, budget_schedule=ramp)
        used.append(float(state.latent_plan.sized_bits_used) / 8)
    assert used[0] > 4 * used[-1]
    assert used[1] > 2 * used[-1]
    assert used[-1] <= 600


@pytest.mark.parametrize("nbytes", [700, 3000] if THOROUGH else [700])
def test_a_budget_that_was_loose_leaves_nothing_behind(nbytes: int) -> None:
    """After a ramp, with budgets at its beginning that nothing can fill, about as little is lost as without one."""

    def lost(**options: Any) -> float:
        params, state = trained(net(), nbytes, steps=40, noise=0.0, **options)
        gaps = jax.tree.map(lambda q, w: float(jnp.sum((q - w) ** 2)), params, state.latents)
        return sum(gaps[name]["kernel"] for name in SHAPES)

    ramp = optax.linear_schedule(20.0, 1.0, 30)
    assert lost(budget_schedule=ramp) < 1.15 * lost()


@pytest.mark.parametrize("bad", [np.nan, np.inf] if THOROUGH else [np.nan])
def test_a_weight_that_is_none_for_a_while_is_got_over(bad: float) -> None:
    params = net()
    optimizer = latent(optax.sgd(1.0), joint(Budget(nbytes=1500)), every=1)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    spoiled = jax.tree.map(jnp.copy, params)
    spoiled["out"]["kernel"] = spoiled["out"]["kernel"].at[0, 0].set(bad)
    still, updates = jax.tree.map(jnp.zeros_like, params), None
    for step in range(40):
        latents = spoiled if 4 <= step < 8 else params
        updates, state = update(still, state._replace(latents=latents), params)
    undisturbed, _ = trained(params, 1500, steps=8, noise=0.0)

    def lost(values: Any) -> float:
        return sum(
            float(jnp.sum((values[name]["kernel"] - params[name]["kernel"]) ** 2))
            for name in SHAPES
        )

    assert lost(optax.apply_updates(params, updates)) < 1.1 * lost(undisturbed)


def test_within_the_ramp_the_file_keeps_to_the_whole_budget() -> None:
    params, state = trained(net(), 600, steps=2, budget_schedule=optax.constant_schedule(12.0))
    assert float(state.latent_plan.sized_bits_used) / 8 > 2000
    assert 550 <= len(artifact.encode(finalize(params, state))) <= 600


@pytest.mark.parametrize("nbytes", [0, 20])
def test_less_than_zeros_take_is_refused(nbytes: int) -> None:
    params, state = trained(net(), nbytes)
    with pytest.raises(ValueError, match=f"budget of {nbytes} bytes, expected at least .. *"):
        finalize(params, state)


def test_more_than_can_be_used() -> None:
    params = net()
    codes = finalize(*trained(params, 10**9, noise=0.0))
    for name in SHAPES:
        got = jpq_jax.dequantize(codes)[name]["kernel"]
        largest = float(jnp.abs(params[name]["kernel"]).max())
        assert float(jnp.abs(got - params[name]["kernel"]).max()) < 0.02 * largest


@pytest.mark.parametrize("kind", ["zeros", "one value", "one weight"])
def test_strange_weights(kind: str) -> None:
    params = net()
    if kind == "zeros":
        params = jax.tree.map(jnp.zeros_like, params)
    elif kind == "one value":
        params = jax.tree.map(jnp.ones_like, params)
    else:
        params = jax.tree.map(lambda p: jnp.zeros_like(p).at[(0,) * p.ndim].set(1.0), params)
    reached, state = trained(params, 300, noise=0.0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((reached, state)))
    assert len(artifact.encode(finalize(reached, state))) <= 300
    if kind != "zeros":
        kernel = jpq_jax.dequantize(finalize(reached, state))["dense"]["kernel"]
        np.testing.assert_allclose(kernel, params["dense"]["kernel"], atol=0.1)


def test_odd_leaves_and_dtypes() -> None:
    params = {
        "kernel": jnp.asarray(np.random.default_rng(0).normal(size=(20, 30)), jnp.bfloat16),
        "temperature": jnp.asarray(1.5, jnp.float32),
        "empty": jnp.zeros((0,), jnp.float32),
        "bias": jnp.ones(30, jnp.float16),
        "steps": jnp.arange(3),
    }
    reached, state = trained({k: v for k, v in params.items() if k != "steps"}, 300)
    codes = finalize(reached, state)
    assert len(artifact.encode(codes)) <= 300
    assert {k: v.dtype for k, v in jpq_jax.dequantize(codes).items()} == {
        k: v.dtype for k, v in reached.items()
    }
    assert float(codes["temperature"]) == pytest.approx(1.5, rel=0.1)


def test_what_else_is_saved_counts() -> None:
    params, state = trained(net(), 1500)
    more = np.random.default_rng(0).normal(size=100).astype(np.float32)

    def saved(codes: Any) -> Any:
        return {"params": codes, "statistics": more}

    codes = finalize(params, state, file=saved)
    assert 1400 <= len(artifact.encode(saved(codes))) <= 1500
    assert len(artifact.encode(codes)) < 1200


def test_at_a_price_close_by_the_multiples_that_were_trained_stay() -> None:
    _, state = trained(net(), 1500)
    plan, latents = state.latent_plan, jax.tree.leaves(state.latents)

    def nonzeros(at: SizedPlan) -> int:
        return sum(int(np.count_nonzero(numbers)) for numbers in at.numbers(latents))

    dearer = jax.jit(at_price)(plan, latents, 0.4)
    np.testing.assert_array_equal(dearer.sized_steps, plan.sized_steps)
    assert nonzeros(dearer) < nonzeros(plan)
    further = jax.jit(at_price)(plan, latents, 0.9)
    for w, step, before, numbers in zip(
        latents, further.sized_steps, plan.sized_steps, further.numbers(latents), strict=True
    ):
        error = float(jnp.sum((w - step * numbers.astype(jnp.float32)) ** 2))
        scaled = float(jnp.sum((w - before * 2**0.45 * numbers.astype(jnp.float32)) ** 2))
        assert error <= 1.02 * scaled, "steps fit the numbers, they are not scaled with the price"
    assert nonzeros(further) < nonzeros(dearer)


def test_besides_leaves_room_for_it() -> None:
    _, state = trained(net(), 1500, besides=1000)
    assert float(state.latent_plan.sized_bits_used) <= 8 * 500


def test_biases_beside_kernels_count_like_them_and_norms_by_themselves() -> None:
    params = {
        "dense": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)},
        "norm": {"scale": jnp.ones(4), "bias": jnp.ones(4)},
    }
    setting = Setting.of(jpq_jax.plan_leaves(params))
    assert setting.rounded == (True, False, True, True)
    assert setting.norms[:2] == (None, None)
    assert setting.norms[2] == setting.norms[3] is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"where": lambda path, _: jpq_jax.Treatment(grid="uniform")}, "conv/bias.*Treatment"),
        ({"curvature": lambda state: state}, "curvature"),
    ],
)
def test_what_it_does_not_know_is_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        latent(optax.sgd(0.1), joint(Budget(nbytes=500)), **options).init(net())
