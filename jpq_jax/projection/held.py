"""Fine-tuning as Yang et al., CVPR 2020, do it at the end: the support and the bit-widths are held, the values refitted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jpq_jax.projection.planner import Planner
from jpq_jax.projection.published import Quantization, quantize_at, snap, to_codes
from jpq_jax.projection.sketching import Curvature
from jpq_jax.vocabulary import LEVELS, MAX_BITS, Codes, LeafPlan, Treatment


class HeldPlan(NamedTuple):
    """Attributes:
    held_levels: [leaves, 257] float32, ascending; zero is among them.
    held_bits: [leaves] int32 in 1..8.
    """

    held_levels: jax.Array
    held_bits: jax.Array

    def assign(self, weights: Sequence[jax.Array], curvature: Curvature) -> list[jax.Array]:
        del curvature
        return snap(weights, self.held_levels)

    def codes(
        self, weights: Sequence[jax.Array], dtypes: Sequence[str], curvature: Curvature
    ) -> list[Codes]:
        del curvature
        return to_codes(weights, Quantization(self.held_levels, self.held_bits), dtypes)


def held(bits: int | Sequence[int]) -> Planner:
    """k-means codebooks at given bit-widths, for the nonzeros only; for `latent`.

        min_Q sum_i (w_i - q_i)^2   subject to   q_i = 0 where w_i = 0,   at most 2**b_l values beside 0 in leaf l

    A zero stays zero, so the bits of the paper metric never rise; hold the zeros of the latents themselves by
    `mask_updates`. What the values are is refitted whenever the plan is made anew.

    Args:
      bits: of every compressed leaf, or of each in JAX's order; 1 to 8. `admm` leaves them in its state, as
        `optax.tree.get(state, "leaf_bits")`.

    Raises:
      ValueError: bits out of range; in `init`, another number of them than of compressed leaves.
    """
    widths = [bits] if isinstance(bits, int) else [int(b) for b in bits]
    if not widths or not all(1 <= b <= MAX_BITS for b in widths):
        raise ValueError(f"held: got bits={bits}, expected 1 to {MAX_BITS}")

    def init(leaves: Sequence[jax.Array], plans: Sequence[LeafPlan], *, curved: bool) -> HeldPlan:
        if curved or any(p.treatment != Treatment() for p in plans):
            raise ValueError("held: knows no curvature, and no other treatment than Treatment()")
        each = widths * len(leaves) if isinstance(bits, int) else widths
        if leaves and len(each) != len(leaves):
            raise ValueError(
                f"held: got {len(each)} bit-widths, expected one for each of {len(leaves)} leaves"
            )
        each = each[: len(leaves)]
        empty = jnp.zeros((len(each), LEVELS), jnp.float32)
        return HeldPlan(empty, jnp.asarray(each, jnp.int32))

    def replan(
        weights: Sequence[jax.Array], plan: HeldPlan, count: jax.Array, curvature: Curvature
    ) -> HeldPlan:
        del count, curvature
        return plan._replace(held_levels=quantize_at(weights, plan.held_bits).levels)

    return Planner(init, replan)
