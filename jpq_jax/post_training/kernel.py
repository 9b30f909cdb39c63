"""One kernel at a Lagrange multiplier, from pruned to bit-exact.

    min over Q   |W - Q|^2 + multiplier x bits(Q)

By rate-distortion-optimized uniform quantization where 256 values do; a few outliers are values of their own. Where more values are
wanted, by rounding to multiples of a power of two, on the way to the weights themselves. A kernel that has few values as it is may keep them.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jpq_jax.artifact.leaf import bits_of_codes, looked_up, native, parts_of
from jpq_jax.plan import check_finite, in_native_order
from jpq_jax.post_training.binary_grid import rounded_to_binary_grid
from jpq_jax.post_training.magnitudes import Magnitudes, magnitudes_of
from jpq_jax.projection.lines import BALANCE, MOST
from jpq_jax.projection.multiples import numbers_at
from jpq_jax.vocabulary import LEVELS, MAX_BITS, Codes, dtype_name

_LEAST = 2.0**-48  # of a multiplier that float32 can work with, in the kernel's unit
_LARGEST_UNIT = 2.0**126  # of which float32 has the inverse
_SMALLEST_UNIT = 2.0**-100  # below, XLA takes small weights for zeros
_REACH = 100  # steps beyond which only a few weights may lie for 256 values to do
_TAIL = 2**7  # weights of which one may lie there
_OUTLIER = 512  # steps from which on a weight is a value of its own
_INNER = (
    MOST,
    96,
    48,
)  # steps up to which all multiples are values, where the others must share some
_SHARED = 0.1  # of the error of rounding to the step, what sharing values may add
_MANTISSA = 24  # binary digits of a float32
_SAMPLE = 2**12


class Kernel(NamedTuple):
    """Attributes:
    weights: [...], as they are: of JAX, NumPy, or what turns into an array.
    magnitudes: of the weights.
    dtype: name of that of the result.
    outputs: the axis of the outputs.
    exact: codes of the weights themselves, and their bits, if they are of at most 256 values besides 0.
    """

    weights: Any
    magnitudes: Magnitudes
    dtype: str
    outputs: int
    exact: tuple[Codes, float] | None

    @property
    def size(self) -> int:
        return math.prod(self.weights.shape)


def kernel_of(path: str, leaf: Any, outputs: int) -> Kernel:
    """Raises ValueError, naming the leaf, for weights that are not finite."""
    weights = native(leaf)
    check_finite(path, weights)
    dtype = dtype_name(leaf)
    known = magnitudes_of(weights)
    return Kernel(in_native_order(leaf), known, dtype, outputs, _exact(weights, dtype))


def coded_at(kernel: Kernel, multiplier: float) -> Codes | NDArray[Any]:
    """The kernel at this multiplier: codes, or an array where it takes more than 256 values.

    multiplier: squared error for a bit; infinite for a kernel of zeros.
    """
    number = int(kernel.magnitudes.counts.sum())
    if not number or math.isinf(multiplier):
        zeros = np.zeros(kernel.weights.shape, np.int16)
        return _codes(zeros, np.zeros(0, np.float32), kernel.dtype)
    step = BALANCE * math.sqrt(multiplier)
    fits = kernel.magnitudes.above(_REACH * step) <= number / _TAIL
    found = _uniform(kernel, multiplier, step) if fits else None
    if found is None:
        found = rounded_to_binary_grid(_weights(kernel), step)
    if kernel.exact is None:
        return found
    exact, bits = kernel.exact
    if not isinstance(found, Codes):
        return exact
    cheaper = _squared_error(kernel, found) + multiplier * bits_of_codes(found) < multiplier * bits
    return found if cheaper else exact


def _weights(kernel: Kernel) -> NDArray[Any]:
    """In the dtype of the result."""
    return native(kernel.weights).astype(np.dtype(kernel.dtype), copy=False)


def _exact(weights: NDArray[Any], dtype: str) -> tuple[Codes, float] | None:
    flat = weights.reshape(-1)
    if np.unique(_floats(flat[:: max(flat.size // _SAMPLE, 1)])).size > LEVELS:
        return None
    values = np.unique(_floats(flat))
    values = values[values != 0]
    if values.size >= LEVELS:
        return None
    code = np.empty(flat.shape, np.int16)
    for part, out in zip(parts_of(flat), parts_of(code), strict=True):
        floats = _floats(part)
        out[:] = np.where(floats != 0, 1 + np.searchsorted(values, floats), 0)
    codes = _codes(code.reshape(weights.shape), values, dtype)
    return codes, bits_of_codes(codes)


def _floats(weights: NDArray[Any]) -> NDArray[np.float32]:
    return weights.astype(np.float32)


def _uniform(kernel: Kernel, multiplier: float, step: float) -> Codes | None:
    """Multiples of about this step, and outliers; None if these have too many values."""
    limit = _OUTLIER * step
    largest = min(kernel.magnitudes.largest, limit)
    unit = min(2.0 ** math.floor(math.log2(largest)), _LARGEST_UNIT)
    own = min(max(multiplier / unit**2, _LEAST), 1 / _LEAST)
    weights, inner_unit = kernel.weights, unit
    if unit < _SMALLEST_UNIT:
        weights, inner_unit = _floats(native(weights)) * np.float64(1 / unit), 1.0
        weights = _floats(weights)
    found = numbers_at(
        weights, own, inner_unit, outputs=kernel.outputs, limit=min(limit / unit, _LARGEST_UNIT)
    )
    numbers, fitted = np.asarray(found.numbers), np.float32(float(found.step) * unit)
    distinct = _distinct(numbers)
    if kernel.magnitudes.largest <= limit and distinct.size < LEVELS:
        return _codes_of_multiples(numbers, distinct, fitted, kernel.dtype)
    allowed = _SHARED * kernel.size * step**2 / 12
    for reach in _INNER:
        tail = _Tail(*_beyond(kernel, numbers, reach, limit))
        inner = distinct[np.abs(distinct) <= reach]
        values = tail.values(LEVELS - 1 - inner.size, allowed)
        if values is not None:
            return _codes_with_tail(numbers, inner, fitted, tail._replace(weights=values), kernel)
    return None


class _Tail(NamedTuple):
    """Weights that are not multiples of the step.

    Attributes:
      places: in the kernel in C order.
      weights: [places] float32.
    """

    places: NDArray[np.intp]
    weights: NDArray[np.float32]

    def values(self, most: int, allowed: float) -> NDArray[np.float32] | None:
        """The weights with as many digits as they may have with at most so many values; None if their squared error exceeds what is allowed."""
        wide = self.weights.astype(np.float64)
        mantissa, exponent = np.frexp(wide)
        for digits in range(_MANTISSA, 0, -1):
            rounded = np.ldexp(np.rint(np.ldexp(mantissa, digits)), exponent - digits)
            if ((rounded - wide) ** 2).sum() > allowed:
                return None
            if np.unique(rounded).size <= most:
                return np.clip(rounded, *_bounds("float32")).astype(np.float32)
        return None


def _beyond(
    kernel: Kernel, numbers: NDArray[np.int16], reach: int, limit: float
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Places and weights of outliers, and of what is more than so many steps large."""
    flat, places = native(kernel.weights).reshape(-1), []
    at = 0
    for part, number in zip(parts_of(flat), parts_of(numbers), strict=True):
        is_far = (np.abs(_floats(part)) > limit) | (np.abs(number) > reach)
        places.append(np.flatnonzero(is_far) + at)
        at += part.size
    found = np.concatenate(places)
    return found, _floats(flat[found])


