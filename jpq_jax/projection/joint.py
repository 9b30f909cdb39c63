"""The joint projection: support, bit-widths and values of all leaves together, in one sketch pass and one assignment pass."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jpq_jax.allocation.lagrangian import (
    Candidates,
    Fit,
    Start,
    allocate,
    cold_start,
    prices,
    rate,
    spend,
)
from jpq_jax.plan import (
    Where,
    capacity,
    check_finite,
    compressed_leaves,
    limit_of,
    plan_leaves,
    scheduled,
    with_compressed,
)
from jpq_jax.projection.planner import Planner
from jpq_jax.projection.published import index_bits
from jpq_jax.projection.row_major import end_of_first, is_before
from jpq_jax.sharding import lying_like, replicated
from jpq_jax.sketch.logarithmic import BINS, SIDE, bin_of, edge_index, log_sketch, unit_of
from jpq_jax.sketch.priced import (
    ALL,
    ONE,
    Outcome,
    Tails,
    cells,
    centroids,
    outcome,
    slot_of_bin,
    tails_of,
    thresholds,
)
from jpq_jax.vocabulary import CODE_DTYPE, LEVELS, Budget, Codes, PyTree, dtype_name


class _Sketches(NamedTuple):
    """Of all leaves.

    Attributes:
      tails: [leaves, ...].
      exponent: [leaves] int32, of their units.
      scale: [leaves] float32, squares of the units by that of the largest.
    """

    tails: Tails
    exponent: jax.Array
    scale: jax.Array


class _Coding(NamedTuple):
    """How one leaf is coded. At the multiplier, and just below it: for the weights that still fit.

    Attributes:
      exponent: [] int32, of the leaf's unit.
      codes: [2, BINS + 1] int16, the code by bin.
      spare: [] int32, how many weights may be coded by the second row though not by the first.
      waiting: [2, 2] int32, where their bins begin and end, for both signs.
      codebook: [257] float32.
      bits: [] int32.
    """

    exponent: jax.Array
    codes: jax.Array
    spare: jax.Array
    waiting: jax.Array
    codebook: jax.Array
    bits: jax.Array


def project(params: PyTree, budget: Budget, *, where: Where = None) -> PyTree:
    """Sparse-quantized codes of `params`, support, bit-widths and values chosen together.

    Solves, by a Lagrangian and Lloyd's algorithm, so to a local minimum,

        min_Q sum_i (w_i - q_i)^2   subject to   sum_l b_l nnz_l(Q) <= budget

    over the nonzeros of every leaf l, 2**b_l values of each leaf, and b_l in 1..8. The budget is never exceeded,
    and spent to within the bits of a single weight where more would help; of equal weights the first in
    row-major order are kept. Weights below 2**-23 of the largest of their leaf are pruned.

    Args:
      params: any pytree of arrays.
      budget: the budget.
      where: which leaves to compress, as in `plan_leaves`.

    Returns:
      The compressed tree: `params` with `Codes` in place of the compressed leaves.

    Raises:
      ValueError: nothing to compress, or weights that are not finite.
    """
    plan = plan_leaves(params, where)
    limit = capacity(budget, params, plan)
    leaves = compressed_leaves(params, plan)
    for path, leaf in zip((p.path for p in plan if p.compress), leaves, strict=True):
        check_finite(path, leaf)
    dtypes = tuple(dtype_name(leaf) for leaf in leaves)
    return with_compressed(params, plan, _project(list(leaves), jnp.uint32(limit), dtypes))


@functools.partial(jax.jit, static_argnums=2)
def _project(leaves: list[jax.Array], limit: jax.Array, dtypes: tuple[str, ...]) -> list[Codes]:
    weights = [leaf.astype(jnp.float32) for leaf in leaves]
    sketches = _sketches_of(weights)
    fit, _ = allocate(sketches.tails, sketches.scale, limit, cold_start(len(leaves)))
    return _codes_by(fit, weights, sketches, limit, dtypes)


def _sketches_of(weights: Sequence[jax.Array]) -> _Sketches:
    each = [log_sketch(w) for w in weights]
    exponent = jnp.stack([one.exponent for one in each])
    unit = unit_of(exponent)
    tails = jax.tree.map(lambda *parts: jnp.stack(parts), *[tails_of(one) for one in each])
    return _Sketches(tails, exponent, (unit / jnp.max(unit)) ** 2)


def _codes_by(
    fit: Fit,
    weights: Sequence[jax.Array],
    sketches: _Sketches,
    limit: jax.Array,
    dtypes: Sequence[str],
) -> list[Codes]:
    """Codes of the weights by a fit of their own sketches, exact in the budget."""
    tails, exponent, scale = sketches
    price = [prices(m, scale, fit.bits[:, None]) for m in (fit.multiplier, fit.below)]

    def counts(levels: jax.Array, tails: Tails, price: jax.Array) -> jax.Array:
        nearest = cells(levels, thresholds(levels, price, ONE), tails, ONE)
        return jnp.sum(nearest.counts, dtype=jnp.int32)

    kept, more = (jax.vmap(counts)(fit.levels, tails, each) for each in price)
    spare = _spare(more - kept, fit.bits, limit - rate(fit.bits, kept))
    at, below = price
    codings = jax.vmap(_coding)(fit.levels, tails, at, below, spare, exponent)
    return [
        _leaf_codes(w, jax.tree.map(lambda x, i=i: x[i], codings), dtype)
        for i, (w, dtype) in enumerate(zip(weights, dtypes, strict=True))
    ]


class JointPlan(NamedTuple):
    """The last fit, in the weights' own units, and what can be logged of it.

    Attributes:
      joint_multiplier: [] float32, price of a bit: by how much it must lower the squared error; relative to
        the square of the largest leaf's unit.
      joint_levels: [leaves, slots] float32, a codebook for every bit-width.
      joint_codebook: [leaves, 257] float32, the one in force.
      joint_leaf_bits: [leaves] int32.
      joint_exponent: [leaves] int32, of the leaves' units.
      joint_values: [leaves, BINS + 1] float32, the value that each bin's weights take.
      joint_limit: [] uint32, the budget at the end of its schedule, in bits.
      joint_bits_used: [] uint32, as of the last plan.
      joint_density: [] float32, nonzeros by weights, as of the last plan.
      joint_distortion: [] float32, squared error by sum of squares, as of the last plan.
    """

    joint_multiplier: jax.Array
    joint_levels: jax.Array
    joint_codebook: jax.Array
    joint_leaf_bits: jax.Array
    joint_exponent: jax.Array
    joint_values: jax.Array
    joint_limit: jax.Array
    joint_bits_used: jax.Array
    joint_density: jax.Array
    joint_distortion: jax.Array

    def assign(self, weights: Sequence[jax.Array]) -> list[jax.Array]:
        def look_up(w: jax.Array, values: jax.Array, exponent: jax.Array) -> jax.Array:
            return values[bin_of(w, exponent)]

        return [
            lying_like(w, look_up)(w, self.joint_values[i], self.joint_exponent[i])
            for i, w in enumerate(weights)
        ]

    def codes(self, weights: Sequence[jax.Array], dtypes: Sequence[str]) -> list[Codes]:
        """At the codebooks in force, the support cut or filled up to the whole budget."""
        sketches = _sketches_of(weights)
        levels = self.joint_codebook / unit_of(sketches.exponent)[:, None]
        bits, limit = self.joint_leaf_bits, self.joint_limit
        spent = spend(levels, bits, sketches.tails, sketches.scale, limit)
        return _codes_by(Fit(levels, bits, *spent), weights, sketches, limit, dtypes)


def joint(budget: Budget, *, budget_schedule: optax.Schedule | None = None) -> Planner:
    """The joint projection as a planner, for `latent` and `project_params`.

    The first plan is made like that of `project`. The following ones go on from the one before: a few iterations
    of the codebooks, then the multiplier at which the budget holds again.

    Args:
      budget: what `finalize` keeps to.
      budget_schedule: factor >= 1 on the budget over updates, such as a ramp that ends at 1:
        `optax.polynomial_schedule(100.0, 1.0, power=3, transition_steps=...)`. Values below 1 count as 1.
    """

    def init(leaves: Sequence[jax.Array]) -> JointPlan:
        number = len(leaves)
        return JointPlan(
            joint_multiplier=jnp.zeros([], jnp.float32),
            joint_levels=jnp.zeros((number, sum(ALL)), jnp.float32),
            joint_codebook=jnp.zeros((number, LEVELS), jnp.float32),
            joint_leaf_bits=jnp.ones(number, jnp.int32),
            joint_exponent=jnp.ones(number, jnp.int32),
            joint_values=jnp.zeros((number, BINS + 1), jnp.float32),
            # An empty tree is let through: optax.tree.map_params asks with one.
            joint_limit=jnp.asarray(limit_of(budget, leaves) if leaves else 0, jnp.uint32),
            joint_bits_used=jnp.zeros([], jnp.uint32),
            joint_density=jnp.zeros([], jnp.float32),
            joint_distortion=jnp.zeros([], jnp.float32),
        )

    def replan(weights: Sequence[jax.Array], plan: JointPlan, count: jax.Array) -> JointPlan:
        sketches = _sketches_of(weights)
        limit = scheduled(plan.joint_limit, budget_schedule, count)
        tails, exponent, scale = sketches
        unit = unit_of(exponent)

        change = unit_of(jnp.max(plan.joint_exponent)) / jnp.max(unit)
        start = Start(
            multiplier=plan.joint_multiplier * change**2,
            levels=plan.joint_levels / unit[:, None],
            bits=plan.joint_leaf_bits,
            is_cold=count == 0,
        )
        fit, candidates = allocate(tails, scale, limit, start)
        return _plan_by(fit, candidates, sketches, weights, plan)

    return Planner(init, replan)


def _plan_by(
    fit: Fit,
    candidates: Candidates,
    sketches: _Sketches,
    weights: Sequence[jax.Array],
    before: JointPlan,
) -> JointPlan:
    tails, exponent, scale = sketches
    unit = unit_of(exponent)
    price = prices(fit.multiplier, scale, fit.bits[:, None])

    def of_leaf(
        levels: jax.Array, tails: Tails, price: jax.Array
    ) -> tuple[jax.Array, jax.Array, Outcome]:
        threshold = thresholds(levels, price, ONE)
        mine = cells(levels, threshold, tails, ONE)
        codebook = centroids(levels, mine)
        values = codebook[slot_of_bin(levels, threshold, tails.mean)]
        return codebook, values, outcome(codebook, mine, ONE)

    codebook, values, reached = jax.vmap(of_leaf)(fit.levels, tails, price)
    squares = jnp.stack([_sum_of_squares(w, u) for w, u in zip(weights, unit, strict=True)])
    size = sum(w.size for w in weights)
    return before._replace(
        joint_multiplier=fit.multiplier,
        joint_levels=candidates.levels * unit[:, None],
        joint_codebook=codebook * unit[:, None],
        joint_leaf_bits=fit.bits,
        joint_exponent=exponent,
        joint_values=values * unit[:, None],
        joint_bits_used=rate(fit.bits, reached.counts[:, 0]),
        joint_density=jnp.sum(reached.counts, dtype=jnp.int32).astype(jnp.float32) / size,
        joint_distortion=1 - jnp.sum(reached.gain[:, 0] * scale) / jnp.sum(squares * scale),
    )


@replicated
def _sum_of_squares(w: jax.Array, unit: jax.Array) -> jax.Array:
    return jnp.sum((w / unit) ** 2)


def _spare(waiting: jax.Array, bits: jax.Array, left: jax.Array) -> jax.Array:
    """How many of each leaf's waiting weights the rest of the budget pays for, the first leaf's first. [leaves]"""

    def take(left: jax.Array, leaf: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        waiting, bits = leaf
        taken = jnp.minimum(waiting.astype(jnp.uint32), left // bits.astype(jnp.uint32))
        return left - taken * bits.astype(jnp.uint32), taken.astype(jnp.int32)

    return lax.scan(take, left, (waiting, bits))[1]


def _coding(
    levels: jax.Array,
    tails: Tails,
    price: jax.Array,
    price_below: jax.Array,
    spare: jax.Array,
    exponent: jax.Array,
) -> _Coding:
    at, below = (thresholds(levels, p, ONE) for p in (price, price_below))
    mine, theirs = (cells(levels, threshold, tails, ONE) for threshold in (at, below))
    used = (levels != 0) & ((mine.counts > 0) | ((theirs.counts > 0) & (spare > 0)))
    code_of_slot = jnp.where(used, jnp.cumsum(used, dtype=jnp.int32), 0).astype(CODE_DTYPE)
    codes = [code_of_slot[slot_of_bin(levels, t, tails.mean)] for t in (at, below)]
    values = centroids(levels, mine) * unit_of(exponent)
    values = jnp.sort(jnp.where(used, values, jnp.inf))[:-1]
    codebook = jnp.concatenate(
        [jnp.zeros(1, jnp.float32), jnp.where(jnp.isfinite(values), values, 0)]
    )
    bits = index_bits(jnp.sum(used, dtype=jnp.int32))
    waiting = jnp.stack([_edges_of(t, tails.mean) for t in (below, at)], axis=1)
    return _Coding(exponent, jnp.stack(codes), spare, waiting, codebook, bits)


def _edges_of(threshold: jax.Array, mean: jax.Array) -> jax.Array:
    return jnp.stack([edge_index(threshold[side, 0], mean[side]) for side in (0, 1)])


def _leaf_codes(w: jax.Array, coding: _Coding, dtype: str) -> Codes:
    def with_spare() -> jax.Array:
        end = end_of_first(_is_waiting(w, coding), coding.spare)

        def look_up(w: jax.Array, coding: _Coding, end: jax.Array) -> jax.Array:
            row = is_before(w.shape, end).astype(jnp.int32)
            return coding.codes[row, bin_of(w, coding.exponent)]

        return lying_like(w, look_up)(w, coding, end)

    def without() -> jax.Array:
        def look_up(w: jax.Array, coding: _Coding) -> jax.Array:
            return coding.codes[0][bin_of(w, coding.exponent)]

        return lying_like(w, look_up)(w, coding)

    code = lax.cond(coding.spare > 0, with_spare, without)
    return Codes(code, coding.codebook, coding.bits, dtype)


def _is_waiting(w: jax.Array, coding: _Coding) -> jax.Array:
    place = bin_of(w, coding.exponent)
    begin, end = coding.waiting[:, 0], coding.waiting[:, 1]
    above = (place >= begin[0]) & (place < end[0])
    below = (place >= SIDE + begin[1]) & (place < SIDE + end[1])
    return above | below
