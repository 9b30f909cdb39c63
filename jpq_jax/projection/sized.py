"""Training under a budget of the file's bytes: a plan of whole multiples of a step, at the prices of the codec.

    min over q, step of   sum_l g_l |w_l - step_l q_l|^2 / u^2   subject to   bytes(q) <= budget

Errors of kernels, and of biases beside them, count alike; those of norms by the mean square of the norm's own numbers, and a few
times as much. By a Lagrangian: at a price of a bit each weight takes the number of least error plus price. What the numbers cost follows from those of the
plan before, by the model of `projection.lines`; from it the price of a bit at which the budget holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jpq_jax.plan import scheduled
from jpq_jax.projection.lines import CLASSES, NUMBERS, Lines
from jpq_jax.projection.planner import Planner
from jpq_jax.projection.pricing import begun, dearer, fitted, learned, searched, weighted
from jpq_jax.projection.sized_plan import Setting, SizedPlan
from jpq_jax.projection.sketching import Curvature
from jpq_jax.vocabulary import LeafPlan, Treatment

_FINEST = 6.0  # bits a weight that a first plan is made for at most
_FIRST_ROUNDS, _FIRST_OCTAVES, _FIRST_HALVINGS = 4, 6.0, 12
_OCTAVES, _HALVINGS = 1.0, 7  # from one plan to the next
_NEAR = 1.0  # octaves of the price within which a plan's own prices are used
_CLOSE = 0.5  # and its steps
_MOST = 2**32 - 1  # bytes, which are counted in uint32
_HEADER, _LEAF = 20, 13  # bytes of a file, and of each leaf, besides its numbers


def sized(
    nbytes: int, *, budget_schedule: optax.Schedule | None = None, besides: int | None = None
) -> Planner:
    """A planner for `Budget(nbytes=...)`; see `joint`."""

    def init(leaves: Sequence[Any], plans: Sequence[LeafPlan], *, curved: bool) -> SizedPlan:
        for p in plans:
            if p.treatment != Treatment():
                raise ValueError(
                    f"a budget in bytes: leaf {p.path!r}: got {p.treatment}, expected {Treatment()}"
                )
        if curved:
            raise ValueError("a budget in bytes: got a curvature, expected none")
        number = len(leaves)
        fixed = _HEADER + _LEAF * number if besides is None else besides
        # optax.tree.map_params asks with an empty tree what is like the params: there, a leaf stands for any branch.
        nothing: Any = jnp.zeros(0, jnp.float32)
        of_leaf = jnp.zeros(number, jnp.float32)
        return SizedPlan(
            sized_multiplier=jnp.zeros([], jnp.float32),
            sized_units=of_leaf,
            sized_weights=jnp.copy(of_leaf),
            sized_finest=jnp.copy(of_leaf),
            sized_steps=jnp.copy(of_leaf),
            sized_lines=tuple(_no_lines(leaf.shape) for leaf in leaves) if leaves else nothing,
            sized_prices=jnp.zeros((number, CLASSES, NUMBERS), jnp.float32),
            sized_nbytes=jnp.asarray(min(nbytes, _MOST), jnp.uint32),
            sized_besides=jnp.asarray(min(fixed, nbytes), jnp.uint32),
            sized_bits_used=jnp.zeros([], jnp.float32),
            sized_density=jnp.zeros([], jnp.float32),
            sized_setting=Setting.of(plans) if leaves else nothing,
        )

    def replan(
        weights: Sequence[jax.Array], plan: SizedPlan, count: jax.Array, curvature: Curvature
    ) -> SizedPlan:
        del curvature
        left = scheduled(plan.sized_nbytes - plan.sized_besides, budget_schedule, count)
        limit = 8 * left.astype(jnp.float32)
        plan = weighted(plan, weights)
        is_first = count == 0
        size = max(sum(w.size for w in weights), 1)
        start = jnp.exp2(-2 * jnp.minimum(limit / size, _FINEST))
        plan = begun(plan, jnp.where(is_first, start, plan.sized_multiplier), is_first)
        octaves = jnp.where(is_first, _FIRST_OCTAVES, _OCTAVES)
        halvings = jnp.where(is_first, _FIRST_HALVINGS, _HALVINGS)

        def improve(_: int, plan: SizedPlan) -> SizedPlan:
            plan, beyond = learned(plan, weights)
            return searched(plan, beyond, weights, limit, octaves, halvings)

        return lax.fori_loop(0, jnp.where(is_first, _FIRST_ROUNDS, 1), improve, plan)

    return Planner(init, replan, rounds=True)


def _no_lines(shape: tuple[int, ...]) -> Lines:
    return Lines(jnp.zeros([], jnp.int32), tuple(jnp.zeros(n, jnp.int32) for n in shape))


def at_price(plan: SizedPlan, weights: Sequence[jax.Array], octaves: jax.Array) -> SizedPlan:
    """The plan with a price of a bit so many octaves higher.

    Close to its own it keeps its steps: the params have been trained at their multiples, and at those of another step would be as
    far off as if they had not. Far from it, it is made anew: its prices say nothing there.
    """
    away = jnp.abs(octaves)
    is_far, plan = away > _NEAR, weighted(plan, weights)
    steps = jnp.where(away > _CLOSE, fitted(dearer(plan, octaves), weights), plan.sized_steps)
    plan = plan._replace(sized_steps=steps)
    plan = begun(plan, plan.sized_multiplier * jnp.exp2(octaves), is_far)

    def again(_: int, plan: SizedPlan) -> SizedPlan:
        return learned(plan, weights)[0]

    return lax.fori_loop(0, jnp.where(is_far, _FIRST_ROUNDS, 0), again, plan)
