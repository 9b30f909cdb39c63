"""The joint projection within a step: a plan that is made once, goes on from itself, and is looked up in every step."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jpq_jax.allocation.lagrangian import Candidates, Start, allocate, ascending, cold_start
from jpq_jax.allocation.rates import RateName, rate_named
from jpq_jax.allocation.spending import Book, Fit, Problem, fit_of, keeps_order, spend, total
from jpq_jax.plan import limit_of, scheduled, treatments_of
from jpq_jax.projection.coding import best_scale, codes_by, slots_of_bins
from jpq_jax.projection.numbering import index_bits
from jpq_jax.projection.planner import Planner
from jpq_jax.projection.project import Setting
from jpq_jax.projection.sized import sized
from jpq_jax.projection.sketching import Curvature, Sketched, curvature_of, sketched
from jpq_jax.projection.view import Reference, View, has_classes, unit_norms, view_of
from jpq_jax.sharding import lying_like, replicated
from jpq_jax.sketch.classes import CLASSES
from jpq_jax.sketch.logarithmic import BINS, place_of, unit_of
from jpq_jax.sketch.priced import Cells, Leaf, Outcome, centroids, outcome
from jpq_jax.sketch.slots import ALL, ONE
from jpq_jax.vocabulary import LEVELS, Budget, Codes, LeafPlan, check_budget

_SPENT = np.float32(0.995)  # of a budget


class JointPlan(NamedTuple):
    """The last fit, in the weights' own units, and what can be logged of it.

    Attributes:
      joint_multiplier: [] float32, price of a bit: by how much it must lower the error; relative to a weight as large
        as the heaviest leaf's unit.
      joint_levels: [leaves, slots] float32, a codebook for every bit-width.
      joint_slot_bits: [leaves, slots] float32, what a weight of each level takes.
      joint_codebook: [leaves, 257] float32, the one in force.
      joint_codebook_bits: [leaves, 257] float32, what a weight of each of its levels takes.
      joint_leaf_bits: [leaves] int32.
      joint_exponent: [leaves] int32, of the views' units.
      joint_octaves: [] int32, what the heaviest leaf's errors weigh.
      joint_values: [leaves, classes x (BINS + 1)] float32, the value that each bin's weights take.
      joint_references: what classes are counted from.
      joint_norms: of each leaf, what its weights are divided by.
      joint_scales: of each leaf, what its values are multiplied by.
      joint_limit: [] uint32, the budget at the end of its schedule, in bits.
      joint_bits_used: [] uint32, as of the last plan.
      joint_density: [] float32, nonzeros by weights, as of the last plan.
      joint_distortion: [] float32, error by sum of squares, both at their cost, as of the last plan.
      joint_setting: static.
    """

    joint_multiplier: jax.Array
    joint_levels: jax.Array
    joint_slot_bits: jax.Array
    joint_codebook: jax.Array
    joint_codebook_bits: jax.Array
    joint_leaf_bits: jax.Array
    joint_exponent: jax.Array
    joint_octaves: jax.Array
    joint_values: jax.Array
    joint_references: Reference
    joint_norms: tuple[jax.Array, ...]
    joint_scales: tuple[jax.Array, ...]
    joint_limit: jax.Array
    joint_bits_used: jax.Array
    joint_density: jax.Array
    joint_distortion: jax.Array
    joint_setting: Setting

    def assign(self, weights: Sequence[jax.Array], curvature: Curvature) -> list[jax.Array]:
        def look_up(w: jax.Array, values: jax.Array, exponent: jax.Array, kind: Any) -> jax.Array:
            return values[place_of(w, exponent, kind)]

        assigned = []
        for i, (w, treatment) in enumerate(
            zip(weights, self.joint_setting.treatments, strict=True)
        ):
            reference = jax.tree.map(lambda x, i=i: x[i], self.joint_references)
            costs = curvature_of(curvature, i)
            view = view_of(w, treatment, self.joint_norms[i], costs, reference)
            values = lying_like(w, look_up)(
                view.weights, self.joint_values[i], self.joint_exponent[i], view.kind
            )
            scaled = values if treatment.scale == "leaf" else values * self.joint_scales[i]
            assigned.append(scaled)
        return assigned

    def codes(
        self, weights: Sequence[jax.Array], dtypes: Sequence[str], curvature: Curvature
    ) -> list[Codes]:
        """By the codebooks in force: the support cut or filled up to the whole budget, the values refitted to it. By new ones where
        these leave some of the budget, and the new ones do better.
        """
        setting = self.joint_setting
        sketches = sketched(weights, setting.treatments, curvature, self.joint_norms)
        levels = self.joint_codebook / unit_of(sketches.exponent)[:, None]
        problem = setting.problem(sketches, self.joint_limit)
        book, bits = Book(levels, self.joint_codebook_bits), self.joint_leaf_bits
        held = fit_of(problem, book, bits, spend(problem, book, bits))

        def anew() -> Fit:
            found, _ = allocate(problem, cold_start(len(bits)))
            is_better = found.remainder.gain > held.remainder.gain
            return jax.tree.map(lambda a, b: jnp.where(is_better, a, b), found, held)

        fit = jax.lax.cond(_is_spent(problem, held), lambda: held, anew)
        return codes_by(fit, problem, sketches, setting.treatments, dtypes)


def joint(
    budget: Budget,
    *,
    rate: RateName = "paper",
    budget_schedule: optax.Schedule | None = None,
    besides: int | None = None,
) -> Planner:
    """The joint projection as a planner, for `latent` and `project_params`.

    With `Budget(nbytes=...)` values are whole multiples of a step for each leaf, at the prices of the codec; biases, norms and other
    leaves that may lose digits (see `plan_leaves`) are rounded in training, too. Else the first plan is made like that of
    `project`. The following ones go on from the one before: a few iterations of the codebooks, then the multiplier at which the
    budget holds again.

    Args:
      budget: what `finalize` keeps to.
      rate: what the budget counts, as in `project`.
      budget_schedule: factor >= 1 on the budget over updates, such as a ramp that ends at 1:
        `optax.polynomial_schedule(100.0, 1.0, power=3, transition_steps=...)`. Values below 1 count as 1.
      besides: bytes of the file that the compressed leaves cannot have, where the budget is in bytes: names, shapes and whatever else
        will be saved. By default 20, and 13 for each leaf, its step among them. It guides the training alone: `finalize` counts what there is.

    Raises:
      ValueError: in `init`, a treatment or curvature together with a budget in bytes.
    """
    check_budget("joint", budget)
    if budget.nbytes is not None:
        return sized(int(budget.nbytes), budget_schedule=budget_schedule, besides=besides)
    rate_named(rate)

    def init(leaves: Sequence[jax.Array], plans: Sequence[LeafPlan], *, curved: bool) -> JointPlan:
        number, treatments = len(leaves), treatments_of(plans)
        limit = limit_of(budget, leaves, capped=rate == "paper") if leaves else 0
        pairs = zip(leaves, treatments, strict=True)
        norms = tuple(unit_norms(leaf.shape, treatment) for leaf, treatment in pairs)
        # optax.tree.map_params asks with an empty tree what is like the params: there, a leaf stands for any branch.
        nothing: Any = jnp.zeros(0, jnp.float32)
        classes = CLASSES if any(has_classes(t, curved) for t in treatments) else 1
        return JointPlan(
            joint_multiplier=jnp.zeros([], jnp.float32),
            joint_levels=jnp.zeros((number, sum(ALL)), jnp.float32),
            joint_slot_bits=jnp.zeros((number, sum(ALL)), jnp.float32),
            joint_codebook=jnp.zeros((number, LEVELS), jnp.float32),
            joint_codebook_bits=jnp.zeros((number, LEVELS), jnp.float32),
            joint_leaf_bits=jnp.ones(number, jnp.int32),
            joint_exponent=jnp.ones(number, jnp.int32),
            joint_octaves=jnp.zeros([], jnp.int32),
            joint_values=jnp.zeros((number, classes * (BINS + 1)), jnp.float32),
            joint_references=Reference(*(jnp.zeros(number, jnp.int32) for _ in Reference._fields)),
            joint_norms=norms if leaves else nothing,
            joint_scales=tuple(jnp.copy(x) for x in norms) if leaves else nothing,
            joint_limit=jnp.asarray(limit, jnp.uint32),
            joint_bits_used=jnp.zeros([], jnp.uint32),
            joint_density=jnp.zeros([], jnp.float32),
            joint_distortion=jnp.zeros([], jnp.float32),
            joint_setting=Setting(treatments, rate) if leaves else nothing,
        )

    def replan(
        weights: Sequence[jax.Array], plan: JointPlan, count: jax.Array, curvature: Curvature
    ) -> JointPlan:
        setting = plan.joint_setting
        sketches = sketched(weights, setting.treatments, curvature)
        limit = scheduled(plan.joint_limit, budget_schedule, count)
        unit = unit_of(sketches.exponent)
        octaves = jnp.clip(plan.joint_octaves - sketches.octaves, -126, 127)
        change = jnp.exp2(octaves.astype(jnp.float32))
        start = Start(
            multiplier=plan.joint_multiplier * change,
            levels=plan.joint_levels / unit[:, None],
            slot_bits=plan.joint_slot_bits,
            bits=plan.joint_leaf_bits,
            is_cold=(count == 0) | (plan.joint_multiplier == 0),
        )
        problem = setting.problem(sketches, limit)
        fit, candidates = allocate(problem, start)
        return _plan_by(fit, candidates, problem, sketches, plan)

    return Planner(init, replan)


def _is_spent(problem: Problem, fit: Fit) -> jax.Array:
    """Whether next to nothing of the budget is left, with bits for those values alone that are in use: [] bool."""

    def of_leaf(levels: jax.Array, mine: Cells, paid: jax.Array, leaf: Leaf) -> jax.Array:
        found = jnp.sum(mine.counts, axis=0, dtype=jnp.int32)
        bits = index_bits(jnp.sum((found > 0) & (levels != 0), dtype=jnp.int32))
        kept = problem.rate.of_leaf(found, bits[None], leaf.size, ONE)[0]
        return kept.astype(jnp.float32) + (paid * bits).astype(jnp.float32)

    used = jax.vmap(of_leaf)(fit.levels, fit.at.cells, fit.remainder.paid, problem.leaves)
    return jnp.sum(used) >= _SPENT * problem.limit.astype(jnp.float32)


class _Coded(NamedTuple):
    """One leaf by a fit: its codebook, the slots of its bins, their values, and what is reached by them."""

    codebook: jax.Array
    values: jax.Array
    reached: Outcome


def _coded(levels: jax.Array, border: jax.Array, mine: Cells, leaf: Leaf) -> _Coded:
    codebook = centroids(levels, mine, leaf, ONE)
    values = codebook[slots_of_bins(levels, border, leaf)]
    return _Coded(codebook, values, outcome(codebook, mine, leaf, ONE))


def _plan_by(
    fit: Fit, candidates: Candidates, problem: Problem, sketches: Sketched, before: JointPlan
) -> JointPlan:
    unit = unit_of(sketches.exponent)
    coded = jax.vmap(_coded)(fit.levels, fit.spent.at, fit.at.cells, problem.leaves)
    values = coded.values * unit[:, None]
    book = Book(coded.codebook, fit.slot_bits)
    if not keeps_order(problem.rate, problem.leaves):
        book = jax.vmap(functools.partial(ascending, slots=ONE))(book)
    counts = coded.reached.counts

    def rate_of(counts: jax.Array, bits: jax.Array, size: jax.Array) -> jax.Array:
        return problem.rate.of_leaf(counts, bits[None], size, ONE)[0]

    used = total(jax.vmap(rate_of)(counts, fit.bits, problem.leaves.size))
    squares = jnp.sum(jax.vmap(_squares)(problem.leaves) * problem.scale)
    gains = jnp.where(squares > 0, coded.reached.gain[:, 0] * problem.scale, 0)
    return before._replace(
        joint_multiplier=fit.spent.multiplier,
        joint_levels=candidates.levels * unit[:, None],
        joint_slot_bits=candidates.slot_bits,
        joint_codebook=book.levels * unit[:, None],
        joint_codebook_bits=book.slot_bits,
        joint_leaf_bits=fit.bits,
        joint_exponent=sketches.exponent,
        joint_octaves=sketches.octaves,
        joint_values=values,
        joint_references=sketches.references,
        joint_norms=tuple(view.norms for view in sketches.views),
        joint_scales=_scales(values, sketches, before.joint_setting),
        joint_bits_used=used.astype(jnp.uint32),
        joint_density=jnp.sum(counts, dtype=jnp.int32).astype(jnp.float32)
        / sum(view.weights.size for view in sketches.views),
        joint_distortion=1 - jnp.sum(gains) / jnp.where(squares > 0, squares, jnp.inf),
    )


def _squares(leaf: Leaf) -> jax.Array:
    """Of all weights that are in a bin, at their cost, in the view's unit."""
    counts = (leaf.tails.counts[..., :-1] - leaf.tails.counts[..., 1:]).astype(jnp.float32)
    return jnp.sum(counts * leaf.tails.mean**2 * leaf.cost[:, None, None])


def _scales(values: jax.Array, sketches: Sketched, setting: Setting) -> tuple[jax.Array, ...]:
    @replicated
    def best(view: View, values: jax.Array, exponent: jax.Array) -> jax.Array:
        return best_scale(values[place_of(view.weights, exponent, view.kind)], view)

    return tuple(
        view.norms if treatment.scale == "leaf" else best(view, values[i], sketches.exponent[i])
        for i, (view, treatment) in enumerate(zip(sketches.views, setting.treatments, strict=True))
    )
