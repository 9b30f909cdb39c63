"""Entropy-coded streams against Python's integers; tables that are learned."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jpq_jax.artifact.adaptive import SYMBOL, Learner
from jpq_jax.artifact.stream import TOTAL, Reader, Writer, read_signed, table_of, write_signed

tables = st.lists(st.integers(0, 2**38 // 40), min_size=1, max_size=40).filter(any)


@given(tables)
def test_tables_are_whole_and_exact(weights: list[int]):
    table = table_of(np.array(weights, np.int64)).beyond + 1
    assert table.sum() == TOTAL
    assert table.min() >= 1
    ideal = np.array(weights) / sum(weights) * TOTAL
    np.testing.assert_allclose(table, ideal, atol=len(weights) + 1)


@settings(deadline=None)
@given(st.lists(st.tuples(tables, st.integers(0, 60), st.integers(0, 2**31)), max_size=8))
def test_a_stream_gives_back_what_was_written(parts: list[tuple[list[int], int, int]]):
    written = [
        (np.random.default_rng(seed).integers(0, len(weights), count), table_of(np.array(weights)))
        for weights, count, seed in parts
    ]
    writer = Writer()
    for symbols, table in written:
        writer.write(symbols, table)
    bits = writer.bits
    data = writer.finish()
    assert len(data) <= bits / 8 + 8
    reader = Reader(data)
    for symbols, table in written:
        np.testing.assert_array_equal(reader.read(symbols.size, table), symbols)
    reader.finish()


def reference_bytes(parts: list[tuple[np.ndarray, np.ndarray]]) -> bytes:
    """The coder as docs/format.md describes it, in Python's integers: nothing can be rounded."""
    state, words = 0, []
    for symbols, table in reversed(parts):
        frequency, below = table.tolist(), [0, *np.cumsum(table).tolist()]
        for symbol in reversed(symbols.tolist()):
            if state >> 40 >= frequency[symbol]:
                words.append(state & 0xFFFFFFFF)
                state >>= 32
            turns, rest = divmod(state, frequency[symbol])
            state = (turns << 24) + below[symbol] + rest
    while state:
        words.append(state & 0xFFFFFFFF)
        state >>= 32
    return np.array(words, "<u4").tobytes().rstrip(b"\0")


@pytest.mark.parametrize("seed", range(20))
def test_the_coder_uses_exactly_the_integer_frequencies(seed: int):
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(3):
        weights = rng.random(int(rng.integers(2, 300))) ** rng.integers(1, 30)
        table = table_of((weights * 2**30).astype(np.int64))
        parts.append((rng.choice(table.size, 1000, p=weights / weights.sum()), table))
    writer = Writer()
    for symbols, table in parts:
        writer.write(symbols, table)
    frequencies = [(symbols, table.beyond + 1) for symbols, table in parts]
    assert writer.finish() == reference_bytes(frequencies)


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 40), max_size=30))
def test_numbers_come_back(numbers: list[int]):
    writer = Writer()
    for number in numbers:
        writer.write_number(number)
    reader = Reader(writer.finish())
    assert [reader.read_number() for _ in numbers] == numbers
    reader.finish()


@settings(deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-40, 40), max_size=30))
def test_signed_numbers_come_back(numbers: list[int]):
    writer = Writer()
    for number in numbers:
        write_signed(writer, number)
    reader = Reader(writer.finish())
    assert [read_signed(reader) for _ in numbers] == numbers


def test_small_numbers_are_short():
    writer = Writer()
    for number in range(4):
        writer.write_number(number)
    assert writer.bits <= 14


def test_a_number_too_long_is_refused():
    with pytest.raises(ValueError, match="expected at most 64 bits"):
        Writer().write_number(2**64)


@settings(deadline=None)
@given(tables, st.lists(st.integers(0, 39), max_size=60))
def test_the_length_is_that_of_the_frequencies(weights: list[int], symbols: list[int]):
    table, own = table_of(np.array(weights, np.int64)), [s % len(weights) for s in symbols]
    writer = Writer()
    writer.write(np.array(own, np.int64), table)
    expected = sum(24 - np.log2(table.beyond[symbol] + 1) for symbol in own)
    assert writer.bits == pytest.approx(expected, abs=1e-9)
    assert writer.bits == pytest.approx(expected, abs=1e-9)  # asked for twice


def test_a_copy_of_a_reader_goes_on_by_itself():
    writer = Writer()
    for number in (7, 300, 70_000):
        writer.write_number(number)
    reader = Reader(writer.finish())
    assert reader.read_number() == 7
    other = reader.copy()
    assert [reader.read_number() for _ in range(2)] == [300, 70_000]
    assert [other.read_number() for _ in range(2)] == [300, 70_000]
    other.finish()


def test_what_was_not_read_is_noticed():
    writer = Writer()
    writer.write_number(1000)
    data = writer.finish()
    with pytest.raises(ValueError, match="more than was read"):
        Reader(data).finish()
    with pytest.raises(ValueError, match="zero byte"):
        Reader(data + b"\0")


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 4), max_size=200), max_size=5))
def test_a_learner_gives_back_what_was_written(runs: list[list[int]]):
    prior = np.full(5, SYMBOL // 2)
    writer, learner = Writer(), Learner(prior)
    for run in runs:
        learner.write(writer, np.array(run, np.int64))
    reader, again = Reader(writer.finish()), Learner(prior)
    assert [again.read(reader, len(run)).tolist() for run in runs] == runs
    reader.finish()


@pytest.mark.parametrize("p", [0.5, 0.1, 0.01, 1e-4, 0.0])
def test_a_learner_takes_the_entropy_and_little_more(p: float):
    rng = np.random.default_rng(0)
    symbols = (rng.random(100_000) < p).astype(np.int64)
    writer = Writer()
    Learner(np.full(2, SYMBOL // 2)).write(writer, symbols)
    share = symbols.mean()
    entropy = sum(-q * np.log2(q) for q in (share, 1 - share) if q) * symbols.size
    # Half a log2 n is what any code takes to learn p; runs, in place of symbols, at most as much again.
    assert entropy - 1e-3 <= writer.bits <= entropy + np.log2(symbols.size) + 4
