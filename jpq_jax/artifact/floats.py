"""Floats <-> an entropy-coded stream: to the bit, and short where they are multiples of a step, or of few binary digits.

A leaf that is stored and not compressed, such as a bias, is written so if it gets shorter; what makes it short is to have been rounded.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jpq_jax.artifact.adaptive import undecided
from jpq_jax.artifact.numbers import read_numbers, write_numbers
from jpq_jax.artifact.stream import Reader, Writer, read_signed, uniform, write_signed

MOST_STEPS = 2**11  # from 0 to a multiple
HELD = ("float32", "bfloat16", "float16")  # dtypes whose numbers float32 holds

PARTS = 8  # steps in the smallest gap between two multiples, at most
_ULPS = 8  # of a step that is only known by its multiples
_FLOAT = np.dtype("<f4")
_HALF = 2  # bytes that bfloat16 leaves out, the low ones
_BYTE = uniform(256)
_DIGITS = 23  # binary ones of a float32 after the first
_TOP = 255  # exponent field of what is not finite
_AT_A_TIME = 8  # digits
_MULTIPLES, _ROUNDED = 0, 1

Floats = NDArray[np.float32]


class Multiples(NamedTuple):
    """Attributes:
    step: all floats are whole multiples of it, in float32's arithmetic.
    numbers: int64, which.
    """

    step: np.float32
    numbers: NDArray[np.int64]


def write_floats(writer: Writer, floats: Floats) -> None:
    """Those that bfloat16 holds take 16 bits each, if all do; else 32."""
    data = np.ascontiguousarray(floats, _FLOAT).reshape(-1, 1).view(np.uint8)
    first = 0 if data[:, :_HALF].any() else _HALF
    writer.write_number(first)
    writer.write(data[:, first:].ravel(), _BYTE)


def read_floats(reader: Reader, count: int) -> Floats:
    first = reader.read_number()
    if first not in (0, _HALF):
        raise ValueError(f"floats from byte {first} on, expected 0 or {_HALF}")
    data = np.zeros((count, _FLOAT.itemsize), np.uint8)
    data[:, first:] = reader.read(data[:, first:].size, _BYTE).reshape(data[:, first:].shape)
    return data.view(_FLOAT)[:, 0].astype(np.float32)


def rounded_bits(array: NDArray[Any]) -> float:
    """What `write_array` takes; infinite for what it cannot write."""
    if array.dtype.name not in HELD or not array.size:
        return math.inf
    floats = array.astype(np.float32)
    return _shorter(floats).bits if np.isfinite(floats).all() else math.inf


def write_array(writer: Writer, floats: Floats) -> None:
    """Finite ones of any shape, in the shorter of two ways."""
    writer.extend(_shorter(floats))


def _shorter(floats: Floats) -> Writer:
    rounded = Writer()
    rounded.write_number(_ROUNDED)
    _write_rounded(rounded, floats)
    multiples = multiples_in(floats)
    if multiples is None:
        return rounded
    whole = Writer()
    whole.write_number(_MULTIPLES)
    _write_multiples(whole, multiples)
    return min(rounded, whole, key=lambda writer: writer.bits)


def read_array(reader: Reader, shape: tuple[int, ...]) -> Floats:
    """Raises ValueError for what no writer gives."""
    kind = reader.read_number()
    if kind not in (_MULTIPLES, _ROUNDED):
        raise ValueError(f"floats of kind {kind}, expected {_MULTIPLES} or {_ROUNDED}")
    return _read_multiples(reader, shape) if kind == _MULTIPLES else _read_rounded(reader, shape)


def multiples_in(floats: Floats) -> Multiples | None:
    """None if no step is found, or one of them is a negative zero."""
    if ((floats == 0) & np.signbit(floats)).any():
        return None
    distinct = np.unique(floats[floats != 0])
    found = multiples_of(distinct)
    if found is None:
        return None
    numbers = np.zeros(floats.shape, np.int64)
    numbers[floats != 0] = found.numbers[np.searchsorted(distinct, floats[floats != 0])]
    return Multiples(found.step, numbers)


def multiples_of(values: Floats) -> Multiples | None:
    """The same for ascending, distinct values, of which none may be 0."""
    wide = values.astype(np.float64)
    if not values.size or (values == 0).any() or (np.diff(wide) <= 0).any():
        return None
    gap = min(np.abs(wide).min(), np.diff(wide).min(initial=np.inf))
    for parts in range(1, PARTS + 1):  # steps in the smallest gap
        multiples = np.rint(wide * (parts / gap))
        if np.abs(multiples).max() > MOST_STEPS:
            return None
        step = _exact_step(values, multiples)
        if step is not None:
            return Multiples(step, multiples.astype(np.int64))
    return None


def _exact_step(values: Floats, multiples: NDArray[np.float64]) -> np.float32 | None:
    outermost = np.abs(values).argmax()
    near = np.float32(values[outermost] / multiples[outermost])
    candidates = (near.view(np.int32) + np.arange(-_ULPS, _ULPS + 1, dtype=np.int32)).view(
        np.float32
    )
    candidates = candidates[np.argsort(_digits_each(candidates), kind="stable")]
    with np.errstate(over="ignore", invalid="ignore"):
        products = multiples.astype(np.float32)[:, None] * candidates
    exact = np.flatnonzero((products == values[:, None]).all(axis=0))
    return np.float32(candidates[exact[0]]) if exact.size else None


def _write_multiples(writer: Writer, multiples: Multiples) -> None:
    write_floats(writer, np.array([multiples.step]))
    low, high = int(multiples.numbers.min(initial=0)), int(multiples.numbers.max(initial=0))
    write_signed(writer, low)
    write_signed(writer, high)
    write_numbers(writer, multiples.numbers.astype(np.int16), low, high)


def _read_multiples(reader: Reader, shape: tuple[int, ...]) -> Floats:
    step = read_floats(reader, 1)[0]
    low, high = read_signed(reader), read_signed(reader)
    if not -MOST_STEPS <= low <= 0 <= high <= MOST_STEPS:
        raise ValueError(f"multiples from {low} to {high}, expected up to {MOST_STEPS} steps")
    numbers = read_numbers(reader, shape, low, high)
    with np.errstate(over="ignore", invalid="ignore"):
        return numbers.astype(np.float32) * step


def _write_rounded(writer: Writer, floats: Floats) -> None:
    """Exponents, as they tend to be; signs and digits as they are."""
    fields = _fields(floats.ravel())
    is_some = fields.any(axis=0)
    sign, exponent, mantissa = fields[:, is_some]
    low, high = (int(exponent.min()), int(exponent.max())) if exponent.size else (0, 0)
    digits = _digits_of(floats)
    for number in (low, high - low, digits, int(sign.any())):
        writer.write_number(number)
    symbols = np.zeros(is_some.size, np.int64)
    symbols[is_some] = 1 + exponent - low
    undecided(high - low + 2).write(writer, symbols)
    if sign.any():
        writer.write(sign, uniform(2))
    for shift, width in _parts(digits):
        writer.write(mantissa >> shift & (2**width - 1), uniform(2**width))


def _read_rounded(reader: Reader, shape: tuple[int, ...]) -> Floats:
    low, width, digits, signed = (reader.read_number() for _ in range(4))
    if not (low + width < _TOP and digits <= _DIGITS and signed <= 1):
        raise ValueError(
            f"floats of exponents {low} to {low + width} and {digits} digits, signed {signed}"
        )
    bits = np.zeros(shape, np.uint32)
    symbols = undecided(width + 2).read(reader, bits.size)
    some = symbols[symbols > 0].astype(np.uint32)
    sign = reader.read(some.size, uniform(2)).astype(np.uint32) if signed else np.uint32(0)
    found = sign << np.uint32(31) | (some - np.uint32(1) + np.uint32(low)) << np.uint32(_DIGITS)
    for shift, part in _parts(digits):
        found |= reader.read(some.size, uniform(2**part)).astype(np.uint32) << np.uint32(shift)
    bits[(symbols > 0).reshape(shape)] = found
    return bits.view(np.float32)


def _fields(floats: Floats) -> NDArray[np.int64]:
    """[3, ...]: sign, exponent and mantissa."""
    bits = np.ascontiguousarray(floats, np.float32).view(np.uint32).astype(np.int64)
    return np.stack([bits >> 31, bits >> _DIGITS & _TOP, bits & (2**_DIGITS - 1)])


def _digits_each(floats: Floats) -> NDArray[np.int64]:
    """Binary digits after the first, up to the last that is not 0."""
    mantissa = _fields(floats)[2] | 1 << _DIGITS
    lowest = mantissa & -mantissa
    return _DIGITS - np.log2(lowest).astype(np.int64)


def _digits_of(floats: Floats) -> int:
    return int(_digits_each(floats).max(initial=0))


def _parts(digits: int) -> list[tuple[int, int]]:
    """Where the digits stand in a mantissa, a few at a time: shift and width."""
    ends = range(_DIGITS, _DIGITS - digits, -_AT_A_TIME)
    last = _DIGITS - digits
    return [(max(end - _AT_A_TIME, last), min(_AT_A_TIME, end - last)) for end in ends]
