"""Budgets, codes and their invariants, and the names of leaves."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import FrozenDict
from hypothesis import given, settings
from hypothesis import strategies as st

from jpq_jax import Budget, Codes, dequantize, leaves_with_paths, validate
from jpq_jax.vocabulary import CODE_DTYPE, LEVELS, MAX_BITS, is_codes


def make_codes(code: Any, values: Any, bits: int, dtype: str = "float32") -> Codes:
    codebook = np.zeros(LEVELS, np.float32)
    codebook[1 : 1 + len(values)] = values
    return Codes(
        code=jnp.asarray(code, CODE_DTYPE),
        codebook=jnp.asarray(codebook),
        bits=jnp.asarray(bits, jnp.int32),
        dtype=dtype,
    )


def good_codes() -> Codes:
    return make_codes([[0, 1, 3], [2, 0, 1]], [-0.5, 0.25, 1.5], bits=2)


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({}, "exactly one of ratio, bits or nbytes; got none"),
        ({"ratio": 2, "bits": 3}, "exactly one"),
        ({"ratio": 2, "bits": 3, "nbytes": 4}, "exactly one"),
        ({"ratio": 0}, "must be positive; got 0"),
        ({"ratio": 0.0}, "must be positive"),
        ({"ratio": -1}, "ratio=.*must be positive; got -1"),
        ({"ratio": math.nan}, "must be positive; got nan"),
        ({"bits": -1}, "bits=.*must be at least 0; got -1"),
        ({"bits": math.nan}, "must be at least 0; got nan"),
        ({"bits": -math.inf}, "at least 0"),
        ({"nbytes": -5}, "nbytes=.*at least 0; got -5"),
        ({"ratio": "10"}, "must be a number; got '10'"),
        ({"ratio": True}, "must be a number; got True"),
        ({"bits": False}, "must be a number"),
        ({"bits": [3]}, "must be a number"),
        ({"bits": 3 + 0j}, "must be a number"),
        ({"bits": np.complex64(3)}, "must be a number"),
    ],
)
def test_budget_errors(given_: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Budget(**given_)


@pytest.mark.parametrize(
    "given_",
    [
        {"ratio": 1},
        {"ratio": 0.1},
        {"ratio": math.inf},
        {"bits": 0},
        {"bits": math.inf},
        {"bits": 2**40},
        {"nbytes": 3000},
        {"ratio": np.float32(100)},
        {"bits": np.int64(7)},
    ],
)
def test_budgets_that_are_one(given_: dict[str, Any]):
    [(name, value)] = given_.items()
    assert getattr(Budget(**given_), name) == value


def test_budget_takes_names_only_and_is_frozen():
    with pytest.raises(TypeError):
        Budget(3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Budget(bits=3).bits = 4


def test_codes_are_a_pytree_of_three_arrays():
    codes = good_codes()
    assert len(jax.tree.leaves(codes)) == 3
    again = jax.jit(lambda c: c)(codes)
    assert (again.dtype, again.shape, again.size) == ("float32", (2, 3), 6)
    np.testing.assert_array_equal(again.code, codes.code)
    assert is_codes(codes)
    assert not is_codes(codes.code)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dequantize_looks_values_up_in_the_leafs_own_dtype(dtype: str):
    tree = {"k": dataclasses.replace(good_codes(), dtype=dtype), "b": jnp.arange(3), "n": None}
    for weights in (dequantize(tree), jax.jit(dequantize)(tree)):
        assert weights["k"].dtype == jnp.dtype(dtype)
        np.testing.assert_array_equal(
            weights["k"].astype(jnp.float32), [[0, -0.5, 1.5], [0.25, 0, -0.5]]
        )
        np.testing.assert_array_equal(weights["b"], [0, 1, 2])
        assert weights["n"] is None


@pytest.mark.parametrize("shape", [(), (0, 3), (2, 1, 2, 1, 2)])
def test_dequantize_of_any_shape(shape: tuple[int, ...]):
    weights = dequantize(make_codes(np.ones(shape), [2.5], bits=1))
    assert weights.shape == shape
    np.testing.assert_array_equal(weights, 2.5)


def test_stored_leaves_pass_through_dequantize_and_validate_untouched():
    tree = {"bias": np.ones(3), "step": np.int32(4), "kernel": good_codes()}
    assert dequantize(tree)["bias"] is tree["bias"]
    assert dequantize(tree)["step"] is tree["step"]
    assert validate(tree) is tree


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    values=st.lists(
        st.floats(-(2.0**100), 2.0**100, width=32).filter(lambda v: v != 0),
        min_size=1,
        max_size=256,
        unique=True,
    ),
    data=st.data(),
)
def test_codes_made_by_the_rules_are_valid_and_dequantize_to_their_values(
    values: list[float], data: st.DataObject
):
    book = np.sort(np.asarray(values, np.float32))
    code = data.draw(st.lists(st.integers(0, len(values)), min_size=4, max_size=4))
    bits = max(1, math.ceil(math.log2(len(values))))
    codes = validate(make_codes(code, book, bits))
    np.testing.assert_array_equal(dequantize(codes), np.append(0, book).astype(np.float32)[code])


def changed(**fields: Any) -> Codes:
    return dataclasses.replace(good_codes(), **fields)


def book(*values: float, last: float = 0.0) -> jax.Array:
    table = np.zeros(LEVELS, np.float32)
    table[: len(values)] = values
    table[-1] = last
    return jnp.asarray(table)


FAULTS = {
    "code of another dtype": (
        changed(code=jnp.zeros((2, 3), jnp.int32)),
        "code dtype int32.*int16",
    ),
    "float code": (changed(code=jnp.zeros((2, 3))), "code dtype float32.*int16"),
    "negative code": (changed(code=jnp.array([-1, 2], CODE_DTYPE)), "codes -1 to 2, expected 0 to"),
    "code beyond the bits": (
        changed(code=jnp.array([0, 5], CODE_DTYPE)),
        "codes 0 to 5, expected 0 to",
    ),
    "0 bits": (changed(bits=jnp.int32(0)), "0 bits.*1 to 8"),
    "9 bits": (changed(bits=jnp.int32(9)), "9 bits.*1 to 8"),
    "short codebook": (changed(codebook=jnp.zeros(256)), r"shape \(256,\).*\(257,\)"),
    "2-d codebook": (changed(codebook=jnp.zeros((1, LEVELS))), r"shape \(1, 257\)"),
    "NaN value": (changed(codebook=book(0, 1, math.nan)), "not finite"),
    "infinite value": (changed(codebook=book(0, -math.inf, 1)), "not finite"),
    "pruned is not 0": (changed(codebook=book(0.1, -0.5, 0.25, 1.5)), r"codebook\[0\] = 0.1"),
    "pruned is -0": (changed(codebook=book(-0.0, -0.5, 0.25, 1.5)), r"codebook\[0\] = -0.0"),
    "bits per channel": (changed(bits=jnp.array([2, 2])), r"shape \(2,\), expected a scalar"),
    "codebook of another dtype": (
        changed(codebook=book(0, 1, 2, 3).astype(jnp.bfloat16)),
        "bfloat16",
    ),
    "values not ascending": (changed(codebook=book(0, 0.25, -0.5, 1.5)), "ascending"),
    "a value twice": (changed(codebook=book(0, -0.5, 0.25, 0.25)), "ascending"),
    "a value beyond the bits": (changed(codebook=book(0, -0.5, 0.25, 1.5, last=2)), "bits|values"),
    "not a float dtype": (changed(dtype="int32"), "int32"),
    "no dtype": (changed(dtype="floaty"), "floaty"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_validate_names_the_leaf_and_the_broken_invariant(fault: str):
    codes, message = FAULTS[fault]
    tree = {"block": [good_codes(), {"kernel": codes}], "bias": jnp.zeros(3)}
    with pytest.raises(ValueError, match=f"leaf 'block/1/kernel'.*({message})"):
        validate(tree)


def test_validate_takes_empty_and_pruned_leaves():
    validate(make_codes(np.zeros((0, 3)), [], bits=1))
    validate(make_codes(np.zeros((2, 3)), [], bits=1))
    validate(make_codes(np.arange(LEVELS), np.arange(1.0, LEVELS), bits=MAX_BITS))


class Pair(NamedTuple):
    left: Any
    right: Any


class Net(eqx.Module):
    layers: list[eqx.nn.Linear]


def paths(tree: Any) -> list[str]:
    return [path for path, _ in leaves_with_paths(tree)]


def test_paths_of_any_pytree():
    x = jnp.zeros(1)
    assert paths({"b": [x, (x,)], "a": Pair(x, None)}) == ["a/left", "b/0", "b/1/0"]
    assert paths(FrozenDict({"dense": {"kernel": x}})) == ["dense/kernel"]
    assert paths(x) == ["(root)"]
    assert paths({}) == []
    assert paths({"k": good_codes(), "value": x}) == ["k", "value"]
    linear = eqx.nn.Linear(2, 3, key=jax.random.key(0))
    assert paths(Net([linear])) == ["layers/0/weight", "layers/0/bias"]


def test_paths_of_nnx_states_do_not_say_value():
    state = nnx.state(nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0))))
    assert paths(state) == ["layers/0/bias", "layers/0/kernel"]
    assert paths(nnx.to_pure_dict(state)) == ["layers/0/bias", "layers/0/kernel"]
