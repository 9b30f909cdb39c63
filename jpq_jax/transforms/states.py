"""Finding our states in an optimizer's, and noticing those that `finalize` would misread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import core as jax_core

from jpq_jax.projection.planner import Plan
from jpq_jax.projection.sketching import Curvature
from jpq_jax.sharding import replicated
from jpq_jax.transforms.leaves import floats

# A field of each that no other state has, and whether it is a scalar.
_FIELDS = {
    "AdmmState": ("admm_count", True),
    "LatentState": ("latent_count", True),
    "ProjectState": ("project_count", True),
    "SplitState": ("split_count", True),
    "FreezeState": ("freeze_count", True),
    "ClusterState": ("cluster_of", False),
}
_ROUNDINGS = (
    4.0  # units in the last place: q - p and its sum with p are rounded, of a p that is gone
)
_LEAST_TOLERANCE = 2.0**-17  # relative
_BORDERLINE = (
    4096  # one of so many may lie so close to a border that another program puts it beyond
)


def states_in(state: Any) -> dict[str, list[Any]]:
    """The states that can be coded, by the names of their types.

    Raises:
      ValueError: none is there, their types are lost, or they are several members' in one.
    """
    found = {name: [value for _, value in _all(state, name)] for name in _FIELDS}
    for name, (field, is_scalar) in _FIELDS.items():
        if len(_all(state, field)) > len(found[name]):
            raise ValueError(_lost(name, field))
        for value in found[name]:
            if is_scalar:
                _check_single(field, getattr(value, field))
    if not any(found.values()):
        raise ValueError(
            "finalize: found no state of admm, admm_to, latent, project_params, freeze_shares or "
            f"cluster_updates in the optimizer's, expected one; got {type(state).__name__}"
        )
    return found


def _all(state: Any, name: str) -> list[Any]:
    return optax.tree.get_all_with_path(state, name)


def _lost(name: str, field: str) -> str:
    return (
        f"finalize: got a state of which the types are lost: {field!r} is in it, but no {name}. "
        "Of a checkpoint, pass what is restored into the optimizer's own state: with orbax "
        "`checkpointer.restore(path, jax.eval_shape(optimizer.init, params))`. Of an nnx.Optimizer, "
        "pass `optimizer.opt_state`, not `nnx.state(optimizer)`; after `nnx.split`, "
        "`nnx.merge(graphdef, state).opt_state`"
    )


def _check_single(field: str, count: Any) -> None:
    shape = jnp.shape(count)
    if shape:
        raise ValueError(
            f"finalize: got a state of several members in one: {field!r} has shape {shape}, expected (). "
            "Pass one at a time, such as member i of an ensemble by `jax.vmap`, or device i of `jax.pmap`: "
            "`finalize(*jax.tree.map(lambda x: x[i], (params, state)))`"
        )


def check_projected(
    params: dict[str, jax.Array], latents: list[jax.Array], plan: Plan, curvature: Curvature
) -> None:
    """Raises ValueError, naming the leaf, if the params are not what the plan in force makes of the latents, but for
    rounding; traced ones are let through.
    """
    if _is_traced((params, latents, plan)):
        return
    near = [_beside(leaf, latent) for leaf, latent in zip(params.values(), latents, strict=True)]
    for path, count, size in _too_many(params, _away(near, latents, plan, curvature)):
        raise ValueError(
            f"finalize: leaf {path!r}: {count} of {size} params are not what the state's latents project "
            "to. Got params of another step, an average of them, or params that something moved after "
            "`latent`; expected them as `optax.apply_updates` left them, with the state of the same update. "
            "What moves params itself, such as schedule_free or mechanize, goes inside: "
            "`latent(schedule_free(optimizer), planner)`, not `schedule_free(latent(...))`. Other params are "
            "compressed by `project(params, budget)`"
        )


def check_equal_in_clusters(params: dict[str, jax.Array], values: Sequence[jax.Array]) -> None:
    """Raises ValueError, naming the leaf, if the params are not their clusters' values; traced ones are let through."""
    if _is_traced((params, values)):
        return
    for path, count, size in _too_many(params, _apart(list(params.values()), values)):
        raise ValueError(
            f"finalize: leaf {path!r}: {count} of {size} params differ from others of their cluster, expected "
            "equal ones. Something moved them after `cluster_updates`, which goes last; or the state is of "
            "several members in one, as by `jax.vmap`: pass one at a time, "
            "`finalize(*jax.tree.map(lambda x: x[i], (params, state)))`"
        )


def _is_traced(tree: Any) -> bool:
    return any(isinstance(x, jax_core.Tracer) for x in jax.tree.leaves(tree))


def _beside(leaf: Any, like: Any) -> Any:
    """Where the other lies, should they lie on other devices."""
    if not (isinstance(leaf, jax.Array) and isinstance(like, jax.Array)):
        return leaf
    return leaf if leaf.sharding == like.sharding else jax.device_put(leaf, like.sharding)


def _too_many(
    params: dict[str, jax.Array], counts: Sequence[jax.Array]
) -> list[tuple[str, int, int]]:
    found = [
        (path, int(count), leaf.size)
        for (path, leaf), count in zip(params.items(), counts, strict=True)
    ]
    return [(path, count, size) for path, count, size in found if count > size // _BORDERLINE]


@jax.jit
def _away(
    params: Sequence[jax.Array], latents: Sequence[jax.Array], plan: Plan, curvature: Curvature
) -> list[jax.Array]:
    """How many of each leaf: [] uint32."""
    weights = floats(latents)
    triples = zip(params, weights, plan.assign(weights, curvature), strict=True)
    return [_count(*triple) for triple in triples]


@jax.jit
def _apart(params: Sequence[jax.Array], values: Sequence[jax.Array]) -> list[jax.Array]:
    return [_count(p, p, value) for p, value in zip(params, values, strict=True)]


@replicated
def _count(param: jax.Array, latent: jax.Array, value: jax.Array) -> jax.Array:
    """Zeros are exact, since p + (0 - p) is 0 in any dtype; p + (q - p) is q but for rounding."""
    unit = max(_ROUNDINGS * float(jnp.finfo(param.dtype).eps), _LEAST_TOLERANCE)
    p, w, q = (x.astype(jnp.float32) for x in (param, latent, value))
    is_near = jnp.abs(p - q) <= unit * (jnp.abs(w) + jnp.abs(q) + jnp.abs(p))
    return jnp.sum(jnp.where(q == 0, p != 0, ~is_near), dtype=jnp.uint32)
