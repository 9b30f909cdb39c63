"""A plan of whole multiples of a step for each leaf, at the prices of the codec, as a planner's state."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jpq_jax.names import module_and_kind
from jpq_jax.projection.alike import each_lying_like
from jpq_jax.projection.lines import Lines, cheapest, classes_of
from jpq_jax.projection.numbering import numbered
from jpq_jax.projection.sketching import Curvature
from jpq_jax.sharding import lying_like, replicated
from jpq_jax.vocabulary import LEVELS, Codes, LeafPlan

MOST = 127  # the largest number: as many values as `Codes` have


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
        modules = [module_and_kind(p.path)[0] for p in plans]
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
            return cheapest(w / unit, step / unit, classes_of(lines), prices, multiplier, MOST)

        return each_lying_like(
            choose,
            weights,
            self.sized_units,
            self.sized_steps,
            self.sized_lines,
            self.sized_prices,
            self.sized_multiplier / self.sized_weights,
        )


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
