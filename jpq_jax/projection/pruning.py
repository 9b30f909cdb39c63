"""Pruning alone: the projection onto so many nonzeros, of each leaf or of all together (Ye et al., 2018, arXiv 1811.01907)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jpq_jax.allocation.knapsack import Cut, counts_of, kept_by, magnitude_of
from jpq_jax.allocation.largest import largest_of_all, largest_of_each
from jpq_jax.plan import scheduled
from jpq_jax.projection.planner import Planner
from jpq_jax.projection.sketching import Curvature
from jpq_jax.sharding import lying_like
from jpq_jax.vocabulary import LeafPlan, Treatment

_MOST = 2**32 - 1  # weights, which are counted in uint32


class PrunedPlan(NamedTuple):
    """Attributes:
    pruned_cut: by leaf, from which magnitude on weights are kept.
    pruned_most: [leaves] uint32, how many are kept at the end of the schedule; [1] for how many of all leaves.
    pruned_density: [] float32, nonzeros by weights, as of the last plan.
    """

    pruned_cut: Cut
    pruned_most: jax.Array
    pruned_density: jax.Array

    def assign(self, weights: Sequence[jax.Array], curvature: Curvature) -> list[jax.Array]:
        masks = kept_by(self.pruned_cut, _magnitudes(weights, curvature))
        return [jnp.where(mask, w, 0) for mask, w in zip(masks, weights, strict=True)]

    def codes(
        self, weights: Sequence[jax.Array], dtypes: Sequence[str], curvature: Curvature
    ) -> list[jax.Array]:
        """Arrays, with zeros for what is pruned."""
        magnitudes = _magnitudes(weights, curvature)
        masks = kept_by(_largest(magnitudes, self.pruned_most), magnitudes)
        return [
            jnp.where(mask, w, 0).astype(dtype)
            for mask, w, dtype in zip(masks, weights, dtypes, strict=True)
        ]


def pruning(
    keep: float | Mapping[str, float], *, keep_schedule: optax.Schedule | None = None
) -> Planner:
    """The weights of largest magnitude; for `admm_to`, `latent` or `project_params`.

        min_Q sum_i h_i (w_i - q_i)^2   subject to   nnz(Q) <= keep x (number of weights)

    over all compressed leaves together, so that each layer's share is found, or over each leaf by itself. Numbers of
    weights are rounded up, as in the papers. Of equal ones the first are kept: of the earlier leaf, then in row-major order.

    Args:
      keep: share of the weights, 0 to 1; or for every compressed leaf, by its path, its own.
      keep_schedule: factor >= 1 on the numbers over updates, such as a ramp, or a staircase for progressive pruning, that
        ends at 1. Values below 1 count as 1.

    Raises:
      ValueError: a share out of range; in `init`, shares that do not fit the leaves, another treatment than `Treatment()`, or more
        than 2**32 - 1 weights.
    """
    shares = dict(keep) if isinstance(keep, Mapping) else {"keep": keep}
    for path, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"pruning: {path}: got {share}, expected a share from 0 to 1")

    def init(leaves: Sequence[jax.Array], plans: Sequence[LeafPlan], *, curved: bool) -> PrunedPlan:
        del curved
        sizes = _checked_sizes(leaves, plans)
        if isinstance(keep, Mapping):
            most = _of_each(shares, dict(zip((p.path for p in plans), sizes, strict=True)))
        else:
            most = [rounded_up(keep, sum(sizes))]
        none = jnp.zeros(len(leaves), jnp.int32)
        cut = Cut(none, jnp.copy(none), jnp.zeros(len(leaves), jnp.uint32))
        return PrunedPlan(cut, jnp.asarray(np.array(most, np.uint32)), jnp.zeros([], jnp.float32))

    def replan(
        weights: Sequence[jax.Array], plan: PrunedPlan, count: jax.Array, curvature: Curvature
    ) -> PrunedPlan:
        magnitudes = _magnitudes(weights, curvature)
        most = scheduled(plan.pruned_most, keep_schedule, count)
        cut = _largest(magnitudes, most)
        some = jnp.sum(counts_of(kept_by(cut, magnitudes)), dtype=jnp.uint32)
        size = max(sum(w.size for w in weights), 1)
        return plan._replace(pruned_cut=cut, pruned_density=some.astype(jnp.float32) / size)

    return Planner(init, replan)


def _checked_sizes(leaves: Sequence[jax.Array], plans: Sequence[LeafPlan]) -> list[int]:
    for p in plans:
        if p.treatment != Treatment():
            raise ValueError(f"pruning: leaf {p.path!r}: got {p.treatment}, expected {Treatment()}")
    sizes = [math.prod(leaf.shape) for leaf in leaves]
    if sum(sizes) > _MOST:
        raise ValueError(f"pruning: got {sum(sizes)} weights, expected at most {_MOST}")
    return sizes


def _of_each(shares: Mapping[str, float], sizes: Mapping[str, int]) -> list[int]:
    """How many weights of each leaf."""
    if sizes and shares.keys() != sizes.keys():  # optax asks with no leaves what is like the params
        raise ValueError(
            f"pruning: got shares for {sorted(shares)}, expected one for each of {sorted(sizes)}"
        )
    return [rounded_up(shares[path], size) for path, size in sizes.items()]


def rounded_up(share: float, size: int) -> int:
    """Of the share as it is written: 0.07 of 100 are 7."""
    return math.ceil(round(share * size, 6))


def _largest(magnitudes: Sequence[jax.Array], most: jax.Array) -> Cut:
    if most.shape == (1,):
        return largest_of_all(magnitudes, most[0])
    return largest_of_each(magnitudes, most)


def _magnitudes(weights: Sequence[jax.Array], curvature: Curvature) -> list[jax.Array]:
    def of_leaf(w: jax.Array, cost: jax.Array) -> jax.Array:
        return magnitude_of(w * jnp.sqrt(cost))

    if curvature is None:
        return [magnitude_of(w) for w in weights]
    return [lying_like(w, of_leaf)(w, h) for w, h in zip(weights, curvature, strict=True)]
