"""The logarithmic sketch: every weight is in the bin that it is said to be in, and nothing is lost."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jpq_jax.sketch import logarithmic
from jpq_jax.sketch.classes import CLASSES, class_of, relative_importance, top_of
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
    assert (np.diff(np.asarray(found.mean), axis=-1) > 0).all()


@pytest.mark.parametrize("classed", [False, True])
@pytest.mark.parametrize("name", ["gaussian", "outlier", "one value"])
def test_by_chunks_as_by_lanes(name: str, classed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logarithmic, "_CHUNK", 1 << 10)
    w = distributions()[name]
    kinds = np.random.default_rng(1).integers(0, CLASSES, w.shape).astype(np.uint8)
    kind = kinds if classed else None
    exponent = logarithmic.exponent_of(w)
    by_chunks = jax.jit(logarithmic._histogram_by_chunks)(w, kind, exponent)
    in_rows = None if kind is None else kind.reshape(40, 500)
    by_lanes = jax.jit(logarithmic._histogram_by_lanes)(w.reshape(40, 500), in_rows, exponent)
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
    both = np.stack([mean, mean])
    found = int(edge_index(jnp.float32(magnitude), jnp.int32(seed % 2), jnp.asarray(both)))
    assert found == int((mean < np.float32(magnitude)).sum())


def test_by_class_and_sign() -> None:
    rng = np.random.default_rng(2)
    w = rng.normal(size=SIZE).astype(np.float32)
    kind = rng.integers(0, CLASSES, SIZE).astype(np.uint8)
    whole, found = sketch(w), sketch(w, kind)
    assert found.counts.shape == (CLASSES, 2, SIDE)
    np.testing.assert_array_equal(found.counts.sum(axis=0, keepdims=True), whole.counts)
    for k in (0, 7, CLASSES - 1):
        alone = sketch(np.where(kind == k, w, 0))
        assert int(alone.counts.sum()) == int(found.counts[k].sum())


@pytest.mark.parametrize("scale", [1e-20, 1.0, 3e18])
def test_a_class_is_half_an_octave(scale: float) -> None:
    cost = (scale * np.exp2(np.random.default_rng(0).uniform(-20, 0, 5000))).astype(np.float32)
    top = jax.jit(top_of)(cost)
    kind = np.asarray(jax.jit(class_of)(cost, top))
    middle = np.asarray(relative_importance(top), np.float64)
    assert kind.max() == CLASSES - 1
    relative = cost / middle[kind]
    far = kind > 0
    assert relative[far].max() / relative[far].min() < 1.5  # the middle of [1, 1.5) is 1.25
    assert (np.diff(middle) > 0).all()


def test_costs_of_zero_are_of_the_lowest_class() -> None:
    kind = class_of(jnp.array([0.0, 1.0]), top_of(jnp.array([0.0, 1.0])))
    np.testing.assert_array_equal(kind, [0, CLASSES - 1])
    np.testing.assert_array_equal(class_of(jnp.zeros(3), top_of(jnp.zeros(3))) < CLASSES, True)
