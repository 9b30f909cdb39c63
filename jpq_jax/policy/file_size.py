"""How large the file is that a policy makes: about, by the lengths of its numbers, and to the byte, by writing it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jpq_jax import artifact
from jpq_jax.artifact.record import fewest_bytes
from jpq_jax.policy.decisions import Setting, cost_of, least_policy
from jpq_jax.policy.evaluation import Table, step_of
from jpq_jax.policy.network import Network, alive, by_path, without_dead
from jpq_jax.projection.channelwise import channel_codes, numbers
from jpq_jax.vocabulary import MAX_BITS, Codes, InfeasibleError, PyTree, dtype_name

_ENOUGH = 0.98  # of the bytes; more is looked for by the searches themselves
_ROUNDING = 2.0**-18  # of an estimate
_ROUNDS = 8


def lengths_of(network: Network, params: PyTree, tables: tuple[Table, ...]) -> jax.Array:
    """[9, channels of all layers] float32: bits that one of a channel's weights takes at each bit-width, if its numbers' sizes were
    geometric with their mean, and a bit for the sign of each that is not 0. A channel has too few for frequencies of its own.
    """
    leaves = jax.tree.leaves(params)
    each = (
        _lengths(leaves[layer.leaf].astype(jnp.float32), table.steps)
        for layer, table in zip(network.layers, tables, strict=True)
    )
    return jnp.concatenate(list(each), axis=1)


@jax.jit
def _lengths(w: jax.Array, steps: jax.Array) -> jax.Array:
    """[9, channels]. steps: [9, 1, ..., channels]."""
    axes = tuple(range(w.ndim - 1))

    def of_width(at: tuple[jax.Array, jax.Array]) -> jax.Array:
        width, step = at
        size = jnp.abs(numbers(w, jnp.full(w.shape[-1], width), step))
        mean = jnp.mean(size, axis=axes)
        signs = jnp.mean(jnp.where(size > 0, 1.0, 0.0), axis=axes)
        return jnp.log2(1 + mean) + mean * jnp.log2(1 + 1 / jnp.maximum(mean, 1e-30)) + signs

    return lax.map(of_width, (jnp.arange(MAX_BITS + 1, dtype=jnp.int32), steps))


def codes_of(
    network: Network, params: PyTree, tables: tuple[Table, ...], policy: jax.Array
) -> PyTree:
    """The params with the layers' kernels as `Codes`, and zeros for all that belongs to dead slots. policy: [channels of all layers]."""
    leaves, structure = jax.tree.flatten(without_dead(network, params, alive(network, policy)))
    widths = by_path(network, policy).values()
    for layer, table, bits in zip(network.layers, tables, widths, strict=True):
        leaves[layer.leaf] = _coded(dtype_name(leaves[layer.leaf]), leaves[layer.leaf], table, bits)
    return jax.tree.unflatten(structure, leaves)


@functools.partial(jax.jit, static_argnums=0)
def _coded(dtype: str, w: jax.Array, table: Table, bits: jax.Array) -> Codes:
    return channel_codes(w.astype(jnp.float32), bits, step_of(table, bits), dtype)


class FileLimit(NamedTuple):
    """Attributes:
    nbytes: that the file may have.
    size_of: from a policy to the bytes of its file.
    fewest: that a file of so many weights must have.
    """

    nbytes: float
    size_of: Callable[[jax.Array], int]
    fewest: int

    def fits(self, policy: jax.Array) -> bool:
        return self.fewest <= self.size_of(policy) <= self.nbytes

    def met(
        self, setting: Setting, rule: Callable[[Setting], jax.Array]
    ) -> tuple[Setting, jax.Array]:
        """The setting, with about the highest limit of its estimate at which the rule's policy keeps to the bytes there are, and that
        policy; the least one, if none of those tried does.

        Raises:
          InfeasibleError: if the least policy has more.
        """
        found = least_policy(setting)[0]
        low, high = float(cost_of(setting, found)) * (1 + _ROUNDING), math.inf
        least = self.size_of(found)
        if not least <= self.nbytes:
            raise InfeasibleError(
                f"got a limit of {self.nbytes:,.0f} bytes, expected at least {least:,}: the least policy's file"
            )
        at, policy = low + self.nbytes - least, found
        for _ in range(_ROUNDS):
            before, policy = policy, rule(setting._replace(limit=at))
            size = self.size_of(policy)
            left = (1 + _ENOUGH) / 2 * self.nbytes - size
            if size <= self.nbytes:
                low, found = at, policy
                if size >= _ENOUGH * self.nbytes or bool(jnp.all(policy == before)):
                    break
                at += left
            else:
                high = at
                at = float(cost_of(setting, policy)) + left  # less than this policy takes
            at = at if low < at < high else (low + high) / 2
        return setting._replace(limit=low), found


def file_limit_of(
    nbytes: float,
    coded: Callable[[jax.Array], PyTree],
    file: Callable[[PyTree], PyTree] | None,
    params: PyTree,
) -> FileLimit:
    """For the file of what `file` makes of a policy's codes; each policy's is written once.

    coded: from a policy to its codes. params: what the codes are of.
    """
    known: dict[bytes, int] = {}

    def size_of(policy: jax.Array) -> int:
        key = np.asarray(policy).tobytes()
        if key not in known:
            codes = coded(policy)
            known[key] = artifact.file_bytes(codes if file is None else file(codes))
        return known[key]

    return FileLimit(nbytes, size_of, fewest_bytes(sum(w.size for w in jax.tree.leaves(params))))
