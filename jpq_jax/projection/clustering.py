"""Clustering alone: the projection onto so many values of each leaf (Ye et al., 2018, arXiv 1811.01907).

With values refitted as they are, and pruned weights held, it is also the fine-tuning that Yang et al., CVPR 2020, end with.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jpq_jax.projection.numbering import numbered
from jpq_jax.projection.planner import Planner
from jpq_jax.projection.published import Quantization, quantize_at, snap, to_codes
from jpq_jax.projection.sketching import Curvature
from jpq_jax.sharding import lying_like, replicated
from jpq_jax.sketch.grids import MOST_OCTAVES_BITS, Grid, fit_grid, fit_values
from jpq_jax.sketch.histogram import sketch
from jpq_jax.vocabulary import LEVELS, MAX_BITS, Codes, LeafPlan, Treatment

GridName = Literal["codebook", "uniform", "power-of-two"]
_GRIDS = ("codebook", "uniform", "power-of-two")


class ClusteredPlan(NamedTuple):
    """Attributes:
    clustered_levels: [leaves, 257] float32, ascending; unused ones are 0, or infinite where no weight may go to 0.
    clustered_bits: [leaves] int32 in 1..8.
    """

    clustered_levels: jax.Array
    clustered_bits: jax.Array

    def assign(self, weights: Sequence[jax.Array], curvature: Curvature) -> list[jax.Array]:
        del curvature
        return snap(weights, self.clustered_levels)

    def codes(
        self, weights: Sequence[jax.Array], dtypes: Sequence[str], curvature: Curvature
    ) -> list[Codes]:
        del curvature
        return to_codes(weights, Quantization(self.clustered_levels, self.clustered_bits), dtypes)


def clustering(
    bits: int | Sequence[int] | Mapping[str, int],
    *,
    grid: GridName = "codebook",
    zero: bool = True,
    refit: bool = True,
) -> Planner:
    """Each nonzero weight at the nearest of 2**b values; for `admm_to` or `latent`.

        min_Q sum_i (w_i - q_i)^2   subject to   at most 2**b_l values beside 0 in leaf l,   q_i = 0 where w_i = 0

    to a local minimum. A zero stays zero, so after pruning the support is kept, or shrinks; hold the zeros of the weights
    that are trained by `mask_updates`.

    Args:
      bits: of every compressed leaf, of each in JAX's order, or of each by its path; 1 to 8, to 6 for powers of two. `admm`
        leaves them in its state, as `optax.tree.get(state, "leaf_bits")`.
      grid: "codebook", any values, by k-means; "uniform", equally spaced ones; "power-of-two", plus and minus 2**k for
        2**(b - 1) consecutive k.
      zero: whether nonzero weights may go to 0, too; if not, a leaf without zeros takes b bits a weight, and equally spaced
        values are the odd multiples of half a step.
      refit: whether the values are fitted anew whenever the plan is made anew, or only the first time.

    Raises:
      ValueError: bits out of range, or no such grid; in `init`, bits that do not fit the leaves.
    """
    if grid not in _GRIDS:
        raise ValueError(f"clustering: got grid={grid!r}, expected one of {_GRIDS}")
    widths = _widths(bits)
    most = MOST_OCTAVES_BITS if grid == "power-of-two" else MAX_BITS
    if not widths or not all(1 <= b <= most and b == int(b) for b in widths):
        raise ValueError(f"clustering: got bits={bits}, expected 1 to {most}")

    def init(
        leaves: Sequence[jax.Array], plans: Sequence[LeafPlan], *, curved: bool
    ) -> ClusteredPlan:
        if curved or any(p.treatment != Treatment() for p in plans):
            raise ValueError(
                "clustering: knows no curvature, and no other treatment than Treatment()"
            )
        each = _of_leaves(bits, [p.path for p in plans])
        empty = jnp.zeros((len(leaves), LEVELS), jnp.float32)
        return ClusteredPlan(empty, jnp.asarray(each, jnp.int32))

    def replan(
        weights: Sequence[jax.Array], plan: ClusteredPlan, count: jax.Array, curvature: Curvature
    ) -> ClusteredPlan:
        del curvature
        levels = _fitted(weights, plan.clustered_bits, grid, zero)
        if not refit:
            levels = jnp.where(count == 0, levels, plan.clustered_levels)
        return plan._replace(clustered_levels=levels)

    return Planner(init, replan)


def codes_of_clusters(w: jax.Array, cluster_of: jax.Array, dtype: str) -> Codes:
    """Of weights that are equal within each cluster: cluster k > 0 of those there are, 0 = pruned.

    w: [...] float32; cluster_of: [...] int16, at most 256.
    """

    @replicated
    def values(w: jax.Array, cluster_of: jax.Array) -> tuple[jax.Array, jax.Array]:
        place = cluster_of.astype(jnp.int32)
        none = jnp.full(LEVELS, -jnp.inf, jnp.float32)
        found = none.at[place].max(w)
        return jnp.where(jnp.isfinite(found), found, 0), jnp.isfinite(found).at[0].set(False)

    found, used = values(w, cluster_of)
    used &= found != 0
    first = _first_of_equals(jnp.where(used, found, jnp.inf))
    code_of, codebook, bits = numbered(found, used & (first == jnp.arange(LEVELS)))
    code_of = code_of[first]
    look_up = lying_like(cluster_of, lambda table, cluster: table[cluster.astype(jnp.int32)])
    return Codes(look_up(code_of, cluster_of), codebook, bits, dtype)


def _first_of_equals(values: jax.Array) -> jax.Array:
    """For each the place of one that stands for all that are equal to it: clusters may meet on their way."""
    order = jnp.argsort(values)
    ordered = values[order]
    is_new = jnp.append(True, ordered[1:] != ordered[:-1])
    leader = lax.cummax(jnp.where(is_new, jnp.arange(LEVELS), 0))
    return jnp.zeros(LEVELS, jnp.int32).at[order].set(order[leader].astype(jnp.int32))


def _widths(bits: int | Sequence[int] | Mapping[str, int]) -> list[int]:
    if isinstance(bits, Mapping):
        return list(bits.values())
    return [bits] if isinstance(bits, int | np.number | float) else list(bits)


def _of_leaves(bits: int | Sequence[int] | Mapping[str, int], paths: list[str]) -> list[int]:
    """The bits of each leaf."""
    widths = _widths(bits)
    if not isinstance(bits, Sequence | Mapping | np.ndarray):
        return widths * len(paths)
    if not paths:  # optax asks with no leaves what is like the params
        return []
    if isinstance(bits, Mapping):
        if bits.keys() != set(paths):
            raise ValueError(
                f"clustering: got bits for {sorted(bits)}, expected for each of {sorted(paths)}"
            )
        return [bits[path] for path in paths]
    if len(widths) != len(paths):
        raise ValueError(
            f"clustering: got {len(widths)} bit-widths, expected one for each of {len(paths)} leaves"
        )
    return widths


def _fitted(weights: Sequence[jax.Array], bits: jax.Array, grid: GridName, zero: bool) -> jax.Array:
    """[leaves, 257]."""
    if grid == "codebook" and zero:
        return quantize_at(weights, bits).levels
    fit = fit_values if grid == "codebook" else functools.partial(fit_grid, Grid(grid, zero))
    return jnp.stack([fit(sketch(w), bits[i]) for i, w in enumerate(weights)])
