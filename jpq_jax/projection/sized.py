"""Training under a budget of the file's bytes: a plan of whole multiples of a step, at the prices of the codec.

    min over q, step of   sum_l g_l |w_l - step_l q_l|^2 / u^2   subject to   bytes(q) <= budget

Errors of kernels, and of biases beside them, count alike; those of norms by the mean square of the norm's own numbers, and a few
times as much. By a Lagrangian: at a price of a bit each weight takes the number of least error plus price. What the numbers cost follows from those of the
plan before, by the model of `projection.lines`; from it the price of a bit at which the budget holds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jpq_jax.plan import scheduled
from jpq_jax.projection.alike import each_lying_like, each_replicated
from jpq_jax.projection.lines import (
    BALANCE,
    CLASSES,
    NUMBERS,
    Lines,
    cheapest,
    classes_of,
    counts_of,
    learned_bits,
    lines_bits,
    lines_of,
    prices_of,
    taken,
)
from jpq_jax.projection.numbering import numbered
from jpq_jax.projection.planner import Planner
from jpq_jax.projection.sketching import Curvature
from jpq_jax.sharding import lying_like, replicated
from jpq_jax.sketch.histogram import power_of_two
from jpq_jax.vocabulary import LEVELS, Codes, LeafPlan, Treatment

_MOST = 127  # the largest number: as many values as `Codes` have
_STRICTER = (
    16.0  # how much more an error in a norm counts than one in kernels, both relative to their own
)
_FINEST = 6.0  # bits a weight that a first plan is made for at most
_FIRST_ROUNDS, _FIRST_OCTAVES, _FIRST_HALVINGS = 4, 6.0, 12
_OCTAVES, _HALVINGS = 1.0, 7  # from one plan to the next
_NEAR = 1.0  # octaves of the price within which a plan's own prices are used
_CLOSE = 0.5  # and its steps
_OFF_BALANCE = 0.125 # octaves by which a step that fits its numbers may be off its balance with the price
_DEAREST = 40.0  # octaves above an error as large as the weights: nothing is kept there
_LARGEST_STEP = 2.0**120  # of which float32 has all multiples
_HEADER, _LEAF = 20, 13  # bytes of a file, and of each leaf, besides its numbers


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Setting:
    """Attributes:
    rounded: of each leaf, whether it is only rounded, and stays an array.
    norms: of each leaf the number of the norm that it belongs to; None if it is a kernel, or what is added to a kernel's sums.
    """

    rounded: tuple[bool, ...]
    norms: tuple[int | None, ...]

    @classmethod
    def of(cls, plans: Sequence[LeafPlan]) -> Setting:
        modules = [p.path.rpartition("/")[0] for p in plans]
        with_kernels = {m for m, p in zip(modules, plans, strict=True) if not p.rounded}
        norms = tuple(None if m in with_kernels else modules.index(m) for m in modules)
        return cls(tuple(p.rounded for p in plans), norms)


class SizedPlan(NamedTuple):
    """The numbers of the last plan, as far as they are needed to make the next.

    Attributes:
      sized_multiplier: [] float32, price of a bit.
      sized_units: [leaves] float32, powers of two by which weights are divided.
      sized_weights: [leaves] float32, what a squared error in that unit counts.
      sized_finest: [leaves] float32, steps at which the largest number is that of the largest weight.
      sized_steps: [leaves] float32, of bfloat16's digits.
      sized_lines: of each leaf, `projection.lines.Lines`.
      sized_prices: [leaves, CLASSES, NUMBERS] float32, bits of each number.
      sized_nbytes: [] uint32, the budget at the end of its schedule.
      sized_besides: [] uint32, the part of it that numbers cannot have.
      sized_bits_used: [] float32, of the numbers, as of the last plan; estimated.
      sized_density: [] float32, nonzeros by weights of the kernels, as of the last plan.
      sized_setting: static.
    """

    sized_multiplier: jax.Array
    sized_units: jax.Array
    sized_weights: jax.Array
    sized_finest: jax.Array
    sized_steps: jax.Array
    sized_lines: tuple[Lines, ...]
    sized_prices: jax.Array
    sized_nbytes: jax.Array
    sized_besides: jax.Array
    sized_bits_used: jax.Array
    sized_density: jax.Array
    sized_setting: Setting

    def assign(self, weights: Sequence[jax.Array], curvature: Curvature) -> list[jax.Array]:
        del curvature
        pairs = zip(self.numbers(weights), self.sized_steps, strict=True)
        return [numbers.astype(jnp.float32) * step for numbers, step in pairs]

    def codes(
        self, weights: Sequence[jax.Array], dtypes: Sequence[str], curvature: Curvature
    ) -> list[Any]:
        """`Codes` of kernels, arrays of the others; about as large as the budget."""
        del curvature
        coded = []
        for numbers, step, is_rounded, dtype in zip(
            self.numbers(weights), self.sized_steps, self.sized_setting.rounded, dtypes, strict=True
        ):
            coded.append(
                _array(numbers, step, dtype) if is_rounded else _codes(numbers, step, dtype)
            )
        return coded

    def numbers(self, weights: Sequence[jax.Array]) -> list[jax.Array]:
        """[...] int16 for each leaf: those of least error plus price."""

        def choose(
            w: jax.Array,
            unit: jax.Array,
            step: jax.Array,
            lines: Lines,
            prices: jax.Array,
            multiplier: jax.Array,
        ) -> jax.Array:
            return cheapest(w / unit, step / unit, classes_of(lines), prices, multiplier, _MOST)

        return each_lying_like(
            choose,
            weights,
            self.sized_units,
            self.sized_steps,
            self.sized_lines,
            self.sized_prices,
            self.sized_multiplier / self.sized_weights,
        )


def at_price(plan: SizedPlan, weights: Sequence[jax.Array], octaves: jax.Array) -> SizedPlan:
    """The plan with a price of a bit so many octaves higher.

    Close to its own it keeps its steps: the params have been trained at their multiples, and at those of another step would be as
    far off as if they had not. Far from it, it is made anew: its prices say nothing there.
    """
    away = jnp.abs(octaves)
    is_far, plan = away > _NEAR, _weighted(plan, weights)
    steps = jnp.where(away > _CLOSE, _fitted(_dearer(plan, octaves), weights), plan.sized_steps)
    plan = plan._replace(sized_steps=steps)
    plan = _begun(plan, plan.sized_multiplier * jnp.exp2(octaves), is_far)

    def again(_: int, plan: SizedPlan) -> SizedPlan:
        return _learned(plan, weights)[0]

    return lax.fori_loop(0, jnp.where(is_far, _FIRST_ROUNDS, 0), again, plan)


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
            sized_nbytes=jnp.asarray(nbytes, jnp.uint32),
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
        plan = _weighted(plan, weights)
        is_first = count == 0
        size = max(sum(w.size for w in weights), 1)
        start = jnp.exp2(-2 * jnp.minimum(limit / size, _FINEST))
        plan = _begun(plan, jnp.where(is_first, start, plan.sized_multiplier), is_first)
        octaves = jnp.where(is_first, _FIRST_OCTAVES, _OCTAVES)
        halvings = jnp.where(is_first, _FIRST_HALVINGS, _HALVINGS)

        def improve(_: int, plan: SizedPlan) -> SizedPlan:
            plan, beyond = _learned(plan, weights)
            return _searched(plan, beyond, weights, limit, octaves, halvings)

        return lax.fori_loop(0, jnp.where(is_first, _FIRST_ROUNDS, 1), improve, plan)

    return Planner(init, replan, rounds=True)


def _no_lines(shape: tuple[int, ...]) -> Lines:
    return Lines(jnp.zeros([], jnp.int32), tuple(jnp.zeros(n, jnp.int32) for n in shape))


def _weighted(plan: SizedPlan, weights: Sequence[jax.Array]) -> SizedPlan:
    """With units and weights of the errors as of these weights."""
    norms, alike = plan.sized_setting.norms, dict.fromkeys(plan.sized_setting.norms)
    group_of = np.array([list(alike).index(norm) for norm in norms])
    is_norm = np.array([norm is not None for norm in alike])

    def largest(w: jax.Array) -> jax.Array:
        return jnp.max(jnp.abs(w), initial=0)

    def squares(w: jax.Array, unit: jax.Array) -> jax.Array:
        return jnp.sum((w / unit) ** 2)

    most = jnp.stack(each_replicated(largest, weights))
    units = power_of_two(jnp.zeros(len(alike), jnp.float32).at[group_of].max(most))[group_of]
    sums = jnp.stack(each_replicated(squares, weights, units))
    sizes = np.maximum([w.size for w in weights], 1).astype(np.float32)
    no_groups = jnp.zeros(len(alike), jnp.float32)
    of_norms = no_groups.at[group_of].max(sums / sizes) / _STRICTER
    of_kernels = no_groups.at[group_of].add(sums) / no_groups.at[group_of].add(sizes)
    means = jnp.where(is_norm, of_norms, of_kernels)
    errors = 1 / jnp.where(means > 0, means, 1)
    return plan._replace(
        sized_units=units, sized_weights=errors[group_of], sized_finest=most / _MOST
    )


def _begun(plan: SizedPlan, multiplier: jax.Array, anew: jax.Array) -> SizedPlan:
    """At this price of a bit. Anew: with steps in balance with it, and no prices, so that numbers are the nearest."""
    plan = plan._replace(sized_multiplier=multiplier)
    return plan._replace(
        sized_steps=jnp.where(anew, _balanced(plan), plan.sized_steps),
        sized_prices=jnp.where(anew, 0, plan.sized_prices),
    )


def _balanced(plan: SizedPlan) -> jax.Array:
    scale = jnp.sqrt(plan.sized_multiplier / plan.sized_weights)
    return _short(plan, plan.sized_units * BALANCE * scale)


def _short(plan: SizedPlan, steps: jax.Array) -> jax.Array:
    """Of bfloat16's digits, which a file has, and in bounds."""
    bounded = jnp.minimum(jnp.maximum(steps, plan.sized_finest), _LARGEST_STEP)
    return bounded.astype(jnp.bfloat16).astype(jnp.float32)


