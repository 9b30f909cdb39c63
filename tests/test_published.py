"""The published alternation against an independent one in float64, and what every set of codes must keep to."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from compiled import THOROUGH
from hypothesis import given, settings
from hypothesis import strategies as st

from jpq_jax import (
    Budget,
    Codes,
    dequantize,
    leaves_with_paths,
    paper_ratio,
    plan_leaves,
    project_alternating,
    rate_bits,
    validate,
)
from jpq_jax.plan import capacity
from jpq_jax.projection.published import Quantization, to_codes
from jpq_jax.vocabulary import LEVELS, is_codes

SHAPES = {"conv": (3, 3, 4, 8), "dense": (40, 30), "out": (30, 10)}


def small_net(seed: int, spread: float = 1.0) -> dict[str, np.ndarray]:
    """One shape for all tests, so that one program serves them."""
    rng = np.random.default_rng(seed)
    scales = np.exp(spread * rng.normal(size=len(SHAPES)))
    net = {
        name: (scale * rng.laplace(size=shape)).astype(np.float32)
        for (name, shape), scale in zip(SHAPES.items(), scales, strict=True)
    }
    return net | {"bias": rng.normal(size=30).astype(np.float32)}


def squared_error(params: Any, codes: Any) -> float:
    differences = jax.tree.map(
        lambda w, q: float(((np.asarray(w, np.float64) - np.asarray(q, np.float64)) ** 2).sum()),
        params,
        dequantize(codes),
    )
    return sum(jax.tree.leaves(differences))


def kernels(net: dict[str, np.ndarray]) -> list[np.ndarray]:
    return [net[name] for name in sorted(SHAPES)]


def limit_of(budget: Budget, params: Any) -> int:
    return capacity(budget, params, plan_leaves(params))


def check_codes(codes: Any, limit: float) -> None:
    """The budget, all that `Codes` states, and weights that are codebook values."""
    validate(codes)
    assert rate_bits(codes) <= limit
    for (_, leaf), (_, weights) in zip(
        leaves_with_paths(codes), leaves_with_paths(dequantize(codes)), strict=True
    ):
        if is_codes(leaf):
            check_leaf(leaf, np.asarray(weights.astype(jnp.float32)))


def check_leaf(leaf: Codes, weights: np.ndarray) -> None:
    code, book = np.asarray(leaf.code), np.asarray(leaf.codebook)
    used = np.unique(code[code > 0])
    values = book[1 : used.size + 1]
    assert np.array_equal(used, np.arange(1, used.size + 1))  # no value without a weight
    assert (values != 0).all()
    assert (np.diff(values) > 0).all()
    assert (book[used.size + 1 :] == 0).all()
    assert int(leaf.bits) == max(1, math.ceil(math.log2(max(used.size, 1))))
    own = np.asarray(jnp.asarray(book).astype(leaf.dtype).astype(jnp.float32))
    np.testing.assert_array_equal(weights, own[code])


# Against the oracle.


@pytest.mark.parametrize("ratio", [4, 8, 20, 64, 200, 1000])
@pytest.mark.parametrize("seed", range(4 if THOROUGH else 1))
def test_distortion_is_within_one_percent_of_the_published_alternation(seed: int, ratio: float):
    net = small_net(seed)
    limit = limit_of(Budget(ratio=ratio), net)
    codes = project_alternating(net, Budget(ratio=ratio))
    published = oracles.alternate(kernels(net), limit)
    check_codes(codes, limit)
    assert published.spent <= limit
    assert squared_error(net, codes) <= 1.01 * published.error
    assert paper_ratio(codes) >= ratio


@pytest.mark.parametrize("start_bits", [3, 8] if THOROUGH else [3])
def test_one_round_from_given_bits(start_bits: int):
    net = small_net(5)
    limit = limit_of(Budget(ratio=30), net)
    codes = project_alternating(net, Budget(ratio=30), start_bits=start_bits, rounds=1)
    published = oracles.alternate(kernels(net), limit, start_bits, rounds=1)
    check_codes(codes, limit)
    assert squared_error(net, codes) == pytest.approx(published.error, rel=0.01)


@pytest.mark.parametrize("ratio", [6, 50, 400])
def test_more_rounds_are_never_worse(ratio: float):
    net = small_net(6, spread=2)
    one, three = (project_alternating(net, Budget(ratio=ratio), rounds=rounds) for rounds in (1, 3))
    assert squared_error(net, three) <= squared_error(net, one) * (1 + 1e-6)


# Whatever the weights and the budget.


def fill(kind: str, seed: int) -> dict[str, np.ndarray]:
    net = small_net(seed)
    change = {
        "as it is": lambda w: w,
        "zeros": np.zeros_like,
        "one value": lambda w: np.full_like(w, 0.1),
        "two values": lambda w: np.where(w > 0, 0.25, -1).astype(np.float32),
        "on a grid": lambda w: np.round(2 * w) / 2,
        "mostly zeros": lambda w: np.where(np.abs(w) > 4, w, 0),
        "one sign": lambda w: np.abs(w) + np.float32(0.5),
        "one outlier": lambda w: np.where(np.abs(w) == np.abs(w).max(), 1e4, w).astype(np.float32),
        "subnormal": lambda w: (w * np.float32(1e-41)).astype(np.float32),
        "tiny": lambda w: w * np.float32(2.0**-100),
        "huge": lambda w: w * np.float32(2.0**100),
    }[kind]
    return net | {name: change(net[name]) for name in SHAPES}


KINDS = [
    "as it is", "zeros", "one value", "two values", "on a grid", "mostly zeros",
    "one sign", "one outlier", "subnormal", "tiny", "huge",
]  # fmt: skip
BUDGETS = (
    st.floats(1, 1e5).map(lambda r: Budget(ratio=r))
    | st.integers(0, 8 * 1788).map(lambda b: Budget(bits=b))
    | st.sampled_from(
        [Budget(ratio=math.inf), Budget(bits=math.inf), Budget(ratio=1), Budget(bits=1)]
    )
)


@settings(deadline=None, derandomize=True, max_examples=150 if THOROUGH else 30)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 99), budget=BUDGETS)
def test_budget_and_codes_hold_whatever_the_weights(kind: str, seed: int, budget: Budget):
    net = fill(kind, seed)
    limit = limit_of(budget, net)
    codes = project_alternating(net, budget)
    check_codes(codes, limit)
    energy = sum(float((np.asarray(w, np.float64) ** 2).sum()) for w in kernels(net))
    assert squared_error(net, codes) <= energy * (1 + 1e-6)


@pytest.mark.parametrize("power", [-100, -60, 50, 100])
def test_scaling_by_a_power_of_two_keeps_the_codes(power: int):
    net = small_net(7)
    codes = project_alternating(net, Budget(ratio=40))
    scaled = project_alternating({k: np.ldexp(w, power) for k, w in net.items()}, Budget(ratio=40))
    assert rate_bits(codes) > 0
    for name in SHAPES:
        np.testing.assert_array_equal(scaled[name].code, codes[name].code)
        np.testing.assert_array_equal(scaled[name].codebook, np.ldexp(codes[name].codebook, power))
        assert int(scaled[name].bits) == int(codes[name].bits)


@pytest.mark.parametrize("kind", ["one value", "two values", "zeros"])
def test_few_values_are_kept_exactly_if_the_budget_allows(kind: str):
    net = fill(kind, 1)
    codes = project_alternating(net, Budget(bits=math.inf))
    for name in SHAPES:
        np.testing.assert_allclose(dequantize(codes)[name], net[name], rtol=1e-6)
        assert int(codes[name].bits) == 1


@pytest.mark.parametrize("budget", [Budget(bits=0), Budget(ratio=math.inf)])
def test_nothing_is_kept_for_nothing(budget: Budget):
    codes = project_alternating(small_net(8), budget)
    check_codes(codes, 0)
    assert paper_ratio(codes) == math.inf
    assert not any(dequantize(codes)[name].any() for name in SHAPES)


def test_no_limit_spends_8_bits_on_all_but_what_is_nearest_to_zero():
    net = small_net(9)
    codes = project_alternating(net, Budget(bits=math.inf))
    check_codes(codes, 8 * 1788)
    assert [int(codes[name].bits) for name in SHAPES] == [8, 8, 8] or rate_bits(codes) > 7 * 1500
    assert squared_error(net, codes) < 1e-3 * sum(float((w**2).sum()) for w in kernels(net))


# Trees, dtypes, shapes.


class Layer(NamedTuple):
    kernel: Any
    bias: Any


def mixed_tree() -> dict[str, Any]:
    rng = np.random.default_rng(10)

    def normal(*shape: int, dtype: Any = jnp.float32) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), dtype)

    return {
        "list": [normal(4, 5, dtype=jnp.bfloat16), (normal(3, 4, dtype=jnp.float16), None)],
        "layer": Layer(normal(2, 3, 2, 2, 3), normal(3)),
        "scalar": normal(),
        "empty": jnp.zeros((0, 3)),
        "steps": jnp.int32(3),
    }


def test_structure_shapes_and_dtypes_are_kept():
    tree = mixed_tree()
    compressed = {"list/0", "list/1/0", "layer/kernel", "scalar", "empty"}
    codes = project_alternating(tree, Budget(bits=200), where=lambda path, _: path in compressed)
    check_codes(codes, 200)
    assert {path for path, leaf in leaves_with_paths(codes) if is_codes(leaf)} == compressed
    assert codes["steps"] is tree["steps"]
    assert codes["layer"].bias is tree["layer"].bias
    back = dequantize(codes)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), back) == jax.tree.map(
        lambda x: (x.shape, x.dtype), tree
    )


def test_numpy_float64_leaves_come_back_as_jax_keeps_them():
    tree = {"kernel": np.random.default_rng(0).normal(size=(5, 5))}
    codes = project_alternating(tree, Budget(ratio=10))
    assert dequantize(codes)["kernel"].dtype == jnp.asarray(tree["kernel"]).dtype


def test_under_jit_and_eagerly_the_codes_are_the_same():
    net = {"dense": small_net(11)["dense"]}
    eager = project_alternating(net, Budget(ratio=25))
    traced = jax.jit(lambda p: project_alternating(p, Budget(ratio=25)))(net)
    assert jax.tree.structure(eager) == jax.tree.structure(traced)
    np.testing.assert_array_equal(eager["dense"].code, traced["dense"].code)
    np.testing.assert_allclose(eager["dense"].codebook, traced["dense"].codebook, rtol=1e-6)


@pytest.mark.parametrize(
    "options", [{"start_bits": 0}, {"start_bits": 9}, {"rounds": 0}, {"rounds": -1}]
)
def test_options_out_of_range(options: dict[str, int]):
    [(name, value)] = options.items()
    with pytest.raises(ValueError, match=f"{name}={value}.*expected 1 to 8, at least 1"):
        project_alternating(small_net(0), Budget(bits=10), **options)


# Codes of quantized weights.

code_of = jax.jit(
    lambda w, levels: to_codes([w], Quantization(levels[None], jnp.array([1])), ["float32"])[0]
)


@pytest.mark.parametrize(
    ("count", "bits"),
    [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (17, 5), (128, 7), (129, 8), (256, 8)],
)
def test_bits_index_the_values_in_use(count: int, bits: int):
    levels = np.sort(np.concatenate([np.arange(1.0, 257), [0]])).astype(np.float32)
    w = np.resize(np.arange(1, count + 1), 300).astype(np.float32)
    codes = code_of(w, levels)
    assert int(codes.bits) == bits
    np.testing.assert_array_equal(codes.code, w)
    np.testing.assert_array_equal(codes.codebook[: count + 1], np.arange(count + 1))
    np.testing.assert_array_equal(codes.codebook[count + 1 :], 0)


def test_pruned_weights_and_those_nearest_to_zero_have_code_0():
    levels = np.sort(np.concatenate([[-2, -1, 1, 4], np.zeros(LEVELS - 4)])).astype(np.float32)
    codes = code_of(np.array([0, -0.0, 0.4, -0.4, 0.6, -1.9, 0, -0.9], np.float32), levels)
    np.testing.assert_array_equal(codes.code, [0, 0, 0, 0, 3, 1, 0, 2])
    np.testing.assert_array_equal(codes.codebook[:5], [0, -2, -1, 1, 0])
    assert int(codes.bits) == 2
