"""What a transformation needs of a projection: a plan, made now and then, and codes by it, at every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
from jax import lax

from jpq_jax.vocabulary import Codes


class Plan(Protocol):
    """A NamedTuple of small arrays that says, for every compressed leaf, which value each weight goes to."""

    def assign(self, weights: Sequence[jax.Array]) -> list[jax.Array]:
        """The feasible weights. weights: float32."""
        ...

    def codes(self, weights: Sequence[jax.Array], dtypes: Sequence[str]) -> list[Codes]:
        """The same as codes, exactly within the budget."""
        ...


class Planner(NamedTuple):
    """How plans are made. Both functions are pure, and traced into the caller's program.

    Attributes:
      init: (compressed leaves) -> the plan before the first; shapes and dtypes are enough.
      replan: (compressed leaves in float32, the plan so far, updates so far) -> a new plan.
    """

    init: Callable[[Sequence[Any]], Any]
    replan: Callable[[Sequence[jax.Array], Any, jax.Array], Any]


def planned(
    planner: Planner, weights: Sequence[jax.Array], before: Any, count: jax.Array, every: int
) -> Plan:
    """The plan in force at an update: a new one every so many."""
    return lax.cond(
        count % every == 0, lambda: planner.replan(weights, before, count), lambda: before
    )
