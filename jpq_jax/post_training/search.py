"""The search of `compress`: for the Lagrange multiplier at which the file has the target size."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jpq_jax import artifact
from jpq_jax.artifact import lossless
from jpq_jax.artifact.floats import HELD
from jpq_jax.artifact.leaf import check_storable, native
from jpq_jax.artifact.record import Extras, fewest_bytes
from jpq_jax.file_budget import Interval, largest_within
from jpq_jax.names import module_and_kind
from jpq_jax.plan import Where, as_plan, check_compresses
from jpq_jax.post_training.kernel import coded_at, kernel_of
from jpq_jax.rounding import rounded
from jpq_jax.vocabulary import Budget, InfeasibleError, LeafPlan, PyTree, Treatment

_STRICTER = 16.0  # how much more an error of a stored leaf counts than one of a kernel, both relative to their own
_USED = 0.98  # of a budget that is not exceeded and yet used
_NEARLY = 1.25  # of a budget, an estimate of the lossless file above which it is not tried
_TIGHT = 1 / 16  # of the arrays' bytes, a budget below which it is first seen whether zeros fit
_APART = 8.0  # octaves from the median up to which a kernel's energy counts by its root
_NEARLY_EXACT, _ALL_ZERO = 80.0, 8.0  # octaves of the price, relative to kernels of about one scale
_MANTISSA = 24  # binary digits of a float32

Progress = Callable[[int, int, int], None]
"""Called with the round of the search, leaves done in it, and leaves in all."""


class UnusedBudgetWarning(UserWarning):
    """A file far below its budget that is not exact."""


class SizeRange(NamedTuple):
    """Of the files of a model, in bytes.

    Attributes:
      least: with all kernels zero, and stored leaves as coarse as they may be.
      lossless: with all leaves to the bit.
    """

    least: int
    lossless: int


def compress(
    params: PyTree,
    budget: Budget,
    *,
    plan: Where | Sequence[LeafPlan] = None,
    extras: Extras | None = None,
    progress: Progress | None = None,
) -> PyTree:
    """Compress `params` to a file of a target size.

        min_Q sum_l sqrt(E_l) f(D_l)   subject to   len(artifact.encode(Q)) <= budget

    over whole multiples of a step for each kernel l, of sum of squares E_l and relative error D_l; f is that of `projection.lines`, D_l
    for small errors. By a Lagrangian: at a multiplier, quantization is rate-distortion-optimized for the codec, and the multiplier is searched until
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
      values at this size is not `Codes`, but an array of multiples of a power of two. A budget in which the model fits
      to the bit gives its own arrays. Kernels of float64 become float32 otherwise, as in JAX.

    Warns:
      UnusedBudgetWarning: if the file takes less than 98 % of the budget, and is not exact.

    Raises:
      InfeasibleError: for a budget that even a model of zeros exceeds; it names the least and the lossless size.
      ValueError: another budget; nothing to compress; weights that are not finite; a treatment other than `Treatment()`.
      TypeError: a dtype that files do not hold, before anything is compressed.
    """
    if budget.nbytes is None:
        raise ValueError(
            f"compress: got {budget}, expected Budget(nbytes=...); `project` knows the others"
        )
    return _search_of(params, plan, extras, progress).run(int(budget.nbytes))


def size_range(
    params: PyTree,
    *,
    plan: Where | Sequence[LeafPlan] = None,
    extras: Extras | None = None,
) -> SizeRange:
    """The smallest file that `compress` makes of `params`, and the one that holds them to the bit.

    Raises:
      ValueError: as `compress`, but for the budget.
    """
    search = _search_of(params, plan, extras, None)
    return SizeRange(search.least_bytes(), search.lossless_bytes())


def _search_of(
    params: PyTree,
    plan: Where | Sequence[LeafPlan],
    extras: Extras | None,
    progress: Progress | None,
) -> _Search:
    leaf_plan = _plan_of(params, plan)
    for p, leaf in zip(leaf_plan, jax.tree.leaves(params), strict=True):
        check_storable(p.path, leaf.dtype)
    leaves, structure = jax.tree.flatten(params)
    return _Search(leaf_plan, leaves, structure, extras, progress or (lambda *_: None))


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
    """For the smallest Lagrange multiplier at which the file fits, about; called price, as its scale differs from kernel to kernel.

    A kernel l of energy E_l is coded at the multiplier price x (E_l / N) / sqrt(E_l / G), of N the mean number of a kernel's weights and G the
    median of the energies: sqrt(E_l) between kernels, but not beyond 2^8 times G either way, where the relative error decides.
    """

    plan: list[LeafPlan]
    leaves: list[Any]
    structure: Any
    extras: Extras | None
    progress: Progress

    def __post_init__(self) -> None:
        self.kernels = {
            i: kernel_of(p.path, self.leaves[i], _outputs(p.path))
            for i, p in enumerate(self.plan)
            if p.compress
        }
        energies = {i: kernel.magnitudes.energy for i, kernel in self.kernels.items()}
        logs = [math.log2(energy) for energy in energies.values() if energy]
        middle = float(np.median(logs)) if logs else 0.0
        self.size = sum(kernel.size for kernel in self.kernels.values())
        mean_size = max(self.size, 1) / max(len(self.kernels), 1)
        near = {
            i: min(max(math.log2(energy) - middle, -_APART), _APART) if energy else 0.0
            for i, energy in energies.items()
        }
        self.scales = {
            i: energy / mean_size * 2.0 ** (-near[i] / 2) for i, energy in energies.items()
        }
        # Of stored leaves, whose errors are relative: G by the mean energy, both of the kernels that are not zero.
        some = [2.0 ** near[i] for i, energy in energies.items() if energy]
        self.stored_scale = len(some) / sum(some) if some else 1.0
        self.rounds = 0

    def run(self, nbytes: int) -> PyTree:
        if self.lossless_estimate() <= _NEARLY * nbytes and self.lossless_bytes() <= nbytes:
            return self.exact()
        if self.is_tight(
            nbytes
        ):  # else an infeasible budget would show only at the end of the search
            self.check_feasible(nbytes)
        found = largest_within(nbytes, self.codes_at, self.interval(nbytes), self.extras)
        if found.nbytes < _USED * nbytes:
            if self.lossless_bytes() <= nbytes:
                return self.exact()
            warnings.warn(
                f"compress: got a budget of {nbytes} bytes, the file takes {found.nbytes}: the next larger one that was found exceeds it",
                UnusedBudgetWarning,
                stacklevel=3,
            )
        return found.codes

    def interval(self, nbytes: int) -> Interval:
        """Of log2 of the price: from nearly exact to all zeros."""
        low, high = -_NEARLY_EXACT, _ALL_ZERO
        for i, kernel in self.kernels.items():
            if self.scales[i]:
                scale = math.log2(self.scales[i])
                largest = math.log2(kernel.magnitudes.largest)
                smallest = math.log2(kernel.magnitudes.smallest)
                low = min(low, 2 * (smallest - _MANTISSA) - scale)
                high = max(high, 2 * largest - scale + _ALL_ZERO)
        start = -2 * 8 * nbytes / max(self.size, 1)
        return Interval(low, min(max(start, low), high), high)

    def codes_at(self, price: float) -> PyTree:
        self.rounds += 1
        coded = []
        for i, (p, leaf) in enumerate(zip(self.plan, self.leaves, strict=True)):
            self.progress(self.rounds, i, len(self.plan))
            coded.append(self.coded(i, p, leaf, price))
        self.progress(self.rounds, len(self.plan), len(self.plan))
        return jax.tree.unflatten(self.structure, coded)

    def coded(self, i: int, p: LeafPlan, leaf: Any, price: float) -> Any:
        if p.compress:
            return coded_at(self.kernels[i], price * self.scales[i])
        array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        if p.rounded and leaf.dtype.name in HELD:
            return rounded(native(array), _STRICTER, price * self.stored_scale)
        return array

    def exact(self) -> PyTree:
        arrays = [x if isinstance(x, jax.Array) else np.asarray(x) for x in self.leaves]
        return jax.tree.unflatten(self.structure, arrays)

    def least_bytes(self) -> int:
        zeros = self.codes_at(2.0 ** self.interval(0).high)
        elements = sum(math.prod(leaf.shape) for leaf in self.leaves)
        return max(artifact.file_bytes(zeros, self.extras), fewest_bytes(elements))

    def check_feasible(self, nbytes: int) -> None:
        """Raises InfeasibleError for a budget that even zeros exceed."""
        least = self.least_bytes()
        if nbytes < least:
            raise InfeasibleError(
                f"got a budget of {nbytes} bytes, expected at least {least}, what a file of zeros takes with these names, "
                f"shapes and stored leaves; bit-exact it takes {self.lossless_bytes()}"
            )

    def is_tight(self, nbytes: int) -> bool:
        """Whether the budget might be infeasible: beside what is stored to the bit, little is left."""
        exact = [not (p.compress or p.rounded) for p in self.plan]
        sizes = [math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in self.leaves]
        stored = sum(size for size, is_exact in zip(sizes, exact, strict=True) if is_exact)
        return nbytes < stored + _TIGHT * sum(sizes)

    def lossless_bytes(self) -> int:
        return artifact.file_bytes(self.exact(), self.extras)

    def lossless_estimate(self) -> float:
        """In bytes, by the beginnings of large leaves."""
        return sum(lossless.estimated_bytes(native(leaf)) for leaf in self.leaves)


def _outputs(path: str) -> int:
    """First of a `weight`, `in_proj_weight` or `weight_hh_l0` of PyTorch or Equinox, else last."""
    _, kind = module_and_kind(path)
    return 0 if "weight" in (kind, kind.split("_")[0], kind.split("_")[-1]) else -1