def _fitted(plan: SizedPlan, weights: Sequence[jax.Array]) -> jax.Array:
    """[leaves]: steps of least error for the plan's own numbers."""

    def of_leaf(w: jax.Array, unit: jax.Array, numbers: jax.Array) -> tuple[jax.Array, jax.Array]:
        known = numbers.astype(jnp.float32)
        return jnp.sum(known * (w / unit)), jnp.sum(known * known)

    found = each_replicated(of_leaf, weights, plan.sized_units, plan.numbers(weights))
    return _best_steps(plan, *(jnp.stack(sums) for sums in zip(*found, strict=True)))


def _best_steps(plan: SizedPlan, products: jax.Array, squares: jax.Array) -> jax.Array:
    """products: [leaves], of numbers and weights; squares: [leaves], of numbers.

    Near their balance with the price: steps that are much too long for it fit the numbers that they have led to as well.
    """
    balanced, most = _balanced(plan), 2**_OFF_BALANCE
    best = plan.sized_units * products / jnp.where(squares > 0, squares, 1)
    bounded = jnp.clip(best, balanced / most, balanced * most)
    return jnp.where(squares > 0, _short(plan, bounded), balanced)


def _learned(plan: SizedPlan, weights: Sequence[jax.Array]) -> tuple[SizedPlan, jax.Array]:
    """The plan with lines, prices and steps of its own numbers, and what the codec takes beyond their prices, in bits."""

    def of_leaf(
        w: jax.Array, unit: jax.Array, numbers: jax.Array
    ) -> tuple[Lines, jax.Array, jax.Array, jax.Array]:
        fine = lines_of(numbers)
        coarse = tuple(2 * jnp.round(e / 2).astype(jnp.int32) for e in fine.exponents)
        lines, known = Lines(fine.base, coarse), numbers.astype(jnp.float32)
        counts = counts_of(numbers, classes_of(lines))
        return lines, counts, jnp.sum(known * (w / unit)), jnp.sum(known * known)

    found = each_replicated(of_leaf, weights, plan.sized_units, plan.numbers(weights))
    lines, each_counts, products, squares = zip(*found, strict=True)
    counts = jnp.stack(each_counts)
    prices = jax.vmap(prices_of)(counts)
    beyond = jnp.sum(jax.vmap(learned_bits)(counts)) - jnp.sum(counts * prices)
    steps = _best_steps(plan, jnp.stack(products), jnp.stack(squares))
    plan = plan._replace(sized_lines=lines, sized_prices=prices, sized_steps=steps)
    return plan, beyond + lines_bits(lines)


