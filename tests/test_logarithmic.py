"""The logarithmic sketch: every weight is in the bin that it is said to be in, and nothing is lost."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jpq_jax.sketch import logarithmic
from jpq_jax.sketch.logarithmic import BINS, OCTAVES, SIDE, bin_of, edge_index, edges, unit_of

SIZE = 20_000
sketch = jax.jit(logarithmic.log_sketch)
bins = jax.jit(bin_of)


def distributions() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    normal = rng.normal(size=SIZE)
    tables = {
        "gaussian": normal,
        "lognormal": np.exp(4 * normal) * np.sign(rng.normal(size=SIZE)),
        "outlier": np.where(np.arange(SIZE) == 7, -3e4, normal),
        "one value": np.full(SIZE, 0.1),
        "one weight": np.where(np.arange(SIZE) == 3, -0.3, 0),
        "nothing": np.zeros(SIZE),
        "scale 1e-30": normal * 1e-30,
        "scale 1e-44": normal * 1e-44,
        "scale 1e36": normal * 1e36,
    }
    return {name: x.astype(np.float32) for name, x in tables.items()}


@pytest.mark.parametrize("name", distributions())
def test_counts_and_means_are_those_of_the_weights(name: str) -> None:
    w = distributions()[name]
    found = sketch(w)
    place = np.asarray(bins(w, found.exponent))
    x = np.abs(w.astype(np.float64)) / float(unit_of(found.exponent))
    inside = place < BINS
    np.testing.assert_array_equal(inside, x >= 2.0 ** (1 - OCTAVES))
    counts = np.bincount(place[inside], minlength=BINS)
    np.testing.assert_array_equal(np.asarray(found.counts).ravel(), counts)
    sums = np.bincount(place[inside], x[inside], minlength=BINS)
    filled = counts > 0
    means = np.asarray(found.mean, np.float64).ravel()
    np.testing.assert_allclose(means[filled], sums[filled] / counts[filled], rtol=1e-6)
    np.testing.assert_array_equal(place[inside] >= SIDE, w[inside] < 0)
    assert (np.diff(np.asarray(found.mean), axis=1) > 0).all()


@pytest.mark.parametrize("name", ["gaussian", "outlier", "one value"])
def test_by_chunks_as_by_lanes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logarithmic, "_CHUNK", 1 << 10)
    w = distributions()[name]
    exponent = logarithmic.exponent_of(w)
    by_chunks = jax.jit(logarithmic._histogram_by_chunks)(w, exponent)
    by_lanes = jax.jit(logarithmic._histogram_by_lanes)(w.reshape(40, 500), exponent)
    np.testing.assert_array_equal(by_chunks[0], by_lanes[0])
    # Sums of what is inside a bin of 0.8 %: the means differ by as much less.
    np.testing.assert_allclose(by_chunks[1], by_lanes[1], rtol=1e-4)


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (2, 3, 4, 5, 6)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    found = sketch(np.ones(shape, np.float32))
    assert int(found.counts.sum()) == np.prod(shape, dtype=int)


@settings(deadline=None, max_examples=200)
@given(st.floats(2.0**-30, 4, width=32), st.integers(0, 1000))
def test_an_edge_index_counts_the_bins_below(magnitude: float, seed: int) -> None:
    edge = np.asarray(edges())
    share = np.random.default_rng(seed).uniform(size=SIDE)
    mean = (edge[:-1] + (edge[1:] - edge[:-1]) * share).astype(np.float32)
    found = int(edge_index(np.float32(magnitude), mean))
    assert found == int((mean < np.float32(magnitude)).sum())
