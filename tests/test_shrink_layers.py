"""Channels inside layers go: of attention however it is written, of groups, and of what passes through what is not known."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from networks import nnx_net

import jpq_jax
from jpq_jax.removal.program import ELEMENTWISE


def normal(**shapes: tuple[int, ...]) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    return {name: jnp.asarray(rng.normal(size=s), jnp.float32) for name, s in shapes.items()}


def shrunk_shapes(apply: Any, params: Any, *inputs: Any, **options: Any) -> dict[str, Any]:
    """By path; the outputs are checked."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        shrunk = jpq_jax.shrink(apply, params, *inputs, **options)
        expected = apply(params, *inputs)
        got = shrunk.apply(shrunk.params, *inputs)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    return {path: leaf.shape for path, leaf in jpq_jax.leaves_with_paths(shrunk.params)}


def without(array: Any, axis: int, indices: list[int]) -> jax.Array:
    keep = np.ones(array.shape[axis])
    keep[indices] = 0
    return array * jnp.asarray(keep, array.dtype).reshape(
        [-1 if i == axis else 1 for i in range(array.ndim)]
    )


TOKENS = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 6)), jnp.float32)


def attended(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """By heads of [batch, tokens, heads, channels]."""
    weights = jax.nn.softmax(jnp.einsum("bqhc,bkhc->bhqk", q, k) / 2)
    return jnp.einsum("bhqk,bkhc->bqhc", weights, v)


def in_one_kernel(params: Any, x: jax.Array) -> jax.Array:
    q, k, v = jnp.einsum("btd,dshc->sbthc", x, params["qkv"])
    return jnp.einsum("bqhc,hcd->bqd", attended(q, k, v), params["out"])


def unstacked(params: Any, x: jax.Array) -> jax.Array:
    q, k, v = jnp.unstack(jnp.einsum("btd,dshc->btshc", x, params["qkv"]), axis=2)
    return jnp.einsum("bqhc,hcd->bqd", attended(q, k, v), params["out"])


def indexed(params: Any, x: jax.Array) -> jax.Array:
    qkv = jnp.einsum("btd,dshc->btshc", x, params["qkv"])
    attention = attended(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
    return jnp.einsum("bqhc,hcd->bqd", attention, params["out"])


def of_three_kernels(params: Any, x: jax.Array) -> jax.Array:
    q, k, v = (jnp.einsum("btd,dhc->bthc", x, kernel) for kernel in params["qkv"].swapaxes(0, 1))
    return jnp.einsum("bqhc,hcd->bqd", attended(q, k, v), params["out"])


@pytest.mark.parametrize("apply", [in_one_kernel, unstacked, indexed, of_three_kernels])
def test_channels_of_heads_go_however_queries_keys_and_values_are_unpacked(apply: Any):
    params = normal(qkv=(6, 3, 2, 5), out=(2, 5, 6))
    params["qkv"] = without(params["qkv"], 3, [1, 3])
    shapes = shrunk_shapes(apply, params, TOKENS)
    assert shapes == {"qkv": (6, 3, 2, 3), "out": (2, 3, 6)}


@pytest.mark.parametrize("apply", [in_one_kernel, unstacked, indexed, of_three_kernels])
def test_heads_go_however_queries_keys_and_values_are_unpacked(apply: Any):
    params = normal(qkv=(6, 3, 2, 5), out=(2, 5, 6))
    params["out"] = without(params["out"], 0, [1])
    shapes = shrunk_shapes(apply, params, TOKENS)
    assert shapes == {"qkv": (6, 3, 1, 5), "out": (1, 5, 6)}


def of_flat_kernels(params: Any, x: jax.Array) -> jax.Array:
    """As GPT-2: heads are split off by a reshape, and laid together again."""
    qkv = x @ params["qkv"] + params["bias"]
    q, k, v = (part.reshape(*x.shape[:2], 3, 4) for part in jnp.split(qkv, 3, axis=-1))
    return attended(q, k, v).reshape(*x.shape[:2], 12) @ params["out"]


def of_one_reshape(params: Any, x: jax.Array) -> jax.Array:
    """As vision transformers: queries, keys and values and heads are split off at once."""
    qkv = (x @ params["qkv"] + params["bias"]).reshape(*x.shape[:2], 3, 3, 4)
    q, k, v = jnp.moveaxis(qkv, 2, 0)
    return attended(q, k, v).reshape(*x.shape[:2], 12) @ params["out"]


@pytest.mark.parametrize("apply", [of_flat_kernels, of_one_reshape])
def test_heads_or_channels_of_all_heads_go_where_a_reshape_makes_heads(apply: Any):
    params = normal(qkv=(6, 36), bias=(36,), out=(12, 6))
    head = params | {"out": without(params["out"], 0, [4, 5, 6, 7])}
    shapes = shrunk_shapes(apply, head, TOKENS)
    assert shapes == {"qkv": (6, 24), "bias": (24,), "out": (8, 6)}
    second = np.flatnonzero(np.arange(36) % 4 == 1).tolist()
    channels = {
        "qkv": without(params["qkv"], 1, second),
        "bias": without(params["bias"], 0, second),
        "out": params["out"],
    }
    shapes = shrunk_shapes(apply, channels, TOKENS)
    assert shapes == {"qkv": (6, 27), "bias": (27,), "out": (9, 6)}
    some = params | {"out": without(params["out"], 0, [4, 5, 6])}  # no head, and of no channel all
    assert shrunk_shapes(apply, some, TOKENS) == {"qkv": (6, 36), "bias": (36,), "out": (12, 6)}


def test_channels_of_nnx_attention_go():
    net = nnx_net(nnx.MultiHeadAttention(2, 6, 8, decode=False, rngs=nnx.Rngs(0)), TOKENS)
    paths = [path for path, _ in jpq_jax.leaves_with_paths(net.params)]
    leaves = [
        without(leaf, leaf.ndim - 1, [0, 2]) if not path.startswith("out") else leaf
        for path, leaf in jpq_jax.leaves_with_paths(net.params)
    ]
    params = jax.tree.unflatten(jax.tree.structure(net.params), leaves)
    shapes = shrunk_shapes(net.apply, params, TOKENS)
    assert "query/kernel" in paths
    assert shapes["query/kernel"] == shapes["key/kernel"] == shapes["value/kernel"] == (6, 2, 2)
    assert shapes["out/kernel"] == (2, 2, 6)


def test_channels_of_linen_attention_go():
    layer = linen.MultiHeadDotProductAttention(2, qkv_features=8)
    params = layer.init(jax.random.key(0), TOKENS)["params"]
    params = {
        name: {k: without(v, v.ndim - 1, [0, 2]) if name != "out" else v for k, v in leaf.items()}
        for name, leaf in params.items()
    }
    shapes = shrunk_shapes(lambda p, x: layer.apply({"params": p}, x), params, TOKENS)
    assert shapes["query/kernel"] == shapes["value/kernel"] == (6, 2, 2)
    assert shapes["out/kernel"] == (2, 2, 6)


def test_heads_of_equinox_attention_go():
    arrays, static = eqx.partition(
        eqx.nn.MultiheadAttention(2, 6, key=jax.random.key(0)), eqx.is_array
    )
    output = without(arrays.output_proj.weight, 1, [3, 4, 5])
    arrays = eqx.tree_at(lambda layer: layer.output_proj.weight, arrays, output)

    def apply(arrays: Any, x: jax.Array) -> jax.Array:
        layer = eqx.combine(arrays, static)
        return jax.vmap(lambda x: layer(x, x, x))(x)

    shapes = list(shrunk_shapes(apply, arrays, TOKENS).values())
    assert shapes == [(3, 6), (3, 6), (3, 6), (6, 3)]


def test_pairs_of_a_rotary_embedding_go_together():
    def apply(params: Any, x: jax.Array) -> jax.Array:
        angles = jnp.arange(4.0)[:, None] * 10.0 ** -jnp.arange(3.0)
        cos, sin = jnp.cos(angles), jnp.sin(angles)

        def turned(h: jax.Array) -> jax.Array:
            even, odd = h[..., ::2], h[..., 1::2]
            return jnp.stack([even * cos - odd * sin, odd * cos + even * sin], -1).reshape(h.shape)

        q, k = turned(x @ params["q"]), turned(x @ params["k"])
        return jnp.einsum("bqc,bkc->bqk", q, k) @ x

    params = normal(q=(6, 6), k=(6, 6))
    params["q"] = without(params["q"], 1, [2, 3])
    assert shrunk_shapes(apply, params, TOKENS) == {"q": (6, 4), "k": (6, 4)}
    params["k"] = without(params["k"], 1, [0])  # the other of its pair is used
    assert shrunk_shapes(apply, params, TOKENS) == {"q": (6, 4), "k": (6, 4)}


def test_a_whole_group_of_a_group_norm_goes():
    def apply(params: Any, x: jax.Array) -> jax.Array:
        groups = (x @ params["w1"]).reshape(2, 4, 4, 3)
        mean, variance = groups.mean((1, 3), keepdims=True), groups.var((1, 3), keepdims=True)
        normal = ((groups - mean) * lax.rsqrt(variance + 1e-5)).reshape(2, 4, 12)
        return (normal * params["scale"] + params["bias"]) @ params["w2"]

    params = normal(w1=(6, 12), scale=(12,), bias=(12,), w2=(12, 5))
    params["w2"] = without(params["w2"], 0, [3, 4, 5, 6])  # one group, and a channel of another
    shapes = shrunk_shapes(apply, params, TOKENS)
    assert shapes == {"w1": (6, 9), "scale": (9,), "bias": (9,), "w2": (9, 5)}


def test_steps_of_an_unrolled_scan_share_their_channels():
    def apply(params: Any, x: jax.Array) -> jax.Array:
        def step(h: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
            return jnp.tanh(h @ w), h

        h, each = lax.scan(step, x @ params["into"], params["layers"], unroll=True)
        return (h + each.sum(0)) @ params["out"]

    params = normal(into=(6, 8), layers=(3, 8, 8), out=(8, 2))
    params["layers"] = without(without(params["layers"], 1, [5]), 2, [5])
    params["out"] = without(params["out"], 0, [5])
    shapes = shrunk_shapes(apply, params, TOKENS)
    assert shapes == {"into": (6, 7), "layers": (3, 7, 7), "out": (7, 2)}


def two_layers(function: Any, value: float = 0.25) -> tuple[Any, dict[str, jax.Array]]:
    """A function between two layers; a channel of the first is constant."""
    params = normal(w1=(6, 6), b1=(6,), w2=(6, 6), b2=(6,))
    params["w1"] = without(params["w1"], 1, [2])
    params["b1"] = params["b1"].at[2].set(value)

    def apply(params: Any, x: jax.Array) -> jax.Array:
        return function(jax.nn.relu(x @ params["w1"] + params["b1"]) @ params["w2"], params["b2"])

    return apply, params


TAKES_UP = {
    "added": lambda h, b: h + b,
    "on the left": lambda h, b: b + h,
    "subtracted": lambda h, b: h - b,
    "behind a name": lambda h, b: checkpoint_name(h, "hidden") + b,
    "behind a cast": lambda h, b: h.astype(jnp.float16).astype(jnp.float32) + b,
    "a cast bias": lambda h, b: h + b.astype(jnp.float16).astype(jnp.float32),
    "transposed": lambda h, b: h.swapaxes(1, 2) + b[:, None],
    "behind a new axis": lambda h, b: h[:, None] + b,
}
TAKES_NOTHING_UP = {
    "subtracted from": lambda h, b: b - h,
    "along another axis": lambda h, b: h + b[:4, None],
    "shuffled": lambda h, b: h.reshape(2, 4, 2, 3).mT.reshape(2, 4, 6) + b,
    "turned round": lambda h, b: h[..., ::-1] + b,
    "a bias that is shuffled": lambda h, b: h + b.reshape(2, 3).T.reshape(6),
    "used elsewhere, too": lambda h, b: (h + b) * b,
    "of whole numbers": lambda h, b: (h * 8 + b).astype(jnp.int32).astype(jnp.float32),
    "multiplied first": lambda h, b: h * 2 + b,
}


@pytest.mark.parametrize("name", [*TAKES_UP, *TAKES_NOTHING_UP])
def test_only_a_bias_that_lies_along_the_outputs_takes_a_constant_up(name: str):
    apply, params = two_layers((TAKES_UP | TAKES_NOTHING_UP)[name])
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        shrunk = jpq_jax.shrink(apply, params, TOKENS)
        expected, got = apply(params, TOKENS), shrunk.apply(shrunk.params, TOKENS)
    assert shrunk.params["w1"].shape == (6, 5 if name in TAKES_UP else 6)
    cast = "cast" in name
    np.testing.assert_allclose(
        got, expected, rtol=1e-2 if cast else 1e-4, atol=3e-2 if cast else 1e-5
    )


def printed(h: jax.Array) -> jax.Array:
    jax.debug.print("{}", h.sum())
    return h


def written(h: jax.Array) -> jax.Array:
    """Through an array that is changed in place."""
    place = jax.new_ref(jnp.zeros_like(h))
    place[...] = h + 1
    return place[...]


def called_back(h: jax.Array) -> jax.Array:
    jax.debug.callback(lambda h: None, h)
    return h


@pytest.mark.parametrize("function", [printed, written, called_back])
def test_what_has_an_effect_sees_all_channels(function: Any):
    _, params = two_layers(lambda h, b: h + b, 0.0)

    def watched(params: Any, x: jax.Array) -> jax.Array:
        hidden = function(x @ params["w1"] + params["b1"])
        return hidden @ params["w2"] + params["b2"]

    shapes = shrunk_shapes(watched, params, TOKENS)
    assert shapes == {path: leaf.shape for path, leaf in params.items()}


def test_shrink_itself_has_no_effect():
    calls = []

    def apply(params: Any, x: jax.Array) -> jax.Array:
        jax.debug.callback(lambda w: calls.append(w), params["w"].sum())
        return x @ params["w"]

    jpq_jax.shrink(apply, normal(w=(6, 3)), TOKENS)
    jax.effects_barrier()
    assert not calls


def test_an_array_that_is_changed_is_no_constant():
    def apply(params: Any, x: jax.Array) -> jax.Array:
        place = jax.new_ref(params["w"])
        place[...] = jnp.cos(place[...])
        return jax.nn.relu(x @ place[...]) @ params["out"]

    params = normal(w=(6, 5), out=(5, 3))
    params["w"] = without(params["w"], 1, [1, 2])  # its cosine is 1
    assert shrunk_shapes(apply, params, TOKENS) == {"w": (6, 5), "out": (5, 3)}


def test_masks_lose_the_channels_of_what_they_mask():
    """Of a mask that the function makes, and of one that it holds."""
    held = np.arange(6) % 2 == 0

    def apply(params: Any, x: jax.Array) -> jax.Array:
        h = jnp.where(jnp.arange(6) < 5, x @ params["w"], 0)
        return jnp.where(held, h, jnp.tanh(h)) @ params["out"]

    params = normal(w=(6, 6), out=(6, 3))
    params["w"] = without(params["w"], 1, [1])
    assert shrunk_shapes(apply, params, TOKENS) == {"w": (6, 4), "out": (4, 3)}


@pytest.mark.parametrize("function", [jnp.log, jnp.reciprocal, lambda h: jnp.log(h) * 0])
def test_what_is_infinite_at_0_stays_though_nothing_has_a_weight_for_it(function: Any):
    """0 times infinity is no number, which the outputs show."""

    def apply(params: Any, x: jax.Array) -> jax.Array:
        return function(jnp.abs(x @ params["w1"])) @ params["w2"]

    params = normal(w1=(6, 5), w2=(5, 3))
    params["w1"] = without(params["w1"], 1, [2])
    params["w2"] = without(params["w2"], 0, [2])
    shrunk = jpq_jax.shrink(apply, params, TOKENS)
    assert shrunk.kept["w1"][1][2]
    assert np.isnan(apply(params, TOKENS)).all()
    assert np.isnan(shrunk.apply(shrunk.params, TOKENS)).all()
    assert "is infinite or no number, which reaches the outputs" in shrunk.report[0].stays


# Of keys, random bits, memories and processes, not of channels.
NOT_OF_CHANNELS = {
    "from_edtype",
    "global_array_to_host_local_array",
    "host_local_array_to_global_array",
    "philox2x32",
    "philox4x32",
    "random_bits",
    "random_clone",
    "random_fold_in",
    "random_seed",
    "random_split",
    "random_unwrap",
    "stage",
    "threefry2x32",
    "threefry4x32",
    "tie",
    "to_edtype",
    "with_memory_space_constraint",
}


def test_all_elementwise_primitives_of_this_jax_are_known():
    """JAX registers how each is batched: those that do the same along any new axis."""
    from jax._src.interpreters import batching

    alike = (batching.vectorized_batcher, batching.broadcast_batcher)
    found = {
        primitive.name
        for primitive, rule in batching.fancy_primitive_batchers.items()
        if getattr(rule, "func", None) in alike
    }
    assert len(found) > 80
    assert found - ELEMENTWISE <= NOT_OF_CHANNELS