def _codes_with_tail(
    numbers: NDArray[np.int16],
    inner: NDArray[np.int64],
    step: np.float32,
    tail: _Tail,
    kernel: Kernel,
) -> Codes:
    multiples = _multiples(inner, step)
    values = np.unique(np.concatenate([multiples, tail.weights]))
    inner_code = 1 + np.searchsorted(values, multiples)
    inside = np.where(np.abs(numbers) <= np.abs(inner).max(initial=0), numbers, np.int16(0))
    code = looked_up(_table(inner, inner_code), inside)
    code.reshape(-1)[tail.places] = 1 + np.searchsorted(values, tail.weights)
    return _codes(code, values, kernel.dtype)


def _codes_of_multiples(
    numbers: NDArray[np.int16], distinct: NDArray[np.int64], step: np.float32, dtype: str
) -> Codes:
    code = looked_up(_table(distinct, np.arange(1, 1 + distinct.size)), numbers)
    return _codes(code, _multiples(distinct, step), dtype)


def _multiples(numbers: NDArray[np.int64], step: np.float32) -> NDArray[np.float32]:
    """Infinite where float32 does not reach."""
    with np.errstate(over="ignore"):
        return numbers.astype(np.float32) * step


def _codes(code: NDArray[np.int16], values: NDArray[np.float32], dtype: str) -> Codes:
    """values: ascending, for the codes from 1 on."""
    bounded = np.clip(values, *_bounds(dtype))
    if np.dtype(dtype).itemsize == 1:
        code, bounded = _snapped(code, bounded, dtype)
    codebook = np.zeros(LEVELS, np.float32)
    codebook[1 : 1 + bounded.size] = bounded
    bits = min(max(1, math.ceil(math.log2(max(bounded.size, 1)))), MAX_BITS)
    return Codes(jnp.asarray(code), jnp.asarray(codebook), jnp.asarray(bits, jnp.int32), dtype)


def _snapped(
    code: NDArray[np.int16], values: NDArray[np.float32], dtype: str
) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """With the values that a narrow dtype has, since it would round them; those that become one have one code."""
    held = values.astype(np.dtype(dtype)).astype(np.float32)
    kept = np.unique(held[held != 0])
    code_of = np.where(held != 0, 1 + np.searchsorted(kept, held), 0)
    return np.append(0, code_of).astype(np.int16)[code], kept


def _bounds(dtype: str) -> tuple[np.float32, np.float32]:
    """What a value must not exceed, or it would be infinite in the dtype."""
    info = jnp.finfo(np.dtype(dtype))
    return np.float32(float(info.min)), np.float32(float(info.max))


def _distinct(numbers: NDArray[np.int16]) -> NDArray[np.int64]:
    """Those there are besides 0, ascending."""
    low = int(numbers.min(initial=0))
    counts = sum(
        np.bincount(part.astype(np.intp) - low, minlength=2 * MOST + 1)
        for part in parts_of(numbers)
    )
    found = np.flatnonzero(counts) + low
    return found[found != 0]


def _table(numbers: NDArray[np.int64], codes: NDArray[np.integer]) -> NDArray[np.int16]:
    """[2 MOST + 1], of every number from 0 on; of those below at the end, where NumPy looks for them."""
    table = np.zeros(2 * MOST + 1, np.int16)
    table[numbers] = codes
    return table


def _squared_error(kernel: Kernel, codes: Codes) -> float:
    codebook, code = np.asarray(codes.codebook), np.asarray(codes.code)
    pairs = zip(parts_of(native(kernel.weights)), parts_of(code), strict=True)
    wide = (part.astype(np.float64) - codebook[c].astype(np.float64) for part, c in pairs)
    return sum(float(np.vdot(error, error)) for error in wide)
