"""What a budget counts: how many bits each nonzero takes, and a leaf in all."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal, Protocol, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jpq_jax.sketch.slots import each, summed

RateName = Literal["paper", "coded"]
RATES = get_args(RateName)
VALUE_BITS = 32  # of a value in a codebook
_LEAST = (
    2.0**-6
)  # bits of a frequent value: with a price, however small, a large multiplier prunes everything


class Rate(Protocol):
    """Of codebooks side by side, see `sketch.slots`; both functions are pure, and traced into the caller's program.

    counts: [slots] int32, weights of each slot; 0 in zero slots.
    bits: [codebooks] int32, the codebooks' widths.

    Attributes:
      flat: whether all values of a codebook have one price.
    """

    flat: ClassVar[bool]

    def price(
        self, counts: jax.Array, bits: jax.Array, size: int | jax.Array, slots: tuple[int, ...]
    ) -> jax.Array:
        """[slots] float32: by how many bits a weight there is dearer than a pruned one."""
        ...

    def of_leaf(
        self, counts: jax.Array, bits: jax.Array, size: int | jax.Array, slots: tuple[int, ...]
    ) -> jax.Array:
        """[codebooks], bits of the whole leaf, of `size` weights; uint32 if whole numbers, else float32."""
        ...


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class PaperRate:
    """b x nonzeros, as counted by Yang et al., CVPR 2020."""

    flat: ClassVar[bool] = True

    def price(
        self, counts: jax.Array, bits: jax.Array, size: int | jax.Array, slots: tuple[int, ...]
    ) -> jax.Array:
        del counts, size
        return each(bits.astype(jnp.float32), slots)

    def of_leaf(
        self, counts: jax.Array, bits: jax.Array, size: int | jax.Array, slots: tuple[int, ...]
    ) -> jax.Array:
        del size
        return bits.astype(jnp.uint32) * summed(counts, slots).astype(jnp.uint32)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class CodedRate:
    """Ideal adaptive code length, positions included.

    sum_c n_c log2(n / n_c) over the codes, zero among them, and for each value in use 32 bits and half a log2 n: what
    it takes to learn how frequent it is (Rissanen, 1984).
    """

    flat: ClassVar[bool] = False

    def price(
        self, counts: jax.Array, bits: jax.Array, size: int | jax.Array, slots: tuple[int, ...]
    ) -> jax.Array:
        del bits
        zeros = size - summed(counts, slots)
        of_zero, of_slot = (
            jnp.log2((number + 1).astype(jnp.float32)) for number in (each(zeros, slots), counts)
        )
        return jnp.maximum(of_zero - of_slot, _LEAST)

    def of_leaf(
        self, counts: jax.Array, bits: jax.Array, size: int | jax.Array, slots: tuple[int, ...]
    ) -> jax.Array:
        del bits
        number = jnp.maximum(jnp.asarray(size, jnp.int32), 1)
        zeros = size - summed(counts, slots)
        used = summed((counts > 0).astype(jnp.float32), slots)
        code = _code_length(zeros, number) + summed(_code_length(counts, number), slots)
        return code + used * (VALUE_BITS + jnp.log2(number.astype(jnp.float32)) / 2)


def _code_length(count: jax.Array, number: jax.Array) -> jax.Array:
    """`count log2(number / count)`, to float32's last digits also where nearly all are counted."""
    some = jnp.maximum(count, 1)
    others = (number - some).astype(jnp.float32)
    some = some.astype(jnp.float32)
    return count.astype(jnp.float32) * jnp.log1p(others / some) / np.float32(np.log(2))


def rate_named(name: str) -> Rate:
    """Raises ValueError if there is no such rate."""
    if name not in RATES:
        raise ValueError(f"rate: got {name!r}, expected one of {', '.join(RATES)}")
    return PaperRate() if name == "paper" else CodedRate()
