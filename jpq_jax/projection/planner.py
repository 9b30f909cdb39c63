"""What a transformation needs of a projection: a plan, made now and then, and codes by it, at every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
from jax import lax

from jpq_jax.projection.sketching import Curvature
from jpq_jax.vocabulary import Codes


class Plan(Protocol):
    """A NamedTuple of small arrays that says, for every compressed leaf, which value each weight goes to.

    weights: float32; curvature: see `sketching.Curvature`.
    """

    def assign(self, weights: Sequence[jax.Array], curvature: Curvature) -> list[jax.Array]:
        """The feasible weights."""
        ...

    def codes(
        self, weights: Sequence[jax.Array], dtypes: Sequence[str], curvature: Curvature
    ) -> Sequence[Codes | jax.Array]:
        """Codes of the weights as they are now, close to what is assigned, exactly within the whole budget in bits; arrays
        of leaves that are only rounded.
        """
        ...


class Planner(NamedTuple):
    """How plans are made. Both functions are pure, and traced into the caller's program.

    Attributes:
      init: (planned leaves, their `LeafPlan`s, curved=) -> the plan before the first; shapes and dtypes are enough.
      replan: (planned leaves in float32, the plan so far, updates so far, curvature) -> a new plan.
      rounds: whether leaves that may lose digits are planned, too, not the compressed ones alone.
    """

    init: Callable[..., Any]
    replan: Callable[[Sequence[jax.Array], Any, jax.Array, Curvature], Any]
    rounds: bool = False


def planned(
    planner: Planner,
    weights: Sequence[jax.Array],
    before: Any,
    count: jax.Array,
    every: int,
    curvature: Curvature = None,
) -> Plan:
    """The plan in force at an update: a new one every so many."""
    return lax.cond(
        count % every == 0,
        lambda: planner.replan(weights, before, count, curvature),
        lambda: before,
    )
