"""Floats <-> an entropy-coded stream, to the bit: exponents as their lines tend to have them, signs and digits as they are.

A float's scale is its exponent and the first digit of its mantissa: its half octave. It is coded relative to the scales of the lines that
the float lies on, one of each axis that is worth it. Digits below the last that any float of a run has are left out, so that floats
that were rounded to multiples of a power of two take what they need.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jpq_jax.artifact.activity import Activity, read_activity, rows_and_columns, write_activity
from jpq_jax.artifact.adaptive import DOUBLING, STEADY, SYMBOL, Learner
from jpq_jax.artifact.living import Living
from jpq_jax.artifact.lossless.fields import (
    Fields,
    Layout,
    Words,
    fields_of,
    is_nonzero,
    words_of,
)
from jpq_jax.artifact.lossless.line_scales import SLAB, entropy_bits, line_scales_of, sampled
from jpq_jax.artifact.stream import Reader, Writer, read_raw, read_signed, write_raw, write_signed

RUNS = 256  # of floats that have a last digit of their own, at most
_RUN_BITS = 24.0  # about what they take besides their entropy
_PRIOR = SYMBOL // 8
_NONE = np.iinfo(np.int64).max  # exponent of a last digit where there are none
_MANY = 2**12  # floats; below, a shorter file counts for more than time


class Digits(NamedTuple):
    """Which are written.

    Attributes:
      most: after a float's first one.
      last: [runs] int64, exponent of the last, which no digit of the run lies below; or one for all.
      run: floats in a run.
    """

    most: int
    last: NDArray[np.int64]
    run: int

    def kept(self, exponents: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many each float has."""
        last = self.last[0] if self.last.size == 1 else self.last[places // self.run]
        return np.clip(exponents - last, 0, self.most)


class _Survey(NamedTuple):
    """Attributes:
    digits: what is to be written of each float.
    is_signed: whether one that is not 0 is negative.
    has_negative_zero: whether a zero is.
    """

    digits: Digits
    is_signed: bool
    has_negative_zero: bool


def write_floats_exactly(writer: Writer, words: Words, layout: Layout) -> None:
    """words: any shape, the floats' bits; not all of them zeros."""
    words = np.atleast_1d(words)
    digits, is_signed, has_negative_zero = _surveyed(words, layout)
    activity = line_scales_of(words, layout, with_dead=not has_negative_zero)
    living = Living(words, activity)
    low, high = _range(living, activity, layout)
    writer.write_number(2 * is_signed + has_negative_zero)
    _write_digits(writer, digits)
    write_activity(writer, activity)
    write_signed(writer, low)
    writer.write_number(high - low)
    learner = _learner(high - low + 2, living)
    for (start, end), scales in zip(living.slabs(SLAB), _scales(living, activity), strict=True):
        found = living.get(start, end).astype(np.uint64)
        some = np.flatnonzero(is_nonzero(found, layout))
        fields = fields_of(found[some], layout)
        symbols = np.zeros(found.size, np.int64)
        symbols[some] = fields.half_octaves(layout) - scales[some] - low + 1
        learner.write(writer, symbols)
        kept = digits.kept(fields.exponents, living.places(start, end)[some])
        _write_rest(writer, fields, kept, layout, is_signed=is_signed)
        if has_negative_zero:
            write_raw(writer, found[symbols == 0] >> np.uint64(layout.sign), 1)


def read_floats_exactly(reader: Reader, shape: tuple[int, ...], layout: Layout) -> Words:
    """Raises ValueError for what no writer gives."""
    words = np.zeros(shape or 1, layout.word)
    is_signed, has_negative_zero = divmod(reader.read_number(), 2)
    if is_signed > 1:
        raise ValueError("floats with more than signs")
    digits = _read_digits(reader, words.size, layout)
    activity = read_activity(reader, words.shape)
    living = Living(words, activity)
    top = 2 * (layout.exponents + layout.digits)
    low, width = read_signed(reader), reader.read_number()
    if abs(low) > 2 * top or width > 4 * top:
        raise ValueError(f"floats of scales {low} to {low + width}, expected smaller ones")
    learner = _learner(width + 2, living)
    for (start, end), scales in zip(living.slabs(SLAB), _scales(living, activity), strict=True):
        symbols = learner.read(reader, scales.size).astype(np.int64)
        some = np.flatnonzero(symbols)
        half_octaves = symbols[some] - 1 + low + scales[some]
        if some.size and not 2 <= half_octaves.min() <= half_octaves.max() < top:
            raise ValueError("a float whose exponent its dtype lacks")
        exponents = (half_octaves >> 1) - layout.digits
        kept = digits.kept(exponents, living.places(start, end)[some])
        signs, rest = _read_rest(reader, kept, layout, is_signed=bool(is_signed))
        first = (half_octaves & 1).astype(np.uint64) << np.uint64(layout.digits - 1)
        found = np.zeros(scales.size, np.uint64)
        found[some] = words_of(Fields(signs, exponents, first | rest), layout)
        if has_negative_zero:
            zeros = symbols == 0
            found[zeros] = read_raw(reader, int(zeros.sum()), 1) << np.uint64(layout.sign)
        living.set(start, end, found.astype(layout.word))
    return words.reshape(shape)


def run_length(size: int) -> int:
    """Floats in a run, of an array of that size."""
    return 1 << max((size - 1) // RUNS, 0).bit_length()


def _write_rest(
    writer: Writer, fields: Fields, kept: NDArray[np.int64], layout: Layout, *, is_signed: bool
) -> None:
    """Signs, and digits from the second on: floats with as many digits together."""
    for count, mine in _by_count(kept):
        below = fields.mantissas[mine] >> np.uint64(layout.digits - 1 - count)
        rest = below & np.uint64(2**count - 1)
        if is_signed:
            rest |= fields.signs[mine] << np.uint64(count)
        write_raw(writer, rest, count + is_signed)


def _read_rest(
    reader: Reader, kept: NDArray[np.int64], layout: Layout, *, is_signed: bool
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Signs, and mantissas without their first digit."""
    signs, mantissas = np.zeros((2, kept.size), np.uint64)
    for count, mine in _by_count(kept):
        rest = read_raw(reader, mine.size, count + is_signed)
        signs[mine] = rest >> np.uint64(count)
        below = rest & np.uint64(2**count - 1)
        mantissas[mine] = below << np.uint64(layout.digits - 1 - count)
    return signs, mantissas


def _by_count(kept: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """How many digits there are after the first that is kept, and the floats that have as many, in order."""
    more = np.maximum(kept - 1, 0).astype(np.uint8)
    order = np.argsort(more, kind="stable")  # which is a radix sort
    bounds = np.append(0, np.cumsum(np.bincount(more)))
    for count, (start, end) in enumerate(pairwise(bounds.tolist())):
        if end > start:
            yield count, order[start:end]


def _surveyed(words: Words, layout: Layout) -> _Survey:
    flat = words.reshape(-1)
    run = run_length(flat.size)
    most, is_signed, has_negative_zero = 0, False, False
    last = np.full(-(-flat.size // run), _NONE)
    step = max(SLAB // run, 1) * run
    for at in range(0, flat.size, step):
        part = flat[at : at + step].astype(np.uint64)
        is_some = is_nonzero(part, layout)
        fields = fields_of(part, layout)
        after = fields.digits(layout)
        ends = np.where(is_some, fields.exponents - after, _NONE)
        found = np.minimum.reduceat(ends, np.arange(0, ends.size, run))
        last[at // run : at // run + found.size] = found
        most = max(most, int(after[is_some].max(initial=0)))
        is_signed |= bool(fields.signs[is_some].any())
        has_negative_zero |= bool(fields.signs[~is_some].any())
    last = np.where(last == _NONE, last.min(), last)
    digits = _shorter(Digits(most, last, run), flat, layout)
    return _Survey(digits, is_signed, has_negative_zero)


def _shorter(by_run: Digits, flat: Words, layout: Layout) -> Digits:
    """By run, as is worth it of floats that were rounded, or with one last digit for all; by a sample."""
    for_all = by_run._replace(last=by_run.last.min(keepdims=True))
    places = sampled(flat.size)
    exponents = fields_of(flat[places].astype(np.uint64), layout).exponents
    saved = (for_all.kept(exponents, places) - by_run.kept(exponents, places)).sum()
    costs = entropy_bits(np.diff(by_run.last, prepend=by_run.last.min())) + _RUN_BITS
    return by_run if saved * (flat.size / places.size) > costs else for_all


def _write_digits(writer: Writer, digits: Digits) -> None:
    writer.write_number(digits.most)
    writer.write_number(int(digits.last.size > 1))
    low = int(digits.last.min())
    write_signed(writer, low)
    if digits.last.size > 1:
        steps = np.diff(digits.last, prepend=low)
        apart = int(digits.last.max()) - low
        writer.write_number(apart)
        Learner(np.full(2 * apart + 1, _PRIOR)).write(writer, steps + apart)


def _read_digits(reader: Reader, size: int, layout: Layout) -> Digits:
    most, by_run, low = reader.read_number(), reader.read_number(), read_signed(reader)
    reach = layout.exponents + 2 * layout.digits
    if most > layout.digits or by_run > 1 or abs(low) > reach:
        raise ValueError(f"floats of {most} digits from {low} on")
    run = run_length(size)
    if not by_run:
        return Digits(most, np.array([low], np.int64), run)
    apart = reader.read_number()
    if apart > 2 * reach:
        raise ValueError(f"runs whose digits end {apart} apart")
    steps = Learner(np.full(2 * apart + 1, _PRIOR)).read(reader, -(-size // run))
    return Digits(most, low + np.cumsum(steps.astype(np.int64) - apart), run)


def _scales(living: Living, activity: Activity) -> Iterator[NDArray[np.int64]]:
    """Of each slab, what the lines say of each element's half octave."""
    rows, columns = rows_and_columns(activity)
    for start, end in living.slabs(SLAB):
        yield (rows[start:end, None] + columns[None, :]).ravel().astype(np.int64)


def _range(living: Living, activity: Activity, layout: Layout) -> tuple[int, int]:
    """Of the half octaves against what the lines say of them."""
    low, high = np.iinfo(np.int64).max, np.iinfo(np.int64).min
    for (start, end), scales in zip(living.slabs(SLAB), _scales(living, activity), strict=True):
        found = living.get(start, end).astype(np.uint64)
        some = np.flatnonzero(is_nonzero(found, layout))
        relative = fields_of(found[some], layout).half_octaves(layout) - scales[some]
        low = min(low, int(relative.min(initial=low)))
        high = max(high, int(relative.max(initial=high)))
    return low, high


def _learner(symbols: int, living: Living) -> Learner:
    is_many = living.rows.size * living.columns.size >= _MANY
    return Learner(np.full(symbols, _PRIOR), DOUBLING if is_many else STEADY)
