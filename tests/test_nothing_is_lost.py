"""Random trees at random budgets: each leaf's error is what its share of the file justifies, or there is a warning or an error."""

from __future__ import annotations

import math
import warnings
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from compiled import THOROUGH
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jpq_jax import Budget, InfeasibleError, artifact, compress, dequantize
from jpq_jax.post_training import UnusedBudgetWarning, size_range

KERNELS = ((16, 24), (3, 3, 8, 8), (2, 2, 2, 8, 9), (64, 5))  # few, since each is a program
STORED = ((), (7,), (0, 3), (40,))
FLOATS = (np.float32, ml_dtypes.bfloat16, np.float16)
OTHERS = (np.int32, np.int64, np.uint8, np.bool_, np.float64, np.complex64)
_LARGEST = {np.float16: 1e4}


@st.composite
def kernels(draw: Any) -> np.ndarray:
    shape, dtype = draw(st.sampled_from(KERNELS)), draw(st.sampled_from(FLOATS))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    kind = draw(st.sampled_from(["normal", "heavy", "constant", "mask", "sparse", "rows"]))
    scale = 10.0 ** draw(st.integers(-3, 2) if dtype is np.float16 else st.integers(-30, 30))
    weights = rng.standard_normal(shape)
    if kind == "heavy":
        weights = rng.standard_t(2, shape)
    elif kind == "constant":
        weights = np.ones(shape)
    elif kind == "mask":
        return np.where(weights < 0, float(ml_dtypes.finfo(dtype).min), 0).astype(dtype)
    elif kind == "sparse":
        weights = weights * (rng.random(shape) < 0.1)
    elif kind == "rows":
        weights = weights * 10.0 ** rng.integers(-2, 2, (shape[0],) + (1,) * (len(shape) - 1))
    weights = weights * scale
    for factor in draw(st.lists(st.sampled_from([1e2, 1e4, 1e6, 1e8]), max_size=2)):
        largest = _LARGEST.get(dtype, 1e38)
        weights.flat[rng.integers(weights.size)] = min(factor * scale, largest)
    return weights.astype(dtype)


@st.composite
def stored(draw: Any) -> np.ndarray:
    shape, dtype = draw(st.sampled_from(STORED)), draw(st.sampled_from(FLOATS + OTHERS))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    return np.asarray(100 * rng.standard_normal(shape)).astype(np.complex128).real.astype(dtype)


trees = st.fixed_dictionaries(
    {
        "kernels": st.lists(kernels(), min_size=1, max_size=3),
        "stored": st.lists(stored(), max_size=3),
    }
)


def inner_error(kernel: np.ndarray, back: np.ndarray) -> float:
    """Relative squared error over the weights that are not outliers."""
    wide = kernel.astype(np.float64)
    size = np.abs(wide)
    usual = size <= 64 * np.median(size[size > 0]) if size.any() else size == 0
    whole = (wide[usual] ** 2).sum()
    lost = ((back.astype(np.float64) - wide)[usual] ** 2).sum()
    return float(lost / whole) if whole else float(lost > 0)


def value_bits(kernel: np.ndarray, nbytes: int) -> float:
    """Bits for each nonzero weight of a leaf's bytes, without the entropy of their positions and the leaf's overhead."""
    nonzeros = np.count_nonzero(kernel)
    share = nonzeros / kernel.size
    zeros = kernel.size - nonzeros
    positions = -nonzeros * math.log2(share or 1) - zeros * math.log2((1 - share) or 1)
    return max(8 * (nbytes - 16) - positions, 0) / max(nonzeros, 1)


@pytest.mark.filterwarnings("ignore::jpq_jax.post_training.UnusedBudgetWarning")
@settings(
    deadline=None,
    max_examples=2000 if THOROUGH else 60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(trees, st.floats(0.01, 1.05))
def test_nothing_is_lost_in_silence(tree: dict[str, list[np.ndarray]], share: float):
    nbytes = int(share * sum(leaf.nbytes for leaf in jax.tree.leaves(tree)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            codes = compress(tree, Budget(nbytes=nbytes))
        except InfeasibleError:
            assert size_range(tree).least > nbytes
            return
    data = artifact.encode(codes)
    assert len(data) <= nbytes
    back = jax.tree.map(np.asarray, dequantize(artifact.decode(data).codes))
    exact = jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), tree, back)
    warned = any(issubclass(each.category, UnusedBudgetWarning) for each in caught)
    assert len(data) >= 0.98 * nbytes or warned or all(jax.tree.leaves(exact))
    for before, after, same in zip(tree["stored"], back["stored"], exact["stored"], strict=True):
        assert same or before.dtype.type in FLOATS, before.dtype
        np.testing.assert_array_equal(np.isfinite(after), np.isfinite(before))
    sizes = dict(artifact.leaf_bytes(codes).leaves)
    spent = []
    for i, (before, after) in enumerate(zip(tree["kernels"], back["kernels"], strict=True)):
        assert (after.dtype, after.shape) == (before.dtype, before.shape)
        if np.count_nonzero(before) < 200:  # what tables take to be learned counts for more
            continue
        bits = value_bits(before, sizes[f"kernels/{i}"])
        assert inner_error(before, after) <= min(1.0, 2.0 ** (6 - 2 * (bits - 2))) + 1e-12
        if np.unique(before).size > 64 and before.dtype == np.float32:  # narrower ones end earlier
            spent.append(bits)
    assert (
        max(spent, default=0) - min(spent, default=0) <= 14
    )  # 4 by their energies, the rest by their rows


@pytest.mark.parametrize("value", [-1e20, float(np.finfo(np.float32).min), 3e-40])
def test_a_buffer_of_one_value_costs_the_kernel_beside_it_nothing(value: float):
    kernel = np.random.default_rng(0).standard_normal((16, 24)).astype(np.float32)
    tree = {"buffer": np.full((16, 24), value, np.float32), "kernel": kernel}
    codes, alone = compress(tree, Budget(nbytes=330)), compress([kernel], Budget(nbytes=300))
    np.testing.assert_array_equal(dequantize(codes)["buffer"], tree["buffer"])
    beside, by_itself = (
        inner_error(kernel, np.asarray(x))
        for x in (dequantize(codes)["kernel"], dequantize(alone)[0])
    )
    assert beside <= 1.3 * by_itself


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", FLOATS)
def test_what_is_not_finite_is_refused_by_name(bad: float, dtype: type):
    kernel = np.ones((16, 24)).astype(dtype)
    kernel[3, 4] = bad
    with pytest.raises(ValueError, match="leaf 'a/kernel': got 1 NaN or infinite weights"):
        compress({"a": {"kernel": kernel}}, Budget(nbytes=400))
