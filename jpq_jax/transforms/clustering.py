"""Retraining with frozen clusters: the weights of one value move together."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import core as jax_core
from jax import lax

from jpq_jax.plan import Where, check_finite, compressed_leaves, plan_leaves, with_compressed
from jpq_jax.sharding import lying_like, replicated
from jpq_jax.transforms.leaves import check_update, check_whole, compressing_plan, where_compressed
from jpq_jax.vocabulary import CODE_DTYPE, LEVELS, LeafPlan, PyTree

_TOGETHER = (
    4096  # updates in a partial sum: in a single one, float32 would lose most of millions of them
)


class ClusterState(NamedTuple):
    """Attributes:
    cluster_of: int16, which of its leaf's values each weight has; 0 = pruned. Like the params, `optax.MaskedNode`
      where a leaf is not compressed.
    """

    cluster_of: PyTree


def cluster_updates(*, where: Where = None) -> optax.GradientTransformationExtraArgs:
    """Replaces the update of every weight by the mean over its cluster, and that of a pruned weight by 0.

    Last in a chain. The clusters are the weights of a leaf that are equal when `init` sees them, and stay equal to
    the bit. Ye et al., 2018 (arXiv 1811.01907) call this weight clustering retraining, after Han et al., 2016.

    Args:
      where: which leaves have clusters, as in `plan_leaves`. The others' updates pass through.

    Raises:
      ValueError: in `init`, nothing to compress or, unless traced, a leaf of more than 256 nonzero values, or one
        that is not finite; in `update`, updates that do not fit the params.
    """

    def init(params: PyTree) -> ClusterState:
        plan = compressing_plan(params, where)
        check_whole("cluster_updates", plan, params)
        clusters = iter([_clusters(*leaf) for leaf in _named(params, plan)])
        return ClusterState(where_compressed(lambda _: next(clusters), params, plan))

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, Any]:
        del extra_args
        check_update("cluster_updates", updates, params)
        plan = plan_leaves(params, where)
        check_whole("cluster_updates", plan, params, updates)
        pairs = zip(
            compressed_leaves(updates, plan), jax.tree.leaves(state.cluster_of), strict=True
        )
        return with_compressed(updates, plan, [_averaged(*pair) for pair in pairs]), state

    return optax.GradientTransformationExtraArgs(init, update)


def _named(params: PyTree, plan: list[LeafPlan]) -> list[tuple[str, Any]]:
    paths = [p.path for p in plan if p.compress]
    return list(zip(paths, compressed_leaves(params, plan), strict=True))


def _clusters(path: str, leaf: Any) -> jax.Array:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jnp.zeros(leaf.shape, CODE_DTYPE)
    check_finite(path, leaf)
    values = _values(leaf)
    many = values[-1] < jnp.inf
    if not isinstance(many, jax_core.Tracer) and bool(many):
        raise ValueError(
            f"cluster_updates: leaf {path!r} has more than {LEVELS - 1} nonzero values, expected at most that: "
            "quantize it first"
        )

    def place(leaf: jax.Array, values: jax.Array) -> jax.Array:
        place = jnp.searchsorted(values, leaf)
        zero = jnp.searchsorted(values, jnp.zeros([], leaf.dtype))
        return jnp.where(leaf == 0, 0, jnp.where(place < zero, place + 1, place))

    return lying_like(leaf, place)(leaf, values).astype(CODE_DTYPE)


@replicated
def _values(leaf: jax.Array) -> jax.Array:
    """The distinct values and 0, ascending, then infinity. One more than there may be, to see whether there are.

    Each is the least beyond the one before, over all devices: a sort would gather the leaf.
    """

    def following(before: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        least = jnp.min(leaf, where=leaf > before, initial=jnp.inf)
        value = jnp.where(before < 0, jnp.minimum(least, 0), least).astype(leaf.dtype)
        return value, value

    return lax.scan(following, jnp.asarray(-jnp.inf, leaf.dtype), length=LEVELS + 1)[1]


def _averaged(update: jax.Array, cluster_of: jax.Array) -> jax.Array:
    means = _means(update, cluster_of)
    look_up = lying_like(update, lambda means, cluster: means[cluster.astype(jnp.int32)])
    return look_up(means, cluster_of).astype(update.dtype)


@replicated
def _means(update: jax.Array, cluster_of: jax.Array) -> jax.Array:
    update, cluster_of = jnp.atleast_1d(update), jnp.atleast_1d(cluster_of)
    lanes = update.size // _TOGETHER + 1
    place = (_lane(update.shape, lanes), cluster_of.astype(jnp.int32))
    empty = jnp.zeros((lanes, LEVELS), jnp.float32)
    total = jnp.sum(empty.at[place].add(update.astype(jnp.float32)), axis=0)
    count = jnp.sum(empty.astype(jnp.int32).at[place].add(1), axis=0, dtype=jnp.int32)
    return (total / jnp.maximum(count, 1).astype(jnp.float32)).at[0].set(0)


def _lane(shape: tuple[int, ...], lanes: int) -> jax.Array:
    """Which partial sum each update is added to."""
    index = sum(lax.broadcasted_iota(jnp.int32, shape, axis) for axis in range(len(shape)))
    return jnp.asarray(index) % lanes
