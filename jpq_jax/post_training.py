"""Post-training compression: any checkpoint into a file of so many bytes, without data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jpq_jax.artifact.floats import HELD
from jpq_jax.artifact.leaf import looked_up, parts_of
from jpq_jax.artifact.record import Extras
from jpq_jax.file_budget import Interval, largest_within
from jpq_jax.names import module_and_kind
from jpq_jax.plan import Where, as_plan, check_compresses, check_finite
from jpq_jax.projection.lines import MOST
from jpq_jax.projection.multiples import numbers_at
from jpq_jax.rounding import rounded
from jpq_jax.vocabulary import (
    LEVELS,
    MAX_BITS,
    Budget,
    Codes,
    LeafPlan,
    PyTree,
    Treatment,
    dtype_name,
)

_RANGE = 80.0  # octaves below and above the mean square of a weight
_LEAST = (
    2.0**-48
)  # of a multiplier that float32 can work with: there the multiples do not reach all weights any more
_STRICTER = 16.0  # how much more an error of a stored leaf counts than one of a kernel, both relative to their own

Progress = Callable[[int, int, int], None]
"""Called with the round of the search, leaves done in it, and leaves in all."""


class _Kernel(NamedTuple):
    """Attributes:
    weights: [...], as they are.
    unit: a power of two, in which squares neither overflow nor vanish.
    square: sum of the squares, in the leaf's own unit.
    dtype: the leaf's own.
    outputs: the axis of the outputs.
    """

    weights: Any
    unit: float
    square: float
    dtype: str
    outputs: int


def compress(
    params: PyTree,
    budget: Budget,
    *,
    plan: Where | Sequence[LeafPlan] = None,
    extras: Extras | None = None,
    progress: Progress | None = None,
) -> PyTree:
    """Codes of `params` whose file takes at most so many bytes.

        min_Q sum_l sqrt(E_l) f(D_l)   subject to   len(artifact.encode(Q)) <= budget

    over whole multiples of a step for each kernel l, of sum of squares E_l and relative error D_l; f is that of `projection.lines`, D_l
    for small errors. By a Lagrangian: at a price of a bit, numbers are found that are cheap for the codec, and the price is searched until
    the file has the size. Between layers neither the error itself nor the relative one is what counts (with norms after the layers it is
    the relative one): E_l to the power of 1/2 stands between them. Stored floats (biases, norms, statistics) are rounded at
    the same price, an error in them, relative to their own size, counting 16 times one in the kernels.

    Args:
      params: any pytree of arrays, or of what `read_checkpoint(lazy=True)` gives.
      budget: `Budget(nbytes=...)`.
      plan: which leaves are kernels: what `plan_leaves` gives, or takes as `where`. Leaves that a mask or predicate of one's own
        leaves out are stored to the bit.
      extras: that the file will be saved with: they count.
      progress: told how far the search is.

    Returns:
      The compressed tree: `params` with `Codes` in place of the kernels, and stored leaves rounded. A kernel that wants more than 256
      values at this size is not `Codes`, but an array of few digits.

    Raises:
      ValueError: another budget; one that even a model of zeros exceeds; nothing to compress; weights that are not finite; a
        treatment other than `Treatment()`.
    """
    if budget.nbytes is None:
        raise ValueError(
            f"compress: got {budget}, expected Budget(nbytes=...); `project` knows the others"
        )
    leaf_plan = _plan_of(params, plan)
    leaves, structure = jax.tree.flatten(params)
    search = _Search(leaf_plan, leaves, structure, extras, progress or (lambda *_: None))
    return search.run(int(budget.nbytes))


def _plan_of(params: PyTree, plan: Where | Sequence[LeafPlan]) -> list[LeafPlan]:
    found = as_plan(params, plan)
    check_compresses(found)
    for p in found:
        if p.compress and p.treatment != Treatment():
            raise ValueError(
                f"compress: leaf {p.path!r}: got {p.treatment}, expected {Treatment()}"
            )
    return found


@dataclasses.dataclass
class _Search:
    """For the multiplier: the smallest at which the file fits, about."""

    plan: list[LeafPlan]
    leaves: list[Any]
    structure: Any
    extras: Extras | None
    progress: Progress

    def __post_init__(self) -> None:
        self.kernels = {
            i: _kernel(p.path, self.leaves[i]) for i, p in enumerate(self.plan) if p.compress
        }
        self.size = sum(kernel.weights.size for kernel in self.kernels.values())
        squares = [kernel.square for kernel in self.kernels.values() if kernel.square]
        self.mean_square = sum(squares) / max(self.size, 1) or 1.0
        logs = [math.log2(square) for square in squares]
        self.middle = 2.0 ** (sum(logs) / max(len(logs), 1))
        self.rounds = 0

    def run(self, nbytes: int) -> PyTree:
        middle = math.log2(self.mean_square)
        low, high = middle - _RANGE, middle + _RANGE
        start = min(max(middle - 2 * 8 * nbytes / max(self.size, 1), low), high)
        return largest_within(nbytes, self.codes_at, Interval(low, start, high), self.extras).codes

    def codes_at(self, multiplier: float) -> PyTree:
        self.rounds += 1
        coded = []
        for i, (p, leaf) in enumerate(zip(self.plan, self.leaves, strict=True)):
            self.progress(self.rounds, i, len(self.plan))
            coded.append(self.coded(i, p, leaf, multiplier))
        self.progress(self.rounds, len(self.plan), len(self.plan))
        return jax.tree.unflatten(self.structure, coded)

    def coded(self, i: int, p: LeafPlan, leaf: Any, multiplier: float) -> Any:
        if p.compress:
            kernel = self.kernels[i]
            return _coded(kernel, multiplier * math.sqrt(kernel.square / self.middle))
        array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        if p.rounded and leaf.dtype.name in HELD:
            return rounded(np.asarray(array), _STRICTER * self.mean_square, multiplier)
        return array


def _kernel(path: str, leaf: Any) -> _Kernel:
    weights = np.asarray(leaf)
    check_finite(path, weights)
    largest = float(max(weights.max(initial=0), -weights.min(initial=0)))
    unit = 2.0 ** math.floor(math.log2(largest)) if largest else 1.0
    return _Kernel(
        leaf,
        unit,
        _sum_of_squares(weights, unit) * unit**2,
        dtype_name(leaf),
        _outputs(path),
    )


def _sum_of_squares(weights: np.ndarray, unit: float) -> float:
    """In that unit."""
    scaled = (part.astype(np.float32) / np.float32(unit) for part in parts_of(weights))
    return sum(float(np.vdot(part, part)) for part in scaled)


def _outputs(path: str) -> int:
    """First of a `weight`, `in_proj_weight` or `weight_hh_l0` of PyTorch or Equinox, else last."""
    _, kind = module_and_kind(path)
    return 0 if "weight" in (kind, kind.split("_")[0], kind.split("_")[-1]) else -1


def _coded(kernel: _Kernel, multiplier: float) -> Any:
    """Codes; an array where they would be of more than 256 values; one of few digits where a step has too many multiples."""
    own = multiplier / kernel.unit**2
    inside = min(max(own, _LEAST), 1 / _LEAST)
    found = numbers_at(kernel.weights, inside, kernel.unit, outputs=kernel.outputs)
    numbers, step = np.asarray(found.numbers), np.float32(float(found.step) * kernel.unit)
    if max(numbers.max(initial=0), -numbers.min(initial=0)) >= MOST:
        weights = np.asarray(kernel.weights).astype(np.float32) / np.float32(kernel.unit)
        digits = rounded(weights, float((weights.astype(np.float64) ** 2).mean()), own)
        return (digits * np.float32(kernel.unit)).astype(np.dtype(kernel.dtype))
    distinct = _distinct(numbers)
    if distinct.size >= LEVELS:
        return (numbers.astype(np.float32) * step).astype(np.dtype(kernel.dtype))
    codebook = np.zeros(LEVELS, np.float32)
    codebook[1 : 1 + distinct.size] = distinct.astype(np.float32) * step
    code = looked_up(_codes_of(distinct), numbers)
    bits = min(max(1, math.ceil(math.log2(max(distinct.size, 1)))), MAX_BITS)
    return Codes(
        jnp.asarray(code), jnp.asarray(codebook), jnp.asarray(bits, jnp.int32), kernel.dtype
    )


def _distinct(numbers: np.ndarray) -> np.ndarray:
    """Those there are besides 0, ascending."""
    low = int(numbers.min(initial=0))
    counts = sum(
        np.bincount(part.astype(np.intp) - low, minlength=2 * MOST + 1)
        for part in parts_of(numbers)
    )
    found = np.flatnonzero(counts) + low
    return found[found != 0]


def _codes_of(distinct: np.ndarray) -> np.ndarray:
    """[2 MOST + 1] int16, of every number from 0 on; of those below at the end, where NumPy looks for them."""
    codes = np.zeros(2 * MOST + 1, np.int16)
    codes[distinct] = np.arange(1, 1 + distinct.size)
    return codes
