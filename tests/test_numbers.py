"""Codes as whole numbers, coded by the activity of their lines: exact, and short where lines differ."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jpq_jax.artifact import numbers as module
from jpq_jax.artifact.activity import activity_of, sums_of
from jpq_jax.artifact.numbers import read_numbers, write_numbers
from jpq_jax.artifact.stream import Reader, Writer


def coded(numbers: np.ndarray, low: int, high: int) -> float:
    """Bits, after a round trip."""
    writer = Writer()
    write_numbers(writer, numbers, low, high)
    reader = Reader(writer.finish())
    np.testing.assert_array_equal(read_numbers(reader, numbers.shape, low, high), numbers)
    reader.finish()
    return writer.bits


@st.composite
def sparse_arrays(draw: st.DrawFn) -> np.ndarray:
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=9))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    high = draw(st.sampled_from([1, 3, 300]))
    density = draw(st.sampled_from([0.01, 0.3, 1.0]))
    return np.where(rng.random(shape) < density, rng.integers(-high, high + 1, shape), 0)


@settings(deadline=None, max_examples=200)
@given(sparse_arrays(), st.integers(0, 3), st.integers(0, 3))
def test_numbers_come_back(numbers: np.ndarray, below: int, above: int):
    low, high = int(numbers.min(initial=0)), int(numbers.max(initial=0))
    coded(numbers.astype(np.int16), low - below, high + above)


def test_slabs_come_back_and_cost_little(monkeypatch: pytest.MonkeyPatch):
    numbers = rank_one(np.random.default_rng(0))
    whole = coded(numbers, -1, 1)
    monkeypatch.setattr(module, "SLAB", 2**12)
    assert coded(numbers, -1, 1) <= 1.02 * whole


def rank_one(rng: np.random.Generator, shape: tuple[int, int] = (300, 400)) -> np.ndarray:
    """Signs, and 0 where a rank-one density has drawn none."""
    known = density(rng, shape)
    return (rng.random(shape) < known) * rng.choice([-1, 1], shape)


def density(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    rows, columns = (np.exp2(-3 * rng.random(n)) for n in shape)
    return 0.3 * rows[:, None] * columns[None, :]


@pytest.mark.parametrize("seed", range(3))
def test_lines_of_different_density_take_little_more_than_if_it_were_known(seed: int):
    shape = (300, 400)
    known = density(np.random.default_rng(seed), shape)
    numbers = rank_one(np.random.default_rng(seed), shape)
    kept = numbers != 0
    ideal = float(-np.log2(np.where(kept, known / 2, 1 - known)).sum())
    share = kept.mean()
    entropy = -share * np.log2(share / 2) - (1 - share) * np.log2(1 - share)
    bits = coded(numbers.astype(np.int16), -1, 1)
    assert bits <= 1.05 * ideal
    assert bits <= 0.97 * entropy * numbers.size


@pytest.mark.parametrize("deviation", [0.4, 3.0, 40.0])
def test_rounded_normals_take_their_entropy(deviation: float):
    rng = np.random.default_rng(0)
    numbers = np.rint(rng.normal(size=(3, 3, 60, 80)) * deviation).astype(np.int16)
    counts = np.unique(numbers, return_counts=True)[1]
    entropy = float(counts @ np.log2(numbers.size / counts))
    assert coded(numbers, int(numbers.min()), int(numbers.max())) <= 1.015 * entropy + 64


def test_dead_lines_take_almost_nothing():
    numbers = np.zeros((800, 500), np.int16)
    small = np.random.default_rng(0).integers(-1, 2, (20, 20)).astype(np.int16)
    numbers[40:800:40][:, 20:500:25] = small[:19, :20]
    alone = coded(small[:19, :20].copy(), -1, 1)
    # Which 19 of 800 and 20 of 500 lines live takes 0.16 and 0.24 bits a line.
    assert coded(numbers, -1, 1) <= alone + 1.5 * (800 * 0.163 + 500 * 0.242)


def test_zeros_take_one_number():
    assert coded(np.zeros((1000, 1000), np.int16), -1, 1) <= 2


def test_activity_is_that_of_the_sums():
    numbers = rank_one(np.random.default_rng(1)).reshape(300, 20, 20)
    activity = activity_of(sums_of(numbers), (0, 2), False)
    assert activity.lines[1] is None
    size = np.abs(numbers).astype(np.float64)
    for axis, others in ((0, (1, 2)), (2, (0, 1))):
        exponents = activity.lines[axis]
        assert exponents is not None
        means = size.mean(axis=others)
        alive = means > 0
        factor = 2.0 ** (exponents[alive] / 2)
        np.testing.assert_allclose(np.log2(means[alive] / size.mean()), np.log2(factor), atol=0.26)
        np.testing.assert_array_equal(activity.alive[axis], alive)


@pytest.mark.parametrize("exponent", range(-30, 20, 3))
def test_expected_sizes_fall_geometrically(exponent: int):
    low, high = -40, 60
    weights = module._expected(exponent, low, high)
    mean = 2.0 ** (exponent / 2)
    factor = (np.sqrt(1 + mean**2) - 1) / mean
    ideal = factor ** np.abs(np.arange(low, high + 1)) * (1 - factor) / (1 + factor)
    np.testing.assert_allclose(weights / (64 * 1024), ideal, rtol=1e-3, atol=2e-5)
