"""The price of a bit and the steps that are in balance with it: a plan is made from the one before, at the price at which a budget holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jpq_jax.projection.alike import each_replicated
from jpq_jax.projection.lines import (
    BALANCE,
    Lines,
    classes_of,
    counts_of,
    learned_bits,
    lines_bits,
    lines_of,
    prices_of,
    taken,
)
from jpq_jax.projection.sized_plan import MOST, SizedPlan
from jpq_jax.sketch.histogram import power_of_two

# How much more an error in a norm counts than one in kernels, both relative to their own.
_STRICTER = 16.0
# Octaves by which a step that fits its numbers may be off its balance with the price.
_OFF_BALANCE = 0.125
_DEAREST = 40.0  # octaves above an error as large as the weights: nothing is kept there
_LARGEST_STEP = 2.0**120  # of which float32 has all multiples


def weighted(plan: SizedPlan, weights: Sequence[jax.Array]) -> SizedPlan:
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
        sized_units=units, sized_weights=errors[group_of], sized_finest=most / MOST
    )


def begun(plan: SizedPlan, multiplier: jax.Array, anew: jax.Array) -> SizedPlan:
    """At this price of a bit. Anew: with steps in balance with it, and no prices, so that numbers are the nearest."""
    plan = plan._replace(sized_multiplier=multiplier)
    return plan._replace(
        sized_steps=jnp.where(anew, _balanced(plan), plan.sized_steps),
        sized_prices=jnp.where(anew, 0, plan.sized_prices),
    )


def fitted(plan: SizedPlan, weights: Sequence[jax.Array]) -> jax.Array:
    """[leaves]: steps of least error for the plan's own numbers."""

    def of_leaf(w: jax.Array, unit: jax.Array, numbers: jax.Array) -> tuple[jax.Array, jax.Array]:
        known = numbers.astype(jnp.float32)
        return jnp.sum(known * (w / unit)), jnp.sum(known * known)

    found = each_replicated(of_leaf, weights, plan.sized_units, plan.numbers(weights))
    return _best_steps(plan, *(jnp.stack(sums) for sums in zip(*found, strict=True)))


def _balanced(plan: SizedPlan) -> jax.Array:
    scale = jnp.sqrt(plan.sized_multiplier / plan.sized_weights)
    return _short(plan, plan.sized_units * BALANCE * scale)


def _short(plan: SizedPlan, steps: jax.Array) -> jax.Array:
    """Of bfloat16's digits, which a file has, and in bounds."""
    bounded = jnp.minimum(jnp.maximum(steps, plan.sized_finest), _LARGEST_STEP)
    return bounded.astype(jnp.bfloat16).astype(jnp.float32)


def _best_steps(plan: SizedPlan, products: jax.Array, squares: jax.Array) -> jax.Array:
    """products: [leaves], of numbers and weights; squares: [leaves], of numbers.

    Near their balance with the price: steps that are much too long for it fit the numbers that they have led to as well.
    """
    balanced, most = _balanced(plan), 2**_OFF_BALANCE
    best = plan.sized_units * products / jnp.where(squares > 0, squares, 1)
    bounded = jnp.clip(best, balanced / most, balanced * most)
    return jnp.where(squares > 0, _short(plan, bounded), balanced)


def learned(plan: SizedPlan, weights: Sequence[jax.Array]) -> tuple[SizedPlan, jax.Array]:
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


def searched(
    plan: SizedPlan,
    beyond: jax.Array,
    weights: Sequence[jax.Array],
    limit: jax.Array,
    octaves: jax.Array,
    halvings: jax.Array,
) -> SizedPlan:
    """At the lowest price of a bit within so many octaves at which the budget holds, with what can be logged of it."""
    at = jnp.log2(plan.sized_multiplier)
    least = _least_of_use(plan)

    def attempt(i: jax.Array, last: _Search) -> _Search:
        # The last attempt is at the price that was found, for what it takes there.
        price = jnp.where(i < halvings, (last.low + last.high) / 2, last.high)
        tried = dearer(plan, price - at)
        numbers = tried.numbers(weights)
        bits = _bits(tried, numbers) + beyond
        low, high = (
            jnp.where(bits <= limit, last.low, price),
            jnp.where(bits <= limit, price, last.high),
        )
        return _Search(low, high, bits, _density(plan, numbers))

    nothing = jnp.float32(0)
    low, high = (jnp.clip(end, least, _DEAREST) for end in (at - octaves, at + octaves))
    first = _Search(low, high, nothing, nothing)
    found = lax.fori_loop(0, halvings + 1, attempt, first)
    plan = dearer(plan, found.high - at)
    return plan._replace(sized_bits_used=found.bits, sized_density=found.density)


def _least_of_use(plan: SizedPlan) -> jax.Array:
    """log2 of the price of a bit at which each leaf has its finest step."""
    scale = plan.sized_finest / (BALANCE * plan.sized_units)
    each = jnp.log2(scale**2 * plan.sized_weights)
    finest = jnp.min(each, initial=jnp.inf, where=jnp.isfinite(each))  # not of zeros, nor of NaN
    return jnp.where(jnp.isfinite(finest), finest, -_DEAREST)


def dearer(plan: SizedPlan, octaves: jax.Array) -> SizedPlan:
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
