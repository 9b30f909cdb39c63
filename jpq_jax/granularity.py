"""What is pruned as one: single weights, N of M, blocks, or whole channels."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Element:
    """Every weight by itself."""


@dataclasses.dataclass(frozen=True)
class NofM:
    """At most `n` nonzeros in every `m` consecutive weights of an axis; 2 of 4 is what sparse tensor cores take.

    Attributes:
      n: nonzeros, 1 to m.
      m: of so many weights; divides the axis.
      axis: by default the inputs of a kernel, [..., inputs, outputs].
    """

    n: int = 2
    m: int = 4
    axis: int = -2

    def __post_init__(self) -> None:
        if not 1 <= self.n <= self.m:
            raise ValueError(f"NofM: got n={self.n}, m={self.m}, expected 1 <= n <= m")


@dataclasses.dataclass(frozen=True)
class Block:
    """Blocks of the last axes, each kept or pruned as a whole.

    Attributes:
      shape: of a block; divides those axes.
    """

    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))  # which can be hashed
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"Block: got shape={self.shape}, expected axes of at least 1")


@dataclasses.dataclass(frozen=True)
class Channels:
    """All weights of one index of an axis, each kept or pruned as a whole.

    Attributes:
      axis: by default the outputs of a kernel, [..., inputs, outputs].
    """

    axis: int = -1


Granularity = Element | NofM | Block | Channels


def check_fits(path: str, shape: tuple[int, ...], granularity: Granularity) -> None:
    """Raises ValueError, naming the leaf, if it cannot be divided so."""

    def expect(holds: bool, expected: str) -> None:
        if not holds:
            raise ValueError(
                f"leaf {path!r}: got {granularity} for shape {shape}, expected {expected}"
            )

    match granularity:
        case NofM(m=m, axis=axis):
            expect(-len(shape) <= axis < len(shape), "an axis that it has")
            expect(shape[axis] % m == 0, f"a multiple of {m} along axis {axis}")
        case Block(shape=block):
            expect(len(block) <= len(shape), f"at least {len(block)} axes")
            pairs = zip(shape[len(shape) - len(block) :], block, strict=True)
            expect(all(size % part == 0 for size, part in pairs), "whole blocks")
        case Channels(axis=axis):
            expect(-len(shape) <= axis < len(shape), "an axis that it has")


def group_shape(shape: tuple[int, ...], granularity: Granularity) -> tuple[int, ...] | None:
    """The shape of one group, an extent for each axis; None if there are no groups."""
    match granularity:
        case Block(shape=block):
            return (1,) * (len(shape) - len(block)) + tuple(block)
        case Channels(axis=axis):
            return tuple(1 if i == axis % len(shape) else size for i, size in enumerate(shape))
    return None


def group_size(shape: tuple[int, ...], granularity: Granularity) -> int:
    """How many weights are kept or pruned as one."""
    return max(1, math.prod(group_shape(shape, granularity) or ()))


def group_mean(x: jax.Array, group: tuple[int, ...]) -> jax.Array:
    """Of each group: [groups along each axis]."""
    number = tuple(size // part for size, part in zip(x.shape, group, strict=True))
    apart = x.reshape(tuple(n for pair in zip(number, group, strict=True) for n in pair))
    return jnp.mean(apart, axis=tuple(range(1, 2 * x.ndim, 2)))


def of_group(values: jax.Array, group: tuple[int, ...]) -> jax.Array:
    """From one value for each group to one for each weight."""
    number = values.shape
    apart = values.reshape(tuple(n for size in number for n in (size, 1)))
    wide = tuple(n for pair in zip(number, group, strict=True) for n in pair)
    whole = tuple(math.prod(pair) for pair in zip(number, group, strict=True))
    return jnp.broadcast_to(apart, wide).reshape(whole)


def largest_of(importance: jax.Array, pattern: NofM) -> jax.Array:
    """Which weights are among the n of their m; of equals the first. importance: [...], at least 0."""
    axis = pattern.axis % importance.ndim
    shape = importance.shape
    apart = importance.reshape(
        *shape[:axis], shape[axis] // pattern.m, pattern.m, *shape[axis + 1 :]
    )
    mine, other = jnp.expand_dims(apart, axis + 2), jnp.expand_dims(apart, axis + 1)
    place = jnp.arange(pattern.m)
    earlier = place[None, :] < place[:, None]
    after = importance.ndim - axis - 1
    earlier = earlier.reshape((1,) * (axis + 1) + earlier.shape + (1,) * after)
    ahead = (other > mine) | ((other == mine) & earlier)
    rank = jnp.sum(ahead, axis=axis + 2, dtype=jnp.int32)
    return (rank < pattern.n).reshape(shape)
