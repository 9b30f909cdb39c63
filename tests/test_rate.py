"""The paper metric and the account of a file, against counts by hand and entropies computed otherwise."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jpq_jax import Codes, account, paper_ratio, rate_bits
from jpq_jax.vocabulary import CODE_DTYPE, LEVELS


def codes_of(code: Any, bits: int) -> Codes:
    book = np.zeros(LEVELS, np.float32)
    book[1 : 2**bits + 1] = np.arange(1, 2**bits + 1)
    return Codes(jnp.asarray(code, CODE_DTYPE), jnp.asarray(book), jnp.int32(bits), "float32")


def by_hand() -> dict[str, Any]:
    return {
        "kernel": codes_of([[0, 1, 1, 2], [3, 0, 0, 0]], bits=2),  # 4 of 8 kept: values 1, 1, 2, 3
        "bias": jnp.ones(5, jnp.bfloat16),
        "steps": np.int32(7),
    }


def test_account_by_hand():
    bias, kernel, steps = account(by_hand())
    assert kernel._asdict() == {
        "path": "kernel",
        "compressed": True,
        "weights": 8,
        "nonzeros": 4,
        "bits": 2,
        "values": 8,
        "values_coded": 6.0,  # 1, 1 at 1 bit, 2 and 3 at 2 bits
        "positions_coded": 8.0,  # half are kept: 1 bit each
        "codebook": 96,
        "learning": 4.5,
        "stored": 0,
    }
    assert kernel.file == 110
    assert (bias.path, bias.weights, bias.nonzeros, bias.bits, bias.stored) == (
        "bias",
        5,
        5,
        16,
        80,
    )
    assert (bias.values, bias.values_coded, bias.positions_coded, bias.codebook) == (0, 0, 0, 0)
    assert (steps.stored, steps.file) == (32, 32)


def test_rates_by_hand():
    assert rate_bits(by_hand()) == rate_bits(by_hand(), "paper") == 8
    assert rate_bits(by_hand(), "file") == 110 + 80 + 32
    assert paper_ratio(by_hand()) == 32 * 8 / 8


def test_paper_metric_adds_up_leaves_of_different_bits():
    tree = [codes_of(np.full(10, 5), 3), codes_of([0, 0, 200], 8), jnp.zeros(99)]
    assert rate_bits(tree) == 3 * 10 + 8 * 1
    assert paper_ratio(tree) == pytest.approx(32 * 13 / 38)


@pytest.mark.parametrize("shape", [(), (3,), (0, 4), (2, 1, 2, 1, 2)])
def test_all_pruned_is_an_infinite_ratio(shape: tuple[int, ...]):
    tree = {"a": codes_of(np.zeros(shape), 1), "b": jnp.ones(2)}
    assert rate_bits(tree) == 0
    assert paper_ratio(tree) == math.inf
    assert rate_bits(tree, "file") == 64
    [a, _] = account(tree)
    assert (a.weights, a.nonzeros, a.file) == (math.prod(shape), 0, 0)


def test_a_tree_without_codes():
    assert rate_bits({}) == rate_bits({}, "file") == 0
    assert account({"a": None}) == []
    assert rate_bits({"a": jnp.ones((2, 3), jnp.float16)}) == 0
    assert rate_bits({"a": jnp.ones((2, 3), jnp.float16)}, "file") == 96


@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "uint16", "float16", "bfloat16", "float32", "complex64"]
)
def test_stored_leaves_take_their_own_dtype(dtype: str):
    width = 8 * jnp.dtype(dtype).itemsize
    [leaf] = account(jnp.ones((3, 2), dtype))
    assert leaf.file == leaf.stored == 6 * width
    assert leaf.bits == width
    [none] = account(jnp.zeros((3, 2), dtype))
    assert (none.nonzeros, none.file, none.bits) == (0, 0, width)


def test_a_stored_leaf_takes_its_nonzeros_and_where_they_are_if_that_is_less():
    [few] = account(jnp.zeros(64).at[jnp.array([3, 40])].set(1.5))
    where = 2 * math.log2(64 / 2) + 62 * math.log2(64 / 62)
    assert (few.nonzeros, few.stored, few.compressed) == (2, 2 * 32, False)
    assert few.positions_coded == pytest.approx(where)
    assert few.file == pytest.approx(2 * 32 + where)
    [rare] = account(jnp.ones(4096, jnp.uint8).at[5].set(0))  # where it is takes more than a byte
    assert (rare.nonzeros, rare.positions_coded, rare.file) == (4095, 0, 4096 * 8)


def test_unknown_metric():
    with pytest.raises(ValueError, match="metric: got 'bytes', expected one of paper, coded, file"):
        rate_bits(by_hand(), "bytes")


@settings(deadline=None, derandomize=True, max_examples=100)
@given(
    st.integers(1, 8).flatmap(
        lambda bits: st.tuples(
            st.just(bits), st.lists(st.integers(0, 2**bits), min_size=1, max_size=60)
        )
    )
)
def test_code_lengths_are_the_entropies(case: tuple[int, list[int]]):
    bits, symbols = case
    code = np.asarray(symbols)
    [leaf] = account(codes_of(code, bits))
    kept = code[code > 0]
    assert leaf.values == bits * kept.size
    assert leaf.positions_coded == pytest.approx(oracles.entropy_bits(code > 0), abs=1e-9)
    assert leaf.values_coded == pytest.approx(
        oracles.entropy_bits(kept) if kept.size else 0, abs=1e-9
    )
    assert leaf.codebook == 32 * np.unique(kept).size
    # Coding positions and values apart loses nothing, and fixed-width indices gain nothing.
    assert leaf.values_coded + leaf.positions_coded == pytest.approx(
        oracles.entropy_bits(code), abs=1e-9
    )
    assert leaf.values_coded <= leaf.values + 1e-9
