"""Mixed precision channel by channel, where 0 bits prune a channel (AJPQ: Tang, Wei, Li, 2020, arXiv 2011.06231)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jpq_jax.projection.planner import Planner
from jpq_jax.projection.sketching import Curvature
from jpq_jax.sharding import lying_like, replicated
from jpq_jax.vocabulary import CODE_DTYPE, LEVELS, MAX_BITS, Codes, LeafPlan, Treatment

_TRIES = 16  # steps that are tried for a channel and a bit-width


class ChannelPlan(NamedTuple):
    """Attributes:
    channel_bits: for each leaf, [channels] int32 in 0..8.
    channel_steps: for each leaf, [1, ..., channels] float32; 0 for a channel that is pruned.
    """

    channel_bits: tuple[jax.Array, ...]
    channel_steps: tuple[jax.Array, ...]

    def assign(self, weights: Sequence[jax.Array], curvature: Curvature) -> list[jax.Array]:
        del curvature
        parts = zip(weights, self.channel_bits, self.channel_steps, strict=True)
        return [lying_like(w, quantized)(w, bits, step) for w, bits, step in parts]

    def codes(
        self, weights: Sequence[jax.Array], dtypes: Sequence[str], curvature: Curvature
    ) -> list[Codes]:
        del curvature
        parts = zip(weights, self.channel_bits, self.channel_steps, dtypes, strict=True)
        return [channel_codes(w, bits, step, dtype) for w, bits, step, dtype in parts]


def channelwise(bits: Mapping[str, ArrayLike]) -> Planner:
    """A bit-width of its own for each output channel; for `latent`, `project_params` or `admm_to`.

        min over q, step of  |w - step q|^2   subject to   q whole, |q| <= 2^(b - 1)

    for each channel by itself: 2^b nonzero values, and 0. Steps are fitted whenever the plan is made anew.

    Args:
      bits: for every compressed leaf, by its path, a number for each index of its last axis, 0 to 8; 0 prunes the channel.

    Raises:
      ValueError: bits out of range; in `init`, bits that do not fit the leaves, or another treatment than `Treatment()`.
    """
    given = {path: np.asarray(widths) for path, widths in bits.items()}
    for path, widths in given.items():
        whole = np.issubdtype(widths.dtype, np.integer)
        if not whole or (widths.size and not (widths.min() >= 0 and widths.max() <= MAX_BITS)):
            raise ValueError(
                f"channelwise: {path}: got {widths}, expected integers from 0 to {MAX_BITS}"
            )

    def init(
        leaves: Sequence[jax.Array], plans: Sequence[LeafPlan], *, curved: bool
    ) -> ChannelPlan:
        if curved:
            raise ValueError("channelwise: knows no curvature")
        unknown = set(given) - {plan.path for plan in plans}
        if plans and unknown:  # optax asks with no leaves what is like the params
            raise ValueError(
                f"channelwise: got bits for {sorted(unknown)}, which are none of {[plan.path for plan in plans]}"
            )
        each = [_widths(given, plan, leaf) for plan, leaf in zip(plans, leaves, strict=True)]
        shapes = [(1,) * (len(leaf.shape) - 1) + (leaf.shape[-1],) for leaf in leaves]
        steps = tuple(jnp.zeros(shape, jnp.float32) for shape in shapes)
        return ChannelPlan(tuple(jnp.asarray(widths, jnp.int32) for widths in each), steps)

    def replan(
        weights: Sequence[jax.Array], plan: ChannelPlan, count: jax.Array, curvature: Curvature
    ) -> ChannelPlan:
        del count, curvature
        steps = (fitted(w, bits)[0] for w, bits in zip(weights, plan.channel_bits, strict=True))
        return plan._replace(channel_steps=tuple(steps))

    return Planner(init, replan)


@replicated
def fitted(w: jax.Array, bits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The step of least error of each channel, [1, ..., channels], of those that are tried; and that error, summed, [channels].

    w: [..., channels] float32; bits: [channels] int32 in 0..8. For a number on the grid a step is the best by least squares.
    """
    axes = tuple(range(w.ndim - 1))
    largest = jnp.max(jnp.abs(w), axis=axes, keepdims=True, initial=0)
    unit = jnp.where(largest > 0, largest, 1)
    w = w / unit  # so that no square overflows, or vanishes
    energy = jnp.sum(w**2, axis=axes, keepdims=True)
    most = _largest_number(bits, w.ndim)

    def tried(t: jax.Array, best: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        step, gain = best
        q = numbers(w, bits, (t + 1) / _TRIES / jnp.maximum(most, 1))
        both, square = (jnp.sum(x * q, axis=axes, keepdims=True) for x in (w, q))
        new = both**2 / jnp.maximum(square, 1)
        better = new > gain
        found = both / jnp.maximum(square, 1)
        return jnp.where(better, found, step), jnp.where(better, new, gain)

    nothing = jnp.zeros_like(energy)
    step, gain = lax.fori_loop(0, _TRIES, tried, (nothing, nothing))
    error = jnp.maximum(energy - gain, 0) * unit**2
    return step * unit, error.reshape(-1)


def quantized(w: jax.Array, bits: jax.Array, step: jax.Array) -> jax.Array:
    """The nearest values. step: [1, ..., channels]."""
    return step * numbers(w, bits, step)


def _largest_number(bits: jax.Array, ndim: int) -> jax.Array:
    """2^(b - 1), 0 for 0 bits: [1, ..., channels] float32."""
    most = jnp.where(bits > 0, jnp.left_shift(1, jnp.maximum(bits - 1, 0)), 0)
    return most.astype(jnp.float32).reshape((1,) * (ndim - 1) + (-1,))


def numbers(w: jax.Array, bits: jax.Array, step: jax.Array) -> jax.Array:
    """The whole multiples of the step nearest to the weights, of those that there are."""
    most = _largest_number(bits, w.ndim)
    return jnp.clip(jnp.round(w / jnp.where(step > 0, step, jnp.inf)), -most, most)


def channel_codes(w: jax.Array, bits: jax.Array, step: jax.Array, dtype: str) -> Codes:
    """w: [..., channels] float32; bits: [channels] int32 in 0..8; step: [1, ..., channels]; dtype: that the weights have dense."""
    wide = jnp.maximum(jnp.max(bits, initial=0), 1)
    half = jnp.left_shift(1, wide - 1)

    def code_of(w: jax.Array, bits: jax.Array, step: jax.Array, half: jax.Array) -> jax.Array:
        q = numbers(w, bits, step).astype(jnp.int32)
        return jnp.where(q == 0, 0, q + half + jnp.where(q < 0, 1, 0)).astype(CODE_DTYPE)

    place = jnp.arange(LEVELS, dtype=jnp.int32)
    value = place - half - jnp.where(place <= half, 1, 0)
    codebook = jnp.where((place > 0) & (place <= 2 * half), value, 0).astype(jnp.float32)
    code = lying_like(w, code_of)(w, bits, step, half)
    return Codes(code, codebook, wide.astype(jnp.int32), dtype, step)


def _widths(given: Mapping[str, np.ndarray], plan: LeafPlan, leaf: jax.Array) -> np.ndarray:
    if plan.treatment != Treatment():
        raise ValueError(
            f"channelwise: leaf {plan.path!r}: got {plan.treatment}, expected {Treatment()}"
        )
    if plan.path not in given or not leaf.shape:
        raise ValueError(
            f"channelwise: leaf {plan.path!r} of shape {leaf.shape}: got bits for {sorted(given)}, expected "
            "for each leaf that is compressed, and channels"
        )
    widths = given[plan.path]
    if widths.shape != (leaf.shape[-1],):
        raise ValueError(
            f"channelwise: leaf {plan.path!r}: got bits of shape {widths.shape}, expected ({leaf.shape[-1]},)"
        )
    return widths