class _Search(NamedTuple):
    """Attributes:
    low, high: [] float32, log2 of prices of a bit; at `high` the budget holds, if at any.
    bits, density: [] float32, of the numbers at the price tried last.
    """

    low: jax.Array
    high: jax.Array
    bits: jax.Array
    density: jax.Array


def _searched(
    plan: SizedPlan,
    beyond: jax.Array,
    weights: Sequence[jax.Array],
    limit: jax.Array,
    octaves: jax.Array,
    halvings: jax.Array,
) -> SizedPlan:
    """At the lowest price of a bit within so many octaves at which the budget holds, with what can be logged of it."""
    at = jnp.log2(plan.sized_multiplier)
    least, most = _prices_of_use(plan)

    def attempt(i: jax.Array, last: _Search) -> _Search:
        # The last attempt is at the price that was found, for what it takes there.
        price = jnp.where(i < halvings, (last.low + last.high) / 2, last.high)
        tried = _dearer(plan, price - at)
        numbers = tried.numbers(weights)
        bits = _bits(tried, numbers) + beyond
        low, high = (
            jnp.where(bits <= limit, last.low, price),
            jnp.where(bits <= limit, price, last.high),
        )
        return _Search(low, high, bits, _density(plan, numbers))

    nothing = jnp.float32(0)
    low, high = (jnp.clip(end, least, most) for end in (at - octaves, at + octaves))
    first = _Search(low, high, nothing, nothing)
    found = lax.fori_loop(0, halvings + 1, attempt, first)
    plan = _dearer(plan, found.high - at)
    return plan._replace(sized_bits_used=found.bits, sized_density=found.density)


