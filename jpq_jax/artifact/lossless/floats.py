"""Floats <-> an entropy-coded stream, to the bit: exponents as their lines tend to have them, signs and digits as they are.

A float's scale is its exponent and the first digit of its mantissa: its half octave, as it were. It is coded relative to the scales of the
lines that the float lies on, one of each axis that is worth it. Digits below the last that any float of a run has are left out, so that
floats that were rounded to multiples of a power of two take what they need.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jpq_jax.artifact.activity import (
    Activity,
    read_activity,
    rows_and_columns,
    write_activity,
)
from jpq_jax.artifact.adaptive import DOUBLING, STEADY, SYMBOL, Learner
from jpq_jax.artifact.living import SLAB, Living, slabs
from jpq_jax.artifact.stream import Reader, Writer, read_raw, read_signed, write_raw, write_signed

RUNS = 256  # of floats that have a last digit of their own, about
_SAMPLE = 2**15
_LINE_BITS = 24.0  # about what an axis takes besides the entropy of its lines' scales
_WIDEST = 2**8 - 1  # of a line's scale, see `activity`
_SHORTEST = 4  # a line that is worth a scale of its own, in floats
_PRIOR = SYMBOL // 8
_NONE = np.iinfo(np.int64).max  # exponent of a last digit where there are none
_MANY = 2**12  # floats; below, a shorter file counts for more than time

Words = NDArray[np.unsignedinteger[Any]]


class Layout(NamedTuple):
    """Of a dtype.

    Attributes:
      word: an unsigned integer of its width.
      digits: of its mantissa.
    """

    word: np.dtype[Any]
    digits: int

    @property
    def sign(self) -> int:
        """The place of its highest bit."""
        return 8 * self.word.itemsize - 1


LAYOUTS = {
    "float16": Layout(np.dtype(np.uint16), 10),
    "bfloat16": Layout(np.dtype(np.uint16), 7),
    "float32": Layout(np.dtype(np.uint32), 23),
    "float64": Layout(np.dtype(np.uint64), 52),
}


class _Digits(NamedTuple):
    """Which digits are written.

    Attributes:
      most: after the first one.
      last: [runs] int64, exponent of the last, which no digit of the run lies below.
      run: floats in a run.
    """

    most: int
    last: NDArray[np.int64]
    run: int

    def kept(self, exponents: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many each float has."""
        last = self.last[0] if self.last.size == 1 else self.last[places // self.run]
        return np.clip(np.maximum(exponents, 1) - last, 0, self.most)


def write_floats_exactly(writer: Writer, words: Words, layout: Layout) -> None:
    """words: any shape, the floats' bits; not all of them zeros."""
    words = np.atleast_1d(words)
    digits, is_signed, has_negative_zero = _surveyed(words, layout)
    activity = _line_scales(words, layout, with_dead=not has_negative_zero)
    living = Living(words, activity)
    low, high = _range(living, activity, layout)
    writer.write_number(2 * is_signed + has_negative_zero)
    _write_digits(writer, digits)
    write_activity(writer, activity)
    write_signed(writer, low)
    writer.write_number(high - low)
    learner = _learner(high - low + 2, living)
    for (start, end), scales in zip(living.slabs(), _scales(living, activity), strict=True):
        found = living.get(start, end).astype(np.uint64)
        is_some = _is_nonzero(found, layout)
        half_octaves = _half_octaves(found, layout) - scales
        learner.write(writer, np.where(is_some, half_octaves - low + 1, 0))
        some = found[is_some]
        kept = digits.kept(_exponents(some, layout), living.places(start, end)[is_some])
        _write_rest(writer, some, kept, layout, is_signed=is_signed)
        if has_negative_zero:
            write_raw(writer, found[~is_some] >> np.uint64(layout.sign), 1)


def read_floats_exactly(reader: Reader, shape: tuple[int, ...], layout: Layout) -> Words:
    """Raises ValueError for what no writer gives."""
    words = np.zeros(shape or 1, layout.word)
    is_signed, has_negative_zero = divmod(reader.read_number(), 2)
    if is_signed > 1:
        raise ValueError("floats with more than signs")
    digits = _read_digits(reader, words.size, layout)
    activity = read_activity(reader, words.shape)
    living = Living(words, activity)
    low, width = read_signed(reader), reader.read_number()
    top = 2 ** (layout.sign - layout.digits + 1)
    if abs(low) > 2 * top or width > 3 * top:
        raise ValueError(f"floats of scales {low} to {low + width}, expected smaller ones")
    learner = _learner(width + 2, living)
    for (start, end), scales in zip(living.slabs(), _scales(living, activity), strict=True):
        symbols = learner.read(reader, scales.size).astype(np.int64)
        is_some = symbols > 0
        half_octaves = (symbols - 1 + low + scales)[is_some]
        if half_octaves.size and not 0 <= half_octaves.min() <= half_octaves.max() < top:
            raise ValueError("a float whose exponent its dtype lacks")
        exponents = half_octaves >> 1
        kept = digits.kept(exponents, living.places(start, end)[is_some])
        found = np.zeros(scales.size, np.uint64)
        rest = _read_rest(reader, kept, layout, is_signed=bool(is_signed))
        found[is_some] = (half_octaves.astype(np.uint64) << np.uint64(layout.digits - 1)) | rest
        if has_negative_zero:
            signs = read_raw(reader, int((~is_some).sum()), 1)
            found[~is_some] = signs << np.uint64(layout.sign)
        living.set(start, end, found.astype(layout.word))
    return words.reshape(shape)


def _is_nonzero(words: NDArray[np.uint64], layout: Layout) -> NDArray[np.bool_]:
    return (words & ~(np.uint64(1) << np.uint64(layout.sign))) != 0


def _exponents(words: NDArray[np.uint64], layout: Layout) -> NDArray[np.int64]:
    """The field of each, without the sign; 0 for subnormals."""
    return _half_octaves(words, layout) >> 1


def _half_octaves(words: NDArray[np.uint64], layout: Layout) -> NDArray[np.int64]:
    """Exponent and first digit."""
    size = words & ~(np.uint64(1) << np.uint64(layout.sign))
    return (size >> np.uint64(layout.digits - 1)).astype(np.int64)


def _write_rest(
    writer: Writer,
    words: NDArray[np.uint64],
    kept: NDArray[np.int64],
    layout: Layout,
    *,
    is_signed: bool,
) -> None:
    """Digits from the second on, after the sign."""
    more = np.maximum(kept - 1, 0)
    for count in np.unique(more).tolist():
        mine = words[more == count]
        rest = (mine >> np.uint64(layout.digits - 1 - count)) & np.uint64(2**count - 1)
        if is_signed:
            rest |= (mine >> np.uint64(layout.sign)) << np.uint64(count)
        write_raw(writer, rest, count + is_signed)


def _read_rest(
    reader: Reader, kept: NDArray[np.int64], layout: Layout, *, is_signed: bool
) -> NDArray[np.uint64]:
    """Their bits in the words."""
    more = np.maximum(kept - 1, 0)
    found = np.zeros(kept.size, np.uint64)
    for count in np.unique(more).tolist():
        mine = more == count
        rest = read_raw(reader, int(mine.sum()), count + is_signed)
        sign = rest >> np.uint64(count)
        below = rest & np.uint64(2**count - 1)
        found[mine] = sign << np.uint64(layout.sign) | below << np.uint64(layout.digits - 1 - count)
    return found


class _Survey(NamedTuple):
    """Attributes:
    digits: what is to be written of each float.
    is_signed: whether one that is not 0 is negative.
    has_negative_zero: whether a zero is.
    """

    digits: _Digits
    is_signed: bool
    has_negative_zero: bool


def _surveyed(words: Words, layout: Layout) -> _Survey:
    flat = words.reshape(-1)
    run = run_length(flat.size)
    most, is_signed, has_negative_zero = 0, False, False
    last = np.full(-(-flat.size // run), _NONE)
    step = max(SLAB // run, 1) * run
    for at in range(0, flat.size, step):
        part = flat[at : at + step].astype(np.uint64)
        sign = (part >> np.uint64(layout.sign)).astype(bool)
        is_some = _is_nonzero(part, layout)
        after = _digits_after_first(part, layout)
        ends = np.where(is_some, np.maximum(_exponents(part, layout), 1) - after, _NONE)
        found = np.minimum.reduceat(ends, np.arange(0, ends.size, run))
        last[at // run : at // run + found.size] = found
        most = max(most, int(after[is_some].max(initial=0)))
        is_signed |= bool((sign & is_some).any())
        has_negative_zero |= bool((sign & ~is_some).any())
    last = np.where(last == _NONE, last.min(), last)
    digits = _shorter(_Digits(most, last, run), flat, layout)
    return _Survey(digits, is_signed, has_negative_zero)


def _shorter(by_run: _Digits, flat: Words, layout: Layout) -> _Digits:
    """By run, as is worth it of floats that were rounded, or with one last digit for all; by a sample."""
    for_all = by_run._replace(last=by_run.last.min(keepdims=True))
    places = _sampled(flat.size)
    exponents = _exponents(flat[places].astype(np.uint64), layout)
    saved = (for_all.kept(exponents, places) - by_run.kept(exponents, places)).sum()
    steps = np.diff(by_run.last, prepend=by_run.last.min())
    costs = entropy_bits(steps) + _LINE_BITS
    return by_run if saved * (flat.size / places.size) > costs else for_all


def _sampled(size: int) -> NDArray[np.int64]:
    return np.arange(0, size, max(size // _SAMPLE, 1))


def run_length(size: int) -> int:
    """Floats in a run, of an array of that size: there are at most `RUNS` of them."""
    return 1 << max((size - 1) // RUNS, 0).bit_length()


def _digits_after_first(words: NDArray[np.uint64], layout: Layout) -> NDArray[np.int64]:
    """Up to the last that is not 0."""
    mantissa = (words & np.uint64(2**layout.digits - 1)) | np.uint64(1 << layout.digits)
    lowest = mantissa & (~mantissa + np.uint64(1))
    return layout.digits - np.log2(lowest.astype(np.float64)).astype(np.int64)


def _write_digits(writer: Writer, digits: _Digits) -> None:
    writer.write_number(digits.most)
    writer.write_number(int(digits.last.size > 1))
    low = int(digits.last.min())
    write_signed(writer, low)
    if digits.last.size > 1:
        steps = np.diff(digits.last, prepend=low)
        apart = int(digits.last.max()) - low
        writer.write_number(apart)
        Learner(np.full(2 * apart + 1, _PRIOR)).write(writer, steps + apart)


def _read_digits(reader: Reader, size: int, layout: Layout) -> _Digits:
    most, by_run, low = reader.read_number(), reader.read_number(), read_signed(reader)
    reach = 2 ** (layout.sign - layout.digits) + layout.digits
    if most > layout.digits or by_run > 1 or abs(low) > reach:
        raise ValueError(f"floats of {most} digits from {low} on")
    run = run_length(size)
    if not by_run:
        return _Digits(most, np.array([low], np.int64), run)
    apart = reader.read_number()
    if apart > reach:
        raise ValueError(f"runs whose digits end {apart} apart")
    steps = Learner(np.full(2 * apart + 1, _PRIOR)).read(reader, -(-size // run))
    return _Digits(most, low + np.cumsum(steps.astype(np.int64) - apart), run)


def _line_scales(words: Words, layout: Layout, *, with_dead: bool) -> Activity:
    """The mean half octave of each line against that of all, of the axes for which that makes the code shorter.

    with_dead: whether lines of zeros need no code; not where zeros have signs.
    """
    sums, counts = _sums_of_scales(words, layout)
    total, number = sums[0].sum(), max(counts[0].sum(), 1)
    lines = []
    for sum_, count in zip(sums, counts, strict=True):
        mean = sum_ / np.maximum(count, 1) - total / number
        lines.append(np.clip(np.rint(mean), -_WIDEST, _WIDEST).astype(np.int32))
    chosen = _chosen_axes(words, layout, lines, counts)
    alive = [
        (count > 0) if axis in chosen and with_dead else np.ones(count.size, bool)
        for axis, count in enumerate(counts)
    ]
    told = tuple(line if axis in chosen else None for axis, line in enumerate(lines))
    return Activity(0, told, tuple(alive))


def _sums_of_scales(
    words: Words, layout: Layout
) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """Over the lines of each axis: of the half octaves of what is not 0, and how many these are."""
    shape = words.shape
    matrix = words.reshape(-1, shape[-1])
    rows, columns = matrix.shape
    of_rows = np.zeros((2, rows), np.int64)
    of_columns = np.zeros((2, columns), np.int64)
    for start, end in slabs(rows, columns):
        part = matrix[start:end].astype(np.uint64)
        some = _is_nonzero(part, layout)
        scales = np.where(some, _half_octaves(part, layout), 0)
        of_rows[:, start:end] = scales.sum(axis=1), some.sum(axis=1)
        of_columns += scales.sum(axis=0), some.sum(axis=0)
    leading = of_rows.reshape(2, *shape[:-1])
    axes = range(1, leading.ndim)
    sums = [leading.sum(axis=tuple(a for a in axes if a != axis)) for axis in axes]
    pairs = [*sums, of_columns]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _chosen_axes(
    words: Words,
    layout: Layout,
    lines: list[NDArray[np.int32]],
    counts: list[NDArray[np.int64]],
) -> tuple[int, ...]:
    """One by one, as long as the code gets shorter, by a sample."""
    flat = words.reshape(-1)
    places = _sampled(flat.size)
    some = flat[places].astype(np.uint64)
    is_some = _is_nonzero(some, layout)
    index = np.unravel_index(places[is_some], words.shape)
    scales, each = _half_octaves(some[is_some], layout), flat.size / max(places.size, 1)
    left = {
        axis: entropy_bits(line[count > 0]) + _LINE_BITS
        for axis, (line, count) in enumerate(zip(lines, counts, strict=True))
        if line.size > 1 and flat.size >= _SHORTEST * line.size
    }
    best, chosen = each * entropy_bits(scales), []
    while left:
        tried = {axis: each * entropy_bits(scales - lines[axis][index[axis]]) for axis in left}
        axis = min(left, key=lambda axis: tried[axis] + left[axis])
        if tried[axis] + left[axis] >= best:
            break
        best, scales = tried[axis], scales - lines[axis][index[axis]]
        chosen.append(axis)
        del left[axis]
    return tuple(chosen)


def entropy_bits(symbols: NDArray[np.integer]) -> float:
    """What they take by their own frequencies, and to learn these (Rissanen, 1984)."""
    if not symbols.size:
        return 0.0
    counts = np.bincount(symbols - symbols.min())
    counts = counts[counts > 0]
    return float(counts @ np.log2(symbols.size / counts) + counts.size / 2 * np.log2(symbols.size))


def _scales(living: Living, activity: Activity) -> Iterator[NDArray[np.int64]]:
    """Of each slab, what the lines say of each element's half octave."""
    rows, columns = rows_and_columns(activity)
    for start, end in living.slabs():
        yield (rows[start:end, None] + columns[None, :]).ravel().astype(np.int64)


def _range(living: Living, activity: Activity, layout: Layout) -> tuple[int, int]:
    """Of the half octaves against what the lines say of them."""
    low, high = np.iinfo(np.int64).max, np.iinfo(np.int64).min
    for (start, end), scales in zip(living.slabs(), _scales(living, activity), strict=True):
        found = living.get(start, end).astype(np.uint64)
        relative = (_half_octaves(found, layout) - scales)[_is_nonzero(found, layout)]
        low, high = min(low, int(relative.min(initial=low))), max(high, int(relative.max(initial=high)))
    return low, high


def _learner(symbols: int, living: Living) -> Learner:
    is_many = living.rows.size * living.columns.size >= _MANY
    return Learner(np.full(symbols, _PRIOR), DOUBLING if is_many else STEADY)
