"""ADMM under one budget for sparsity and quantization together, as an optax transformation.

    min_W loss(W)   subject to   W = V,   sum_l b(V_l) nnz(W_l) <= S

after Yang et al., CVPR 2020 (arXiv 1910.05897).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jpq_jax.plan import (
    Where,
    capacity,
    check_published,
    compressed_leaves,
    plan_leaves,
    scheduled,
    with_compressed,
)
from jpq_jax.projection.published import nonzeros, quantize, snap, sparsify
from jpq_jax.transforms.leaves import (
    check_every,
    check_strength,
    check_update,
    check_whole,
    differences,
    float_zeros,
    floats,
    refilled,
    value_at,
    where_compressed,
)
from jpq_jax.transforms.penalty import gradient_penalty, proximal_step
from jpq_jax.vocabulary import MAX_BITS, Budget, PyTree, check_budget


class AdmmState(NamedTuple):
    """Attributes:
    admm_count: [] int32, updates so far.
    target: V, the sparse-quantized copy; like the params, `optax.MaskedNode` where a leaf is not compressed.
    dual: U, the scaled dual variable; likewise.
    leaf_bits: [compressed leaves] int32, the bit-widths chosen last.
    bit_budget: [] uint32, S at the end of the schedule.
    """

    admm_count: jax.Array
    target: PyTree
    dual: PyTree
    leaf_bits: jax.Array
    bit_budget: jax.Array


class _Split(NamedTuple):
    """W, V, U and b of the compressed leaves, as float32 lists."""

    weights: list[jax.Array]
    target: list[jax.Array]
    dual: list[jax.Array]
    bits: jax.Array


def admm(
    budget: Budget,
    *,
    rho: optax.ScalarOrSchedule,
    every: int,
    learning_rate: optax.ScalarOrSchedule | None = None,
    penalty: Literal["proximal", "gradient"] = "proximal",
    budget_schedule: optax.Schedule | None = None,
    start_bits: int = 3,
    where: Where = None,
) -> optax.GradientTransformationExtraArgs:
    """Pulls the params toward a sparse-quantized copy that fits the budget.

    With `penalty="proximal"` it stands last in a chain. After the step W <- W + update it takes the proximal
    step W <- (W + lr rho (V - U)) / (1 + lr rho); every `every` updates, and on the first, it sparsifies W
    itself (0-1 knapsack), sets V to the quantized W + U (multiple-choice knapsack), and U <- U + W - V. This
    is the published method.

    With `penalty="gradient"` it stands first, before the optimizer proper, and adds rho (W - V + U) to the
    gradients; every `every` updates V is W + U sparsified and quantized, and U <- U + W - V. W itself is not
    projected: `finalize` does that.

    Args:
      budget: S; what `finalize` keeps to.
      rho: strength of the pull, at least 0, or a schedule of it over updates. When it changes, U is kept, as published, and the dual
        variable rho U changes with it; `admm_to` keeps that instead.
      every: updates between projections; published: one epoch.
      learning_rate: the optimizer's, or its schedule; for the proximal step only, which needs it.
      penalty: see above.
      budget_schedule: factor >= 1 on S over updates, such as a ramp that ends at 1. Values below 1 count as 1.
      start_bits: bit-width of every leaf when the first support is chosen.
      where: which leaves to compress, as in `plan_leaves`. The others' updates pass through.

    Returns:
      A transformation whose `update` needs params. Under `optax.inject_hyperparams`, name `where`, `every` and
      `start_bits` in its `static_args`.

    Raises:
      ValueError: an option out of range; in `init` and `update`, a tree with nothing to compress.
    """
    _check_options(budget, rho, every, start_bits, penalty, learning_rate)

    def init(params: PyTree) -> AdmmState:
        plan = plan_leaves(params, where)
        check_published("admm", plan)
        # An empty tree is let through: optax.tree.map_params asks with one.
        limit = capacity(budget, params, plan) if plan else 0
        return AdmmState(
            admm_count=jnp.zeros([], jnp.int32),
            target=where_compressed(jnp.zeros_like, params, plan),
            dual=where_compressed(float_zeros, params, plan),
            leaf_bits=jnp.full(sum(p.compress for p in plan), start_bits, jnp.int32),
            bit_budget=jnp.asarray(limit, jnp.uint32),
        )

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, AdmmState]:
        del extra_args
        check_update("admm", updates, params)
        plan = plan_leaves(params, where)
        check_whole("admm", plan, params, updates)
        capacity(budget, params, plan)  # raises if there is nothing to compress
        old, steps = compressed_leaves(params, plan), compressed_leaves(updates, plan)
        count, target, dual = state.admm_count, floats(state.target), floats(state.dual)
        split = _Split(floats(old), target, dual, state.leaf_bits)
        limit = scheduled(state.bit_budget, budget_schedule, count)
        strength = jnp.asarray(value_at(rho, count), jnp.float32)
        if penalty == "gradient":
            split = lax.cond(count % every == 0, _project_copy, _as_it_is, split, limit)
            steps = gradient_penalty(steps, split.weights, split.target, split.dual, strength)
        else:
            pull = strength * jnp.asarray(value_at(learning_rate, count), jnp.float32)
            first = count == 0
            split = _starting_at_weights(split, first)
            moved = proximal_step(split.weights, floats(steps), split.target, split.dual, pull)
            split = split._replace(weights=moved)
            due = first | ((count + 1) % every == 0)
            split = lax.cond(due, _project_weights_and_copy, _as_it_is, split, limit)
            steps = differences(split.weights, old, steps)
        new_state = AdmmState(
            admm_count=jnp.asarray(optax.safe_increment(count)),
            target=refilled(state.target, split.target),
            dual=refilled(state.dual, split.dual),
            leaf_bits=split.bits,
            bit_budget=state.bit_budget,
        )
        return with_compressed(updates, plan, steps), new_state

    return optax.GradientTransformationExtraArgs(init, update)


def _check_options(
    budget: Budget, rho: Any, every: int, start_bits: int, penalty: str, learning_rate: Any
) -> None:
    check_budget("admm", budget)
    # Arrays, which optax.inject_hyperparams makes of numbers, cannot be checked.
    check_every("admm", every)
    check_strength("admm", "rho", rho)
    if learning_rate is not None:
        check_strength("admm", "learning_rate", learning_rate)
    if isinstance(start_bits, int) and not 1 <= start_bits <= MAX_BITS:
        raise ValueError(f"admm: got start_bits={start_bits}, expected 1 to {MAX_BITS}")
    if penalty not in ("proximal", "gradient"):
        raise ValueError(f"admm: got penalty={penalty!r}, expected 'proximal' or 'gradient'")
    if penalty == "proximal" and learning_rate is None:
        raise ValueError("admm: the proximal step needs the optimizer's learning_rate")


def _as_it_is(split: _Split, limit: jax.Array) -> _Split:
    del limit
    return split


def _starting_at_weights(split: _Split, first: jax.Array) -> _Split:
    """V = W before the first step, as published."""
    pairs = zip(split.weights, split.target, strict=True)
    return split._replace(target=[jnp.where(first, w, v) for w, v in pairs])


def _dual_step(split: _Split) -> _Split:
    triples = zip(split.dual, split.weights, split.target, strict=True)
    return split._replace(dual=[u + w - v for u, w, v in triples])


def _project_weights_and_copy(split: _Split, limit: jax.Array) -> _Split:
    kept = sparsify(split.weights, split.bits, limit)
    shifted = [w + u for w, u in zip(kept, split.dual, strict=True)]
    quantization = quantize(shifted, nonzeros(kept), limit)
    target = snap(shifted, quantization.levels)
    return _dual_step(_Split(kept, target, split.dual, quantization.bits))


def _project_copy(split: _Split, limit: jax.Array) -> _Split:
    shifted = [w + u for w, u in zip(split.weights, split.dual, strict=True)]
    kept = sparsify(shifted, split.bits, limit)
    quantization = quantize(kept, nonzeros(kept), limit)
    target = snap(kept, quantization.levels)
    return _dual_step(_Split(split.weights, target, split.dual, quantization.bits))
