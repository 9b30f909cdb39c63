"""Codebooks as they are written: to the bit, and as multiples of a step where they are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jpq_jax.artifact.stream import Reader, Writer
from jpq_jax.artifact.values import read_values, values_of, write_values
from jpq_jax.vocabulary import LEVELS


def codebook_of(values: np.ndarray) -> np.ndarray:
    codebook = np.zeros(LEVELS, np.float32)
    codebook[1 : 1 + len(values)] = values
    return codebook


def round_trip(values: np.ndarray, greatest: int = 0) -> tuple[np.float32 | None, float]:
    """The step, and the bits."""
    found = values_of(codebook_of(values), greatest)
    assert (np.diff(np.delete(found.numbers, 0)) > 0).all()
    writer = Writer()
    write_values(writer, found)
    reader = Reader(writer.finish())
    again = read_values(reader)
    reader.finish()
    np.testing.assert_array_equal(again.codebook.view(np.uint32), found.codebook.view(np.uint32))
    np.testing.assert_array_equal(again.numbers, found.numbers)
    return found.step, writer.bits


finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


@settings(deadline=None)
@given(st.lists(finite.filter(bool), max_size=LEVELS - 1, unique=True), st.integers(0, LEVELS - 1))
def test_any_values_come_back_to_the_bit(values: list[float], greatest: int):
    round_trip(np.sort(np.array(values, np.float32)), greatest)


@settings(deadline=None)
@given(
    st.sets(st.integers(-250, 250).filter(bool), min_size=2, max_size=LEVELS - 1),
    st.floats(2.0**-100, 2.0**100, width=32),
)
def test_multiples_of_a_step_come_back_to_the_bit(multiples: set[int], step: float):
    numbers = np.sort(np.array(list(multiples | {1})))[: LEVELS - 1]
    found, bits = round_trip(numbers.astype(np.float32) * np.float32(step))
    assert found is not None
    assert bits <= 32 + 2 * (abs(numbers).max() + 20)


@pytest.mark.parametrize(
    "values",
    [[], [1.0], [-0.5, 0.5], [1.0, 0.0, 3.0], [1.0, -0.0], [-1.0, 0.0, 2.0], [1e-45, 1e38]],
)
def test_odd_codebooks_come_back(values: list[float]):
    round_trip(np.array(values, np.float32))


def test_opposite_values_are_written_once():
    _, two = round_trip(np.array([-0.3, 0.3], np.float32))
    _, one = round_trip(np.array([0.3], np.float32))
    assert two <= one + 12
