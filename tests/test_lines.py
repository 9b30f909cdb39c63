"""Numbers at the price of the codec: against the same steps in float64 NumPy, and against the codec itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import THOROUGH

from jpq_jax.artifact.numbers import write_numbers
from jpq_jax.artifact.stream import Writer
from jpq_jax.checkpoint import read_checkpoint, write_safetensors
from jpq_jax.projection import lines, multiples
from jpq_jax.projection.multiples import LeafNumbers, numbers_at


def trained_like(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Weights of which some lines are more active than others."""
    rng = np.random.default_rng(seed)
    w = rng.laplace(size=shape)
    for axis, length in enumerate(shape):
        factor = np.exp2(-3 * rng.random(length))
        w *= factor.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return w.astype(np.float32)


def at(w: Any, multiplier: float, outputs: int | None = None) -> LeafNumbers:
    return jax.tree.map(np.asarray, numbers_at(w, multiplier, outputs=outputs))


def error_of(w: np.ndarray, found: LeafNumbers) -> float:
    return float(((w.astype(np.float64) - found.numbers * np.float64(found.step)) ** 2).sum())


def codec_bits(numbers: np.ndarray) -> float:
    writer = Writer()
    low, high = int(numbers.min(initial=0)), int(numbers.max(initial=0))
    write_numbers(writer, numbers, low, high)
    return writer.bits


SHAPES = [(300, 200), (5, 5, 20, 50), (50, 20, 5, 5), (3, 3, 3, 16)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("price", [1e-4, 1e-2, 0.1] if THOROUGH else [1e-2, 0.1])
def test_bits_are_about_those_of_the_codec(shape: tuple[int, ...], price: float):
    w = trained_like(shape)
    found = at(w, price * float((w**2).mean()))
    known = lines.lines_of(jnp.asarray(found.numbers))
    counts = lines.counts_of(jnp.asarray(found.numbers), lines.classes_of(known))
    bits = float(lines.learned_bits(counts) + lines.lines_bits([known]))
    most = (
        1.05 if np.abs(found.numbers).max() <= lines.REACH else 1.15
    )  # which share a price beyond
    assert 0.9 * bits - 50 <= codec_bits(found.numbers) <= most * bits + 50


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("outputs", [None, 0, -1] if THOROUGH else [-1])
def test_slabs_make_no_difference(
    shape: tuple[int, ...], outputs: int | None, monkeypatch: pytest.MonkeyPatch
):
    w = trained_like(shape)
    whole = at(w, 1e-2 * float((w**2).mean()), outputs)
    monkeypatch.setattr(multiples, "_SLAB", 1000)
    jax.clear_caches()
    in_slabs = at(w, 1e-2 * float((w**2).mean()), outputs)
    jax.clear_caches()
    # Sums of another order: numbers at a border may differ.
    assert (whole.numbers != in_slabs.numbers).mean() < 0.01
    assert error_of(w, in_slabs) == pytest.approx(error_of(w, whole), rel=0.01)


def test_the_weights_given_are_left_alone():
    w = jnp.asarray(trained_like((30, 20)))
    numbers_at(w, 1e-3)
    assert float(jnp.sum(w)) != 0


def test_a_leaf_in_its_file_is_put_together_of_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    w = trained_like((130, 40))
    write_safetensors(tmp_path / "w.safetensors", {"w": w})
    stored = read_checkpoint(tmp_path / "w.safetensors", lazy=True)["w"]
    monkeypatch.setattr(multiples, "_SLAB", 1000)
    monkeypatch.setattr(multiples, "_LARGE", 1000)
    jax.clear_caches()
    expected, found = at(w, 1e-3), at(stored, 1e-3)
    jax.clear_caches()
    np.testing.assert_array_equal(found.numbers, expected.numbers)
    assert found.step == expected.step


@pytest.mark.parametrize("unit", [2.0**-60, 1.0, 2.0**60])
def test_a_unit_makes_no_difference(unit: float):
    w = trained_like((40, 30))
    expected, found = numbers_at(w, 1e-4), numbers_at(w * np.float32(unit), 1e-4, unit)
    np.testing.assert_array_equal(found.numbers, expected.numbers)
    assert float(found.step) == float(expected.step)


def test_step_is_a_bfloat16():
    found = at(trained_like((40, 50)), 1e-3)
    assert not found.step.view(np.uint32) & 0xFFFF


@pytest.mark.parametrize(("price", "share"), [(1e-4, 1.0), (1e-2, 0.97), (0.1, 0.9)])
def test_better_than_rounding_with_the_same_bytes(price: float, share: float):
    w = trained_like((300, 200))
    found = at(w, price * float((w**2).mean()))
    taken, error = codec_bits(found.numbers), error_of(w, found)
    low, high = float(found.step) / 4, float(found.step) * 8
    for _ in range(20):  # the step at which plain rounding takes as much
        step = (low * high) ** 0.5
        numbers = np.rint(w / step).astype(np.int16)
        low, high = (step, high) if codec_bits(numbers) > taken else (low, step)
    assert error < share * float(((w - numbers * step) ** 2).sum())


def test_outputs_keep_more_of_their_sums():
    w = trained_like((300, 200)) + np.float32(0.1)

    def shared(outputs: int | None) -> float:
        found = at(w, 0.1 * float((w**2).mean()), outputs)
        error = w - found.numbers * found.step
        return float((error.mean(axis=0) ** 2).mean() / (error**2).mean())

    assert shared(-1) < 0.6 * shared(None)


def test_active_lines_are_told_apart():
    w = trained_like((300, 200))
    w[::2] *= 0.01
    numbers = at(w, 1e-2 * float((w**2).mean())).numbers
    found = lines.lines_of(jnp.asarray(numbers))
    assert int(found.exponents[0][1::2].min()) > int(found.exponents[0][::2].max())


def test_prices_are_code_lengths():
    rng = np.random.default_rng(0)
    numbers = rng.integers(-3, 4, (60, 50)).astype(np.int16)
    kinds = rng.integers(20, 40, (60, 50)).astype(np.int32)
    counts = lines.counts_of(jnp.asarray(numbers), jnp.asarray(kinds))
    assert int(counts.sum()) == numbers.size
    prices = np.asarray(lines.prices_of(counts))
    np.testing.assert_allclose(np.exp2(-prices.astype(np.float64)).sum(axis=1), 1, rtol=1e-3)
    seen = prices[30, lines.REACH - 3 : lines.REACH + 4]  # of about 150 numbers
    assert (np.abs(seen - np.log2(7)) < 1.2).all()
    assert (prices[30, : lines.REACH - 10] > 8).all()


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (7,), (2, 3, 2, 3, 2)])
def test_odd_shapes(shape: tuple[int, ...]):
    w = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    found = at(w, 1e-3)
    assert found.numbers.shape == shape
    np.testing.assert_allclose(found.numbers * found.step, w, atol=1)


def test_zeros_and_a_price_beyond_all_give_zeros():
    assert not at(np.zeros((30, 20), np.float32), 1e-3).numbers.any()
    assert not at(trained_like((30, 20)), 1e6).numbers.any()
