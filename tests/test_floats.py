"""Stored floats as they are written: to the bit, and short where they were rounded."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jpq_jax.artifact.floats import (
    MOST_STEPS,
    read_array,
    read_floats,
    rounded_bits,
    write_array,
    write_floats,
)
from jpq_jax.artifact.stream import Reader, Writer, write_signed

finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=12)


def round_trip(array: np.ndarray) -> float:
    """The bits that it takes."""
    writer = Writer()
    write_array(writer, array)
    bits = writer.bits
    reader = Reader(writer.finish())
    again = read_array(reader, array.shape)
    reader.finish()
    assert again.shape == array.shape
    np.testing.assert_array_equal(again.view(np.uint32), array.view(np.uint32))
    return bits


@given(st.lists(finite, max_size=40), st.booleans())
@settings(deadline=None)
def test_floats_come_back_and_short_ones_are_short(floats: list[float], short: bool):
    words = np.array(floats, np.float32).view(np.uint32)
    array = (words & 0xFFFF0000 if short else words).view(np.float32)
    writer = Writer()
    write_floats(writer, array)
    again = read_floats(Reader(writer.finish()), array.size)
    np.testing.assert_array_equal(again.view(np.uint32), array.view(np.uint32))
    if short:
        assert writer.bits <= 16 * array.size + 8


@settings(deadline=None)
@given(hnp.arrays(np.float32, shapes, elements=finite))
def test_any_finite_floats_come_back_to_the_bit(array: np.ndarray):
    round_trip(array)


@settings(deadline=None)
@given(
    hnp.arrays(np.float32, st.integers(0, 60), elements=finite),
    st.integers(1, 22),
)
def test_floats_of_few_digits_are_not_written_with_all(array: np.ndarray, cut: int):
    words = array.view(np.uint32) >> np.uint32(cut) << np.uint32(cut)
    rounded = words.view(np.float32)
    exponents = (rounded.view(np.uint32) >> 23) & 255
    present = exponents[words != 0]
    width = int(np.ptp(present)) if present.size else 0
    learned = (width + 2) / 2 * np.log2(array.size + 2) + array.size * np.log2(width + 2)
    assert round_trip(rounded) <= array.size * (1 + 23 - cut) + 1.5 * learned + 64


@settings(deadline=None)
@given(
    hnp.arrays(np.int16, shapes, elements=st.integers(-MOST_STEPS // 8, MOST_STEPS // 8)),
    st.floats(2.0**-100, 2.0**100, width=32).map(np.float32),
)
def test_multiples_of_a_step_come_back_to_the_bit(numbers: np.ndarray, step: np.float32):
    round_trip(numbers.astype(np.float32) * step)


def test_multiples_of_a_step_take_about_their_entropy():
    numbers = np.rint(np.random.default_rng(0).laplace(size=500) * 2) + 0.0
    counts = np.unique(numbers, return_counts=True)[1]
    entropy = float(counts @ np.log2(numbers.size / counts))
    assert round_trip(numbers.astype(np.float32) * np.float32(0.3)) <= 1.1 * entropy + 100


def test_zeros_and_equal_numbers_take_next_to_nothing():
    assert round_trip(np.zeros(10_000, np.float32)) <= 64
    assert round_trip(np.full(10_000, -1.0, np.float32)) <= 300
    assert round_trip(np.full(10_000, 0.1, np.float32)) <= 320


@pytest.mark.parametrize(
    "array",
    [
        np.array([np.nan, 1], np.float32),
        np.array([np.inf, 1], np.float32),
        np.zeros(300, np.float64),
        np.zeros(300, np.int32),
        np.zeros(0, np.float32),
    ],
)
def test_what_cannot_be_written_so(array: np.ndarray):
    assert math.isinf(rounded_bits(array))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_the_bits_of_rounded_floats(dtype: type):
    steps = np.rint(8 * np.random.default_rng(0).normal(size=300)) / 8
    bits = round_trip(steps.astype(np.float32))
    assert rounded_bits(steps.astype(dtype)) == pytest.approx(bits)
    assert bits < 300 * 9


@pytest.mark.parametrize(
    "numbers",
    [
        [2],
        [1, 0, 200, 55, 0, 0],
        [1, 0, 0, 24, 0, 0],
        [1, 0, 0, 0, 2, 0],
    ],
)
def test_what_no_writer_gives_is_refused(numbers: list[int]):
    writer = Writer()
    for number in numbers:
        writer.write_number(number)
    with pytest.raises(ValueError, match="floats of|multiples from|numbers of kind|expected"):
        read_array(Reader(writer.finish()), (3,))


@pytest.mark.parametrize("ends", [(1, 2), (-3, -1), (0, MOST_STEPS + 1)])
def test_multiples_that_no_writer_gives_are_refused(ends: tuple[int, int]):
    writer = Writer()
    writer.write_number(0)
    write_floats(writer, np.ones(1, np.float32))
    for end in ends:
        write_signed(writer, end)
    with pytest.raises(ValueError, match=f"multiples from {ends[0]} to {ends[1]}"):
        read_array(Reader(writer.finish()), (3,))