def _prices_of_use(plan: SizedPlan) -> tuple[jax.Array, jax.Array]:
    """log2 of the price of a bit at which each leaf has its finest step, and of one at which nothing is kept."""
    scale = plan.sized_finest / (BALANCE * plan.sized_units)
    each = jnp.log2(scale**2 * plan.sized_weights)
    finest = jnp.min(each, initial=_DEAREST, where=plan.sized_finest > 0)
    return finest, jnp.float32(_DEAREST)


def _dearer(plan: SizedPlan, octaves: jax.Array) -> SizedPlan:
    """With a price of a bit so many octaves higher, and steps in the same balance with it."""
    return plan._replace(
        sized_multiplier=plan.sized_multiplier * jnp.exp2(octaves),
        sized_steps=_short(plan, plan.sized_steps * jnp.exp2(octaves / 2)),
    )


def _bits(plan: SizedPlan, numbers: Sequence[jax.Array]) -> jax.Array:
    """Of numbers at this plan's prices."""

    def of_leaf(numbers: jax.Array, lines: Lines, prices: jax.Array) -> jax.Array:
        return jnp.sum(taken(numbers, classes_of(lines), prices))

    each = each_replicated(of_leaf, numbers, plan.sized_lines, plan.sized_prices)
    return jnp.sum(jnp.stack(each))


def _density(plan: SizedPlan, numbers: Sequence[jax.Array]) -> jax.Array:
    """Nonzeros by weights of the kernels."""

    def nonzeros(numbers: jax.Array) -> jax.Array:
        return jnp.sum(numbers != 0, dtype=jnp.float32)

    pairs = zip(numbers, plan.sized_setting.rounded, strict=True)
    kernels = [q for q, is_rounded in pairs if not is_rounded]
    some = sum(each_replicated(nonzeros, kernels), jnp.float32(0))
    return jnp.asarray(some) / max(sum(q.size for q in kernels), 1)


def _array(numbers: jax.Array, step: jax.Array, dtype: str) -> jax.Array:
    return (numbers.astype(jnp.float32) * step).astype(dtype)


def _codes(numbers: jax.Array, step: jax.Array, dtype: str) -> Codes:
    @replicated
    def used(numbers: jax.Array) -> jax.Array:
        """[LEVELS] bool, from -LEVELS // 2 on; zero is no value."""
        # Counts of shards can be added, where flags would be set from all numbers in one place.
        counts = jnp.zeros(LEVELS, jnp.int32).at[numbers.astype(jnp.int32) + LEVELS // 2].add(1)
        return (counts > 0).at[LEVELS // 2].set(False)

    values = jnp.arange(-(LEVELS // 2), LEVELS // 2 + 1, dtype=jnp.float32) * step
    code_of, codebook, bits = numbered(values, used(numbers))

    def look_up(numbers: jax.Array, code_of: jax.Array) -> jax.Array:
        return code_of[numbers.astype(jnp.int32) + LEVELS // 2]

    return Codes(lying_like(numbers, look_up)(numbers, code_of), codebook, bits, dtype)
