"""ADMM against a plain NumPy transcription, on its own promises, and as one compiled program."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jpq_jax
from jpq_jax.projection.published import nonzeros, quantize, snap, sparsify

RATE, RHO, EVERY, BITS = 0.1, 0.5, 3, 300


def make_params() -> dict[str, jax.Array]:
    draw = np.random.default_rng(0)
    return {
        "a": jnp.asarray(draw.normal(size=(12, 10)), jnp.float32),
        "b": jnp.asarray(draw.normal(size=(6, 5, 2)), jnp.float32),
        "bias": jnp.asarray(draw.normal(size=5), jnp.float32),
    }


def pole(shape: tuple[int, ...]) -> np.ndarray:
    """Where a quadratic loss is least: no compressed point."""
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def gradient(params: Any) -> Any:
    return jax.tree.map(lambda p: p - pole(p.shape), params)


@jax.jit
def support(weights: list[jax.Array], bits: jax.Array, limit: jax.Array) -> list[jax.Array]:
    return sparsify(weights, bits, limit)


@jax.jit
def copy(
    weights: list[jax.Array], kept: list[jax.Array], limit: jax.Array
) -> tuple[list[jax.Array], jax.Array]:
    levels, bits = quantize(weights, nonzeros(kept), limit)
    return snap(weights, levels), bits


def train(optimizer: Any, params: Any, steps: int) -> tuple[Any, Any]:
    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(gradient(params), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def oracle(params: Any, steps: int, penalty: str) -> dict[str, Any]:
    """The published loop, written once more without optax: lists, NumPy in float64, an explicit order."""
    names = ["a", "b"]
    w = {name: np.asarray(p, np.float64) for name, p in params.items()}
    v = {name: w[name].copy() for name in names}
    u = {name: np.zeros_like(w[name]) for name in names}
    bits = jnp.full(2, 3, jnp.int32)
    limit = jnp.uint32(BITS)

    def floats(arrays: dict[str, np.ndarray]) -> list[jax.Array]:
        return [jnp.asarray(arrays[name], jnp.float32) for name in names]

    for step in range(steps):
        if penalty == "gradient" and step % EVERY == 0:
            kept = support(floats({n: w[n] + u[n] for n in names}), bits, limit)
            snapped, bits = copy(kept, kept, limit)
            v = {n: np.asarray(q, np.float64) for n, q in zip(names, snapped, strict=True)}
            u = {n: u[n] + w[n] - v[n] for n in names}
        slope = {n: w[n] - pole(w[n].shape) for n in w}
        if penalty == "gradient":
            slope |= {n: slope[n] + RHO * (w[n] - v[n] + u[n]) for n in names}
        w = {n: w[n] - RATE * slope[n] for n in w}
        if penalty == "gradient":
            continue
        pull = RATE * RHO
        w |= {n: (w[n] + pull * (v[n] - u[n])) / (1 + pull) for n in names}
        if step == 0 or (step + 1) % EVERY == 0:
            kept = support(floats(w), bits, limit)
            w |= {
                n: np.where(np.asarray(k) != 0, w[n], 0) for n, k in zip(names, kept, strict=True)
            }
            snapped, bits = copy(floats({n: w[n] + u[n] for n in names}), kept, limit)
            v = {n: np.asarray(q, np.float64) for n, q in zip(names, snapped, strict=True)}
            u = {n: u[n] + w[n] - v[n] for n in names}
    return {"params": w, "target": v, "dual": u, "bits": np.asarray(bits)}


@pytest.mark.parametrize("penalty", ["proximal", "gradient"])
@pytest.mark.parametrize("steps", [1, 2, 4, 10])
def test_equals_the_published_loop(penalty: str, steps: int) -> None:
    budget = jpq_jax.Budget(bits=BITS)
    if penalty == "proximal":
        admm = jpq_jax.admm(budget, rho=RHO, every=EVERY, learning_rate=RATE)
        optimizer = optax.chain(optax.sgd(RATE), admm)
    else:
        admm = jpq_jax.admm(budget, rho=RHO, every=EVERY, penalty="gradient")
        optimizer = optax.chain(admm, optax.sgd(RATE))
    params, state = train(optimizer, make_params(), steps)
    expected = oracle(make_params(), steps, penalty)
    for name in ("a", "b", "bias"):
        np.testing.assert_allclose(params[name], expected["params"][name], rtol=2e-4, atol=2e-5)
    for name in ("a", "b"):
        for part in ("target", "dual"):
            got = optax.tree.get(state, part)[name]
            np.testing.assert_allclose(got, expected[part][name], rtol=2e-4, atol=2e-5)
    np.testing.assert_array_equal(optax.tree.get(state, "leaf_bits"), expected["bits"])


def test_weights_are_exactly_sparse_after_a_projection() -> None:
    admm = jpq_jax.admm(jpq_jax.Budget(bits=BITS), rho=RHO, every=EVERY, learning_rate=RATE)
    params, state = train(optax.chain(optax.sgd(RATE), admm), make_params(), 2 * EVERY)
    left = sum(int(jnp.sum(params[name] != 0)) for name in ("a", "b"))
    assert 0 < left < 180
    codes = jpq_jax.finalize(params, state)
    zeros = {name: np.asarray(params[name] == 0) for name in ("a", "b")}
    for name, pruned in zeros.items():
        assert np.all(np.asarray(codes[name].code)[pruned] == 0)


def test_the_pull_brings_weights_to_their_copy() -> None:
    def distance(rho: float) -> float:
        admm = jpq_jax.admm(jpq_jax.Budget(bits=BITS), rho=rho, every=EVERY, learning_rate=RATE)
        params, state = train(optax.chain(optax.sgd(RATE), admm), make_params(), 60)
        quantized = jpq_jax.dequantize(jpq_jax.finalize(params, state))
        return sum(float(jnp.sum((quantized[n] - params[n]) ** 2)) for n in ("a", "b"))

    assert distance(5.0) < 0.5 * distance(0.0)


@pytest.mark.parametrize(
    "budget", [{"bits": 0}, {"bits": 1}, {"bits": 77}, {"ratio": 10}, {"bits": float("inf")}]
)
def test_finalize_keeps_to_the_budget(budget: dict[str, float]) -> None:
    admm = jpq_jax.admm(jpq_jax.Budget(**budget), rho=RHO, every=EVERY, learning_rate=RATE)
    params, state = train(optax.chain(optax.sgd(RATE), admm), make_params(), 7)
    codes = jpq_jax.validate(jpq_jax.finalize(params, state))
    weights = 12 * 10 + 6 * 5 * 2
    limit = budget.get("bits", 32 * weights / budget.get("ratio", 1))
    assert jpq_jax.rate_bits(codes, "paper") <= limit
    if limit >= 16:
        assert jpq_jax.rate_bits(codes, "paper") >= 0.5 * min(limit, weights)
    np.testing.assert_array_equal(codes["bias"], params["bias"])


def test_budget_schedule_tightens_to_the_budget() -> None:
    ramp = optax.linear_schedule(4.0, 1.0, 10)
    settings = {"rho": RHO, "every": 1, "learning_rate": RATE, "budget_schedule": ramp}
    optimizer = optax.chain(optax.sgd(RATE), jpq_jax.admm(jpq_jax.Budget(bits=BITS), **settings))
    params, state = make_params(), optimizer.init(make_params())
    spent = []
    for _ in range(12):
        updates, state = optimizer.update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
        counts = [int(jnp.sum(params[name] != 0)) for name in ("a", "b")]
        spent.append(sum(counts))
    assert spent[0] > 2 * spent[-1]
    assert jpq_jax.rate_bits(jpq_jax.finalize(params, state)) <= BITS


def test_budget_schedule_below_one_counts_as_one() -> None:
    settings = {"rho": RHO, "every": 1, "learning_rate": RATE}
    budget = jpq_jax.Budget(bits=BITS)
    plain = optax.chain(optax.sgd(RATE), jpq_jax.admm(budget, **settings))
    low = optax.chain(
        optax.sgd(RATE), jpq_jax.admm(budget, budget_schedule=lambda _: 0.1, **settings)
    )
    got, expected = train(low, make_params(), 4)[0], train(plain, make_params(), 4)[0]
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def loop(steps: int) -> Any:
    """A training run as one program: the loss, the gradient, the optimizer and the projection inside."""
    admm = jpq_jax.admm(jpq_jax.Budget(bits=BITS), rho=RHO, every=10, learning_rate=RATE)
    optimizer = optax.chain(optax.sgd(RATE, momentum=0.9), admm)

    def step(carry: Any, _: None) -> Any:
        params, state = carry
        updates, state = optimizer.update(gradient(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    def run(params: Any) -> Any:
        return jax.lax.scan(step, (params, optimizer.init(params)), None, length=steps)[0]

    return run


def test_a_thousand_steps_compile_once_and_transfer_nothing() -> None:
    optimizer = optax.chain(
        optax.sgd(RATE, momentum=0.9),
        jpq_jax.admm(jpq_jax.Budget(bits=BITS), rho=RHO, every=50, learning_rate=RATE),
    )

    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(gradient(params), state, params)
        return optax.apply_updates(params, updates), state

    params = make_params()
    state = jax.device_put(optimizer.init(params))
    with jax.transfer_guard("disallow"):
        for _ in range(1000):
            params, state = step(params, state)
    assert step._cache_size() == 1
    assert int(optax.tree.get(state, "admm_count")) == 1000


def test_the_compiled_step_has_no_host_callback() -> None:
    text = jax.jit(loop(1000)).lower(make_params()).compile().as_text()
    assert "while" in text
    assert not [t for t in re.findall(r'custom_call_target="([^"]*)"', text) if "callback" in t]
    for operation in ("infeed", "outfeed", "send", "recv"):
        assert f" {operation}(" not in text, operation


def test_same_params_same_result() -> None:
    run = jax.jit(loop(25))
    jax.tree.map(np.testing.assert_array_equal, run(make_params()), run(make_params()))
