"""The joint projection: support, bit-widths and values of all leaves together, in one sketch pass and one assignment pass."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import core as jax_core

from jpq_jax.allocation.lagrangian import allocate, cold_start
from jpq_jax.allocation.rates import VALUE_BITS, RateName, rate_named
from jpq_jax.allocation.spending import Problem
from jpq_jax.plan import Prepared, Where, prepared, treatments_of, with_compressed
from jpq_jax.projection.coding import codes_by
from jpq_jax.projection.sketching import Sketched, sketched
from jpq_jax.vocabulary import (
    Budget,
    Codes,
    LeafPlan,
    PyTree,
    Treatment,
    check_budget,
    leaves_with_paths,
)

_ROUNDING = np.float32(1 - 2.0**-18)  # of a rate that is no whole number, summed in float32


def project(
    params: PyTree,
    budget: Budget,
    *,
    rate: RateName = "paper",
    curvature: PyTree | None = None,
    plan: Where | Sequence[LeafPlan] = None,
) -> PyTree:
    """Sparse-quantized codes of `params`, support, bit-widths and values chosen together.

    Solves, by a Lagrangian and Lloyd's algorithm, so to a local minimum,

        min_Q sum_i h_i (w_i - q_i)^2   subject to   rate(Q) <= budget

    over the nonzeros of every leaf l, 2**b_l values of each leaf, and b_l in 1..8. The budget is never exceeded; in
    the paper metric it is spent to within the bits of a single weight, or group, where more would help; less is used
    where values come out that no weight takes, so that fewer bits index the others. Of equal weights, or groups, the
    first in row-major order are kept. Weights below 2**-24 of the largest of their leaf are pruned.

    Args:
      params: any pytree of arrays.
      budget: the budget, in bits of the rate.
      rate: "paper", sum_l b_l nnz_l; or "coded", ideal adaptive code length of the codes, positions included, and of
        the values: see `rate_bits`.
      curvature: h, like `params` or with `None` for leaves that are not compressed: what an error of each weight
        costs, at least 0. Adam's second moment, `optax.tree.get(state, "nu")`, or `diagonal_fisher`. It is rounded to
        half octaves, and what is 2**-8 of the largest of its leaf or less counts as that. 1 if None.
      plan: which leaves to compress and how: what `plan_leaves` gives, or takes as `where`.

    Returns:
      The compressed tree: `params` with `Codes` in place of the compressed leaves.

    Raises:
      ValueError: nothing to compress, weights that are not finite, or a curvature that does not fit them.
    """
    rate_named(rate)
    check_budget("project", budget)
    found = prepared(params, budget, plan, capped=rate == "paper")
    costs = _compressed_curvature(curvature, found)
    setting = Setting(treatments_of(found.plan), rate)
    codes = _project(found.leaves, costs, jnp.uint32(found.limit), setting, found.dtypes)
    return with_compressed(params, found.plan, codes)


def _compressed_curvature(curvature: PyTree | None, found: Prepared) -> list[jax.Array] | None:
    """Of the compressed leaves, checked.

    Raises:
      ValueError: naming the leaf whose curvature is missing, of another shape, negative or not finite.
    """
    if curvature is None:
        return None
    given = dict(leaves_with_paths(curvature))
    costs = []
    for p, leaf in zip((p for p in found.plan if p.compress), found.leaves, strict=True):
        cost = given.get(p.path)
        if cost is None or jnp.shape(cost) != leaf.shape:
            got = "none" if cost is None else f"one of shape {jnp.shape(cost)}"
            raise ValueError(f"curvature of leaf {p.path!r}: got {got}, expected {leaf.shape}")
        cost = jnp.asarray(cost, jnp.float32)
        if not isinstance(cost, jax_core.Tracer) and not bool(
            jnp.all(jnp.isfinite(cost) & (cost >= 0))
        ):
            raise ValueError(f"curvature of leaf {p.path!r}: expected finite numbers of at least 0")
        costs.append(cost)
    return costs


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Setting:
    """What does not change: how each compressed leaf is treated, and what the budget counts."""

    treatments: tuple[Treatment, ...]
    rate: RateName

    def problem(self, sketches: Sketched, limit: jax.Array) -> Problem:
        rate = rate_named(self.rate)
        if self.rate != "paper":
            scales = sum(
                view.norms.size
                for view, t in zip(sketches.views, self.treatments, strict=True)
                if t.scale == "channel"
            )
            limit = limit.astype(jnp.float32) * _ROUNDING - VALUE_BITS * scales
        return Problem(sketches.leaves, sketches.scale, limit, rate)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _project(
    leaves: list[jax.Array],
    curvature: list[jax.Array] | None,
    limit: jax.Array,
    setting: Setting,
    dtypes: tuple[str, ...],
) -> list[Codes]:
    weights = [leaf.astype(jnp.float32) for leaf in leaves]
    sketches = sketched(weights, setting.treatments, curvature)
    problem = setting.problem(sketches, limit)
    fit, _ = allocate(problem, cold_start(len(leaves)))
    return codes_by(fit, problem, sketches, setting.treatments, dtypes)
