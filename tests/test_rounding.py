"""Stored leaves are rounded to what a bit is worth: against brute force, and where there is nothing to round."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jpq_jax.rounding import rounded

finite = st.floats(-(2.0**60), 2.0**60, allow_nan=False, width=32, allow_subnormal=False)


def relative_error(leaf: np.ndarray, found: np.ndarray) -> float:
    """As a root, of numbers of both signs; of positive ones each relative to itself."""
    wide, error = leaf.astype(np.float64), found.astype(np.float64) - leaf
    if (wide > 0).all():
        return float(np.sqrt(((error / wide) ** 2).mean()))
    return float(np.sqrt((error**2).sum() / (wide**2).sum()))


@settings(deadline=None)
@given(hnp.arrays(np.float32, st.integers(1, 40), elements=finite), st.integers(-20, 0))
def test_never_costs_more_than_leaving_it_as_it_is(leaf: np.ndarray, price: int):
    multiplier = 2.0**price
    found = rounded(leaf, 1.0, multiplier)
    assert found.dtype == leaf.dtype
    if leaf.any():
        assert relative_error(leaf, found) ** 2 <= 32 * multiplier * (1 + 1e-6)


@pytest.mark.parametrize("positive", [False, True])
def test_the_dearer_a_bit_the_coarser(positive: bool):
    leaf = np.random.default_rng(0).normal(size=300).astype(np.float32)
    leaf = np.exp(leaf) if positive else leaf
    errors = [relative_error(leaf, rounded(leaf, 1.0, 4.0**-k)) for k in range(1, 12)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3 < 1e-1 < errors[0]


def test_small_variances_keep_their_digits():
    leaf = np.exp2(np.random.default_rng(0).uniform(-12, 4, 200)).astype(np.float32)
    found = rounded(leaf, 16.0, 1e-3)
    assert (np.abs(found / leaf - 1) < 0.2).all()
    assert (found != leaf).any()


def test_a_negative_zero_is_never_made():
    leaf = np.concatenate([np.full(50, -1e-6), np.ones(50)]).astype(np.float32)
    for price in np.geomspace(1e-12, 10, 30):
        found = rounded(leaf, 1.0, price)
        assert not np.signbit(found[found == 0]).any()


@pytest.mark.parametrize(
    "leaf",
    [
        np.zeros(5, np.float32),
        np.zeros(0, np.float32),
        np.array([np.nan, 0.3], np.float32),
        np.array([np.inf, 0.3], np.float32),
    ],
)
def test_what_cannot_be_rounded_stays(leaf: np.ndarray):
    np.testing.assert_array_equal(rounded(leaf, 1.0, 0.1), leaf)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e4])
def test_every_dtype_and_scale(dtype: type, scale: float):
    leaf = (np.random.default_rng(1).normal(size=64) * scale).astype(dtype)
    if not leaf.any():
        return
    found = rounded(leaf, 1.0, 1e-4)
    assert found.dtype == dtype
    assert relative_error(leaf.astype(np.float32), found.astype(np.float32)) < 0.05


def test_a_scalar():
    found = rounded(np.array(0.7371, np.float32), 1.0, 1e-3)
    assert found.shape == ()
    assert abs(float(found) - 0.7371) < 0.2
