"""What functions of JAX, Flax and Equinox let go of, between two layers; the same in every version of JAX.

Three of the eight channels of the first layer say nothing: ZERO is 0 whatever the input, CONSTANT is 0.25, and for UNHEARD the second
layer has no weight. A row of the table tells which of them go when a function stands between the layers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name

import jpq_jax

ZERO, CONSTANT, UNHEARD = 1, 4, 6
ALL = (ZERO, CONSTANT, UNHEARD)
NONE = ()
WITHOUT_ZERO = (CONSTANT, UNHEARD)  # the function makes an infinity of it, or no number
ROWS, SEQUENCE, IMAGE = (3,), (2, 6), (2, 4, 4)


class Row(NamedTuple):
    """Attributes:
    function: of what the first layer gives, [..., 8].
    goes: channels of the first layer.
    places: the axes before the channels.
    unheard: what the function makes of UNHEARD, if that is not one output at the same place.
    """

    function: Callable[[jax.Array], jax.Array]
    goes: tuple[int, ...] = ALL
    places: tuple[int, ...] = ROWS
    unheard: tuple[int, ...] = (UNHEARD,)


def network(params: Any, x: jax.Array, function: Any) -> jax.Array:
    hidden = function(x @ params["w1"] + params["b1"])
    return hidden @ params["w2"] + params["b2"]


def layers(row: Row) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Params and an input; what comes out of the first layer lies between 0 and 1."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0.2, 1, (*row.places, 5)).astype(np.float32)
    hidden = jax.ShapeDtypeStruct((*row.places, 8), jnp.float32)
    given = jax.eval_shape(row.function, hidden).shape[-1]
    params = {
        "w1": rng.uniform(0.05, 0.15, (5, 8)),
        "b1": rng.uniform(0, 0.2, 8),
        "w2": rng.normal(size=(given, 3)),
        "b2": rng.normal(size=3),
    }
    params["w1"][:, [ZERO, CONSTANT]] = 0
    params["b1"][[ZERO, CONSTANT]] = 0, 0.25
    params["w2"][list(row.unheard)] = 0
    return {name: jnp.asarray(leaf, jnp.float32) for name, leaf in params.items()}, x


def of_parts(function: Any) -> Any:
    """Of both halves of the channels."""
    return lambda h: function(*jnp.split(h, 2, axis=-1))


def turned(h: jax.Array) -> jax.Array:
    """A rotary embedding of halves."""
    angles = positions(h) * 100.0 ** -(jnp.arange(4) / 4)
    first, second = jnp.split(h, 2, axis=-1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def turned_in_pairs(h: jax.Array) -> jax.Array:
    """A rotary embedding of neighbours."""
    angles = positions(h) * 100.0 ** -(jnp.arange(0, 8, 2) / 8)
    first, second = h[..., ::2], h[..., 1::2]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    pairs = [first * cos - second * sin, second * cos + first * sin]
    return jnp.stack(pairs, axis=-1).reshape(h.shape)


def positions(h: jax.Array) -> jax.Array:
    return jnp.arange(h.shape[-2], dtype=jnp.float32)[:, None]


def with_waves(h: jax.Array) -> jax.Array:
    """Sinusoidal positions."""
    angles = positions(h) / 100.0 ** (jnp.arange(4) / 4)
    return h + jnp.stack([jnp.sin(angles), jnp.cos(angles)], -1).reshape(1, *h.shape[1:])


def attention(h: jax.Array) -> jax.Array:
    heads = h.reshape(*h.shape[:-1], 2, 4)
    return jax.nn.dot_product_attention(heads, heads, heads, is_causal=True).reshape(h.shape)


def squared(h: jax.Array) -> jax.Array:
    """With a derivative of its own."""

    @jax.custom_jvp
    def function(h: jax.Array) -> jax.Array:
        return h**2

    function.defjvps(lambda tangent, answer, h: tangent)
    return function(h)


def clipped(h: jax.Array) -> jax.Array:
    @jax.custom_vjp
    def function(h: jax.Array) -> jax.Array:
        return jnp.clip(h, 0.1, 0.5)

    function.defvjp(lambda h: (function(h), None), lambda kept, gradient: (gradient,))
    return function(h)


def batched(h: jax.Array) -> jax.Array:
    @jax.custom_batching.custom_vmap
    def function(h: jax.Array) -> jax.Array:
        return h + 1

    function.def_vmap(lambda size, batched, h: (function(h), batched[0]))
    return function(h)


def remembered(h: jax.Array) -> jax.Array:
    policy = jax.checkpoint_policies.save_only_these_names("hidden")
    named = jax.checkpoint(lambda h: checkpoint_name(jnp.sin(h), "hidden") ** 2, policy=policy)
    return named(h)


def over_time(function: Any) -> Any:
    """Of a layer of nnx or Equinox for one example, channels last."""
    return lambda h: jax.vmap(function)(h)


def channels_first(layer: Any) -> Any:
    return lambda h: jnp.moveaxis(jax.vmap(layer)(jnp.moveaxis(h, -1, 1)), 1, -1)


def of_linen(layer: linen.Module) -> Any:
    def function(h: jax.Array) -> jax.Array:
        arrays = jax.tree.map(
            lambda leaf: jnp.full(leaf.shape, 0.5, leaf.dtype),
            jax.eval_shape(layer.init, jax.random.key(0), h),
        )
        return layer.apply(arrays, h)

    return function


def of_nnx(make: Callable[[nnx.Rngs], Any]) -> Any:
    @functools.cache
    def layer() -> Any:
        with jax.ensure_compile_time_eval():
            made = make(nnx.Rngs(0))
        made.eval()
        return nnx.split(made)

    return lambda h: nnx.merge(*layer())(h)


def on_one_device(h: jax.Array) -> jax.Array:
    mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec(None, "model")
    return lax.with_sharding_constraint(h, jax.sharding.NamedSharding(mesh, spec))


def on_devices(h: jax.Array) -> jax.Array:
    mesh = jax.make_mesh((8,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec(None, "model")
    return lax.with_sharding_constraint(h, jax.sharding.NamedSharding(mesh, spec))


def in_slices(h: jax.Array) -> jax.Array:
    return sum(jnp.unstack(jnp.stack([h, h**2, h**3])), start=jnp.zeros_like(h))


def depthwise(padding: str) -> Any:
    def function(h: jax.Array) -> jax.Array:
        numbers = ("NHWC", "HWIO", "NHWC")
        kernel = jnp.arange(72, dtype=jnp.float32).reshape(3, 3, 1, 8) / 72
        return lax.conv_general_dilated(
            h, kernel, (1, 1), padding, dimension_numbers=numbers, feature_group_count=8
        )

    return function


ELEMENTWISE = {
    "abs": jnp.abs,
    "acos": jnp.acos,
    "acosh": lambda h: jnp.acosh(h + 1),
    "add": lambda h: h + 3,
    "asin": jnp.asin,
    "asinh": jnp.asinh,
    "atan": jnp.atan,
    "atan2": lambda h: jnp.atan2(h, h + 1),
    "atanh": jnp.atanh,
    "bfloat16": lambda h: h.astype(jnp.bfloat16).astype(jnp.float32),
    "bits": lambda h: lax.bitcast_convert_type(lax.bitcast_convert_type(h, jnp.int32), jnp.float32),
    "cbrt": jnp.cbrt,
    "ceil": jnp.ceil,
    "celu": jax.nn.celu,
    "clip": lambda h: jnp.clip(h, 0.1, 0.4),
    "copysign": lambda h: jnp.copysign(h, h - 0.3),
    "cos": jnp.cos,
    "cosh": jnp.cosh,
    "divide": lambda h: h / (h + 1),
    "elu": jax.nn.elu,
    "erf": jax.scipy.special.erf,
    "erfc": jax.scipy.special.erfc,
    "erfinv": jax.scipy.special.erfinv,
    "exp": jnp.exp,
    "exp2": jnp.exp2,
    "expm1": jnp.expm1,
    "float_power": lambda h: jnp.float_power(h, 1.5),
    "floor_divide": lambda h: h // 0.1,
    "frexp": lambda h: jnp.frexp(h)[0],
    "gammainc": lambda h: jax.scipy.special.gammainc(h + 1, h),
    "gammaincc": lambda h: jax.scipy.special.gammaincc(h + 1, h),
    "gammaln": lambda h: jax.scipy.special.gammaln(h + 1),
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu, approximate": jax.nn.gelu,
    "digamma": lambda h: jax.scipy.special.digamma(h + 1),
    "polygamma": lambda h: jax.scipy.special.polygamma(1, h + 1),
    "zeta": lambda h: jax.scipy.special.zeta(h + 2, h + 1),
    "betainc": lambda h: jax.scipy.special.betainc(h + 1, h + 1, h),
    "entr": jax.scipy.special.entr,
    "gradient of tanh": lambda h: jax.grad(lambda h: jnp.tanh(h).sum())(h),
    "gradient of log2": lambda h: jax.grad(lambda h: jnp.log2(h + 1).sum())(h),
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "hard_swish": jax.nn.hard_swish,
    "hard_tanh": jax.nn.hard_tanh,
    "heaviside": lambda h: jnp.heaviside(h - 0.3, 0.5),
    "hypot": lambda h: jnp.hypot(h, h + 1),
    "i0": jnp.i0,
    "i1e": jax.scipy.special.i1e,
    "integer power": lambda h: h**3,
    "ldexp": lambda h: jnp.ldexp(h, 2),
    "leaky_relu": jax.nn.leaky_relu,
    "log of a shifted value": lambda h: jnp.log(h + 1),
    "log10 of a shifted value": lambda h: jnp.log10(h + 1),
    "log1p": jnp.log1p,
    "log2 of a shifted value": lambda h: jnp.log2(h + 1),
    "log_sigmoid": jax.nn.log_sigmoid,
    "logaddexp": lambda h: jnp.logaddexp(h, h + 1),
    "logaddexp2": lambda h: jnp.logaddexp2(h, h + 1),
    "maximum": lambda h: jnp.maximum(h, 0.3),
    "minimum": lambda h: jnp.minimum(h, 0.3),
    "mish": jax.nn.mish,
    "nan_to_num": jnp.nan_to_num,
    "nextafter": lambda h: jnp.nextafter(h, h + 1),
    "one minus its square": lambda h: 1 - jnp.square(h),
    "piecewise": lambda h: jnp.piecewise(h, [h < 0.2, h >= 0.4], [0.5, jnp.sin, jnp.cos]),
    "polyval": lambda h: jnp.polyval(jnp.array([0.5, 2.0, -1.0, 3.0]), h),
    "power": lambda h: jnp.power(h, 1.5),
    "reciprocal of a shifted value": lambda h: jnp.reciprocal(h + 1),
    "reduce_precision": lambda h: lax.reduce_precision(h, 5, 10),
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "remainder": lambda h: h % 0.3,
    "round": lambda h: jnp.round(h, 1),
    "rsqrt of a shifted value": lambda h: lax.rsqrt(h + 1),
    "select": lambda h: jnp.select([h < 0.2, h < 0.4], [h, h + 1], h**2),
    "selu": jax.nn.selu,
    "sigmoid": jax.nn.sigmoid,
    "sign": jnp.sign,
    "signbit": lambda h: jnp.signbit(h - 0.3).astype(jnp.float32),
    "silu": jax.nn.silu,
    "sin": jnp.sin,
    "sinc": jnp.sinc,
    "sinh": jnp.sinh,
    "soft_sign": jax.nn.soft_sign,
    "softplus": jax.nn.softplus,
    "sparse_plus": jax.nn.sparse_plus,
    "sparse_sigmoid": jax.nn.sparse_sigmoid,
    "sqrt": jnp.sqrt,
    "squareplus": jax.nn.squareplus,
    "tan": jnp.tan,
    "tanh": jnp.tanh,
    "to integers": lambda h: (h * 10).astype(jnp.int32).astype(jnp.float32),
    "complex numbers": lambda h: jnp.abs(lax.complex(h, h + 1)),
    "where": lambda h: jnp.where(h > 0.3, h, 0.1),
    "xlog1py": lambda h: jax.scipy.special.xlog1py(h, h),
    "linen.PReLU": of_linen(linen.PReLU()),
    "nnx.PReLU": of_nnx(lambda rngs: nnx.PReLU()),
    "eqx.nn.PReLU": eqx.nn.PReLU(0.3),
}

INFINITE_AT_0 = {
    "log": jnp.log,
    "log2": jnp.log2,
    "log10": jnp.log10,
    "reciprocal": jnp.reciprocal,
    "negative power": lambda h: h**-2,
    "rsqrt": lax.rsqrt,
    "logit": jax.scipy.special.logit,
    "0 over 0": lambda h: h / h,
    "gamma": lambda h: jnp.exp(lax.lgamma(h)),
}

AS_IT_IS = {
    "checkpoint_name": lambda h: checkpoint_name(h, "hidden"),
    "checkpoint": jax.checkpoint(lambda h: jnp.sin(h)),
    "checkpoint by names": remembered,
    "composite": lambda h: lax.composite(lambda h: h + 1, "a.composite")(h),
    "custom_jvp": squared,
    "custom_vjp": clipped,
    "custom_vmap": batched,
    "device_put": lambda h: jax.device_put(h, jax.devices()[0]),
    "jit": jax.jit(lambda h: h * 2),
    "linear_call": lambda h: jax.custom_derivatives.linear_call(
        lambda kept, h: kept * h, lambda kept, gradient: kept * gradient, 2.0, h
    ),
    "named_call": jax.named_call(lambda h: h + 1, name="shifted"),
    "optimization_barrier": lambda h: lax.optimization_barrier((h, h))[0],
    "platform_dependent": lambda h: lax.platform_dependent(h, default=jnp.sin, cpu=jnp.sin),
    "sharding, one device": on_one_device,
    "stop_gradient": lax.stop_gradient,
    "cond of a constant": lambda h: lax.cond(True, jnp.sin, jnp.cos, h),
    "vmap": jax.vmap(jnp.sin),
    "jvp": lambda h: jax.jvp(jnp.sin, (h,), (jnp.ones_like(h),))[1],
    "linen.Dropout": of_linen(linen.Dropout(0.5, deterministic=True)),
    "nnx.Dropout": of_nnx(lambda rngs: nnx.Dropout(0.5, rngs=rngs)),
    "eqx.nn.Dropout": eqx.nn.Dropout(0.5, inference=True),
    "linen.BatchNorm": of_linen(linen.BatchNorm(use_running_average=True)),
    "nnx.BatchNorm": of_nnx(lambda rngs: nnx.BatchNorm(8, rngs=rngs)),
}

# What is left out stays: of positions, inputs of other shapes may have use for it.
MOVED = {
    "atleast_3d": Row(lambda h: jnp.atleast_3d(h)[..., 0]),
    "append": Row(lambda h: jnp.append(h, h, axis=-1), unheard=(6, 14)),
    "array": Row(lambda h: jnp.array([h, h + 1])[1]),
    "array_split": Row(
        lambda h: jnp.concatenate(jnp.array_split(h, 3, axis=-1)[::-1], -1), unheard=(0,)
    ),
    "at[].set of places": Row(lambda h: h.at[:, 0].set(0), (ZERO, UNHEARD), SEQUENCE),
    "at[].add of places": Row(lambda h: h.at[:, 1:3].add(h[:, :2]), (ZERO, UNHEARD), SEQUENCE),
    "block": Row(lambda h: jnp.block([h, 2 * h]), unheard=(6, 14)),
    "broadcast_to": Row(lambda h: jnp.broadcast_to(h[:, None], (3, 2, 8)).sum(1)),
    "column_stack": Row(lambda h: jnp.column_stack([h, h]), unheard=(6, 14)),
    "concatenate": Row(lambda h: jnp.concatenate([h, h**2], -1), unheard=(6, 14)),
    "dynamic_slice": Row(lambda h: lax.dynamic_slice_in_dim(h, 1, 7, axis=1), unheard=(5,)),
    "dynamic_update_slice": Row(
        lambda h: lax.dynamic_update_slice(jnp.zeros((2, 9, 8)), h, (0, 2, 0)),
        (ZERO, UNHEARD),
        SEQUENCE,
    ),
    "expand_dims": Row(lambda h: jnp.expand_dims(h, 1)),
    "flip": Row(lambda h: jnp.flip(h, -1), unheard=(1,)),
    "hsplit": Row(lambda h: jnp.concatenate(jnp.hsplit(h, 2)[::-1], -1), unheard=(2,)),
    "times one of its columns": Row(lambda h: h[:, 3:4] * h, (ZERO, UNHEARD)),
    "indexed by an array": Row(lambda h: h[:, jnp.array([7, 6, 5, 4, 1])], unheard=(1,)),
    "indexed by a mask": Row(
        lambda h: h[:, np.arange(8) % 2 == 0], (CONSTANT, UNHEARD), unheard=(3,)
    ),
    "moveaxis": Row(lambda h: jnp.moveaxis(jnp.moveaxis(h, -1, 0) * 2, 0, -1)),
    "pad": Row(lambda h: jnp.pad(h, ((0, 0), (1, 2))), unheard=(7,)),
    "pad, with the edges": Row(lambda h: jnp.pad(h, ((0, 0), (1, 2)), mode="edge"), unheard=(7,)),
    "pad, reflected": Row(lambda h: jnp.pad(h, ((0, 0), (2, 2)), mode="reflect"), unheard=(8, 10)),
    "permuted": Row(lambda h: jnp.take(h, jnp.array([3, 1, 4, 0, 7, 2, 6, 5]), axis=1)),
    "ravel": Row(lambda h: h.ravel().reshape(3, 8)),
    "repeat": Row(lambda h: jnp.repeat(h, 2, axis=-1), unheard=(12, 13)),
    "repeat of places": Row(lambda h: jnp.repeat(h, 2, axis=0)),
    "reshape": Row(lambda h: h.reshape(3, 1, 8, 1)[:, 0, :, 0]),
    "roll": Row(lambda h: jnp.roll(h, 3, axis=-1), unheard=(1,)),
    "roll of places": Row(lambda h: jnp.roll(h, 1, axis=0)),
    "split": Row(lambda h: jnp.concatenate(jnp.split(h, 4, axis=-1)[::-1], -1), unheard=(0,)),
    "stack": Row(lambda h: jnp.stack([h, h**2])[1]),
    "stack, then unstack": Row(in_slices),
    "stack along channels": Row(
        lambda h: jnp.stack([h, h**2], -1).reshape(3, 16), unheard=(12, 13)
    ),
    "stack before channels": Row(lambda h: jnp.stack([h, h**2], 1).reshape(3, 16), unheard=(6, 14)),
    "swapaxes": Row(lambda h: jnp.swapaxes(jnp.swapaxes(h, 0, 1), 0, 1)),
    "take, repeated": Row(
        lambda h: jnp.take(h, jnp.array([0, 1, 1, 4, 4, 6, 6]), axis=1),
        unheard=(5, 6),
    ),
    "take, not all unheard": Row(
        lambda h: h[:, jnp.array([0, 1, 2, 3, 4, 5, 6, 6, 7])], (ZERO, CONSTANT)
    ),
    "tile": Row(lambda h: jnp.tile(h, (1, 2)), unheard=(6, 14)),
    "tile of places": Row(lambda h: jnp.tile(h, (2, 1))),
    "transposed twice": Row(lambda h: (h.T * 2).T),
    "vsplit": Row(lambda h: jnp.vsplit(h, 3)[1]),
    "vstack": Row(lambda h: jnp.vstack([h, h])),
    "with a stride": Row(lambda h: h[:, ::2], (CONSTANT, UNHEARD), unheard=(3,)),
    "with a stride backwards": Row(lambda h: h[:, ::-2], (ZERO,), unheard=()),
}

MASKED = {
    "a mask of places": Row(
        lambda h: jnp.where(jnp.arange(6)[:, None] < 4, h, 0), (ZERO, UNHEARD), SEQUENCE
    ),
    "a mask of channels": Row(lambda h: jnp.where(jnp.arange(8) < 4, h, 0), (1, 4, 5, 6, 7)),
    "times a mask": Row(lambda h: h * (jnp.arange(8) < 4), (1, 4, 5, 6, 7)),
    "plus positions": Row(with_waves, (ZERO, UNHEARD)[1:], SEQUENCE),
    "times an arange": Row(lambda h: h * jnp.arange(8), (0, *ALL)),
    "by a fixed matrix": Row(lambda h: h @ jnp.cos(jnp.arange(64.0)).reshape(8, 8), (ZERO,)),
    "by its diagonal": Row(lambda h: jnp.einsum("bc,c->bc", h, jnp.arange(1.0, 9))),
    "tril": Row(lambda h: jnp.tril(jnp.ones((6, 6))) @ h, (ZERO, UNHEARD), SEQUENCE),
}

OVER_PLACES = {
    "all": Row(lambda h: jnp.all(h > 0.2, axis=1).astype(jnp.float32), places=SEQUENCE),
    "argmax": Row(lambda h: jnp.argmax(h, axis=1).astype(jnp.float32), places=SEQUENCE),
    "associative_scan": Row(
        lambda h: lax.associative_scan(jnp.add, h, axis=1), (ZERO, UNHEARD), SEQUENCE
    ),
    "average": Row(lambda h: jnp.average(h, axis=1, weights=jnp.arange(6.0)), places=SEQUENCE),
    "cumlogsumexp": Row(lambda h: lax.cumlogsumexp(h, axis=1), (UNHEARD,), SEQUENCE),
    "cummax": Row(lambda h: lax.cummax(h, axis=1), places=SEQUENCE),
    "cumprod": Row(lambda h: jnp.cumprod(h, axis=1), (ZERO, UNHEARD), SEQUENCE),
    "cumsum": Row(lambda h: jnp.cumsum(h, axis=1), (ZERO, UNHEARD), SEQUENCE),
    "diff": Row(lambda h: jnp.diff(h, axis=1), places=SEQUENCE),
    "fft": Row(lambda h: jnp.fft.fft(h, axis=1).real, (ZERO, UNHEARD), SEQUENCE),
    "log_softmax": Row(lambda h: jax.nn.log_softmax(h, axis=1), places=SEQUENCE),
    "logsumexp": Row(lambda h: jax.nn.logsumexp(h, axis=1), places=SEQUENCE),
    "max": Row(lambda h: h.max(1), places=SEQUENCE),
    "mean": Row(lambda h: h.mean(1), places=SEQUENCE),
    "median": Row(lambda h: jnp.median(h, axis=1), places=SEQUENCE),
    "min": Row(lambda h: h.min(1), places=SEQUENCE),
    "minmax": Row(lambda h: h.max(1) - h.min(1), places=SEQUENCE),
    "norm": Row(lambda h: jnp.linalg.norm(h, axis=1), places=SEQUENCE),
    "prod": Row(lambda h: h.prod(1), places=SEQUENCE),
    "softmax": Row(lambda h: jax.nn.softmax(h, axis=1), places=SEQUENCE),
    "sort": Row(lambda h: jnp.sort(h, axis=1), places=SEQUENCE),
    "standardize": Row(lambda h: jax.nn.standardize(h, axis=1), places=SEQUENCE),
    "std": Row(lambda h: h.std(1), places=SEQUENCE),
    "sum": Row(lambda h: h.sum(1), places=SEQUENCE),
    "top_k": Row(lambda h: lax.top_k(h.mT, 2)[0].mT, places=SEQUENCE),
    "var": Row(lambda h: h.var(1), places=SEQUENCE),
    "a first token": Row(lambda h: h[:, 0], places=SEQUENCE),
    "a token put before": Row(
        lambda h: jnp.pad(h, ((0, 0), (1, 0), (0, 0))), (ZERO, UNHEARD), SEQUENCE
    ),
    "avg_pool": Row(lambda h: nnx.avg_pool(h, (2, 2), (2, 2)), places=IMAGE),
    "avg_pool, padded": Row(
        lambda h: nnx.avg_pool(h, (3, 3), padding="SAME"), (ZERO, UNHEARD), IMAGE
    ),
    "max_pool": Row(lambda h: nnx.max_pool(h, (2, 2), (2, 2)), places=IMAGE),
    "max_pool, padded": Row(lambda h: nnx.max_pool(h, (3, 3), padding="SAME"), places=IMAGE),
    "min_pool": Row(lambda h: linen.pooling.min_pool(h, (2, 2), (2, 2)), places=IMAGE),
    "eqx.nn.AvgPool2d": Row(channels_first(eqx.nn.AvgPool2d(2, 2)), places=IMAGE),
    "eqx.nn.MaxPool2d": Row(channels_first(eqx.nn.MaxPool2d(2, 2)), places=IMAGE),
    "resize, nearest": Row(lambda h: jax.image.resize(h, (2, 8, 8, 8), "nearest"), places=IMAGE),
    "resize, linear": Row(lambda h: jax.image.resize(h, (2, 8, 8, 8), "linear"), places=IMAGE),
    "a depthwise convolution": Row(depthwise("VALID"), places=IMAGE),
    "a padded one": Row(depthwise("SAME"), (ZERO, UNHEARD), IMAGE),
    "linen.InstanceNorm": Row(of_linen(linen.InstanceNorm()), places=IMAGE),
    "nnx.InstanceNorm": Row(of_nnx(lambda rngs: nnx.InstanceNorm(8, rngs=rngs)), places=IMAGE),
    "flattened": Row(lambda h: h.reshape(2, -1), places=SEQUENCE, unheard=tuple(range(6, 48, 8))),
    "channels before places": Row(
        lambda h: h.mT.reshape(2, -1), places=SEQUENCE, unheard=tuple(range(36, 42))
    ),
}

OVER_CHANNELS = {
    "all": lambda h: h * jnp.all(h > 0.2, axis=-1, keepdims=True),
    "argmax": lambda h: h + jnp.argmax(h, axis=-1, keepdims=True),
    "argsort": lambda h: jnp.argsort(h, axis=-1).astype(jnp.float32),
    "cummax": lambda h: lax.cummax(h, axis=1),
    "cumsum": lambda h: jnp.cumsum(h, axis=-1),
    "diff": lambda h: jnp.diff(h, axis=-1),
    "fft": lambda h: jnp.fft.fft(h).real,
    "logsumexp": lambda h: h - jax.nn.logsumexp(h, axis=-1, keepdims=True),
    "log_softmax": jax.nn.log_softmax,
    "max": lambda h: h - h.max(-1, keepdims=True),
    "min": lambda h: h - h.min(-1, keepdims=True),
    "norm": lambda h: h / jnp.linalg.norm(h, axis=-1, keepdims=True),
    "softmax": jax.nn.softmax,
    "sort": lambda h: jnp.sort(h, axis=-1),
    "standardize": jax.nn.standardize,
    "top_k": lambda h: lax.top_k(h, 7)[0],
    "linen.GroupNorm": of_linen(linen.GroupNorm(2)),
    "linen.LayerNorm": of_linen(linen.LayerNorm()),
    "linen.RMSNorm": of_linen(linen.RMSNorm()),
    "nnx.GroupNorm": of_nnx(lambda rngs: nnx.GroupNorm(8, 2, rngs=rngs)),
    "nnx.LayerNorm": of_nnx(lambda rngs: nnx.LayerNorm(8, rngs=rngs)),
    "nnx.RMSNorm": of_nnx(lambda rngs: nnx.RMSNorm(8, rngs=rngs)),
    "eqx.nn.GroupNorm": over_time(eqx.nn.GroupNorm(2, 8)),
    "eqx.nn.LayerNorm": over_time(eqx.nn.LayerNorm(8)),
    "eqx.nn.RMSNorm": over_time(eqx.nn.RMSNorm(8)),
}

TOGETHER = {
    "glu": Row(jax.nn.glu, (1, 5, 2, 6), unheard=(2,)),
    "swiglu": Row(of_parts(lambda gate, h: jax.nn.silu(gate) * h), (1, 5, 2, 6), unheard=(2,)),
    "geglu": Row(of_parts(lambda gate, h: jax.nn.gelu(gate) * h), (1, 5, 2, 6), unheard=(2,)),
    "maxout": Row(of_parts(jnp.maximum), (2, 6), unheard=(2,)),
    "halves added": Row(of_parts(jnp.add), (2, 6), unheard=(2,)),
    "a rotary embedding": Row(turned, (2, 6), SEQUENCE, unheard=(2, 6)),
    "one of neighbours": Row(turned_in_pairs, (6, 7), SEQUENCE, unheard=(6, 7)),
    "one in groups": Row(
        lambda h: h.reshape(3, 2, 4)[:, ::-1].reshape(3, 8), (2, 6), unheard=(2, 6)
    ),
    "a shuffle of channels": Row(
        lambda h: h.reshape(3, 2, 4).mT.reshape(3, 8), (2, 6), unheard=(4, 5)
    ),
    "groups that are unstacked": Row(
        lambda h: sum(jnp.unstack(h.reshape(3, 2, 4), axis=1)), (2, 6), unheard=(2,)
    ),
    "unpacked": Row(
        lambda h: (lambda a, b: a + b)(*h.reshape(3, 2, 4).swapaxes(0, 1)), (2, 6), unheard=(2,)
    ),
    "attention of heads": Row(attention, NONE, SEQUENCE),
}

LAYERS = {
    "linen.Dense": Row(of_linen(linen.Dense(8)), (ZERO,)),
    "nnx.Linear": Row(of_nnx(lambda rngs: nnx.Linear(8, 8, rngs=rngs)), (ZERO,)),
    "nnx.Einsum": Row(of_nnx(lambda rngs: nnx.Einsum("bc,cd->bd", (8, 8), rngs=rngs)), (ZERO,)),
    "nnx.Conv": Row(of_nnx(lambda rngs: nnx.Conv(8, 8, (3, 3), rngs=rngs)), (ZERO,), IMAGE),
    "eqx.nn.Linear": Row(over_time(eqx.nn.Linear(8, 8, key=jax.random.key(0))), (ZERO,)),
    "eqx.nn.MLP": Row(over_time(eqx.nn.MLP(8, 8, 4, 1, key=jax.random.key(0))), (ZERO,)),
    "linen.MultiHeadDotProductAttention": Row(
        of_linen(linen.MultiHeadDotProductAttention(2, qkv_features=8)), (ZERO,), SEQUENCE
    ),
    "nnx.MultiHeadAttention": Row(
        of_nnx(lambda rngs: nnx.MultiHeadAttention(2, 8, 8, decode=False, rngs=rngs)),
        (ZERO,),
        SEQUENCE,
    ),
    "eqx.nn.MultiheadAttention": Row(
        over_time(lambda h: eqx.nn.MultiheadAttention(2, 8, key=jax.random.key(0))(h, h, h)),
        (ZERO,),
        SEQUENCE,
    ),
}


def somewhere(h: jax.Array) -> jax.Array:
    """An index that depends on a channel which says something."""
    return (h[0, 7] * 4).astype(jnp.int32)


# By the reason that the report gives.
HELD = {
    "goes into scan, which is taken as it is": lambda h: lax.scan(
        lambda carry, x: (carry + x, carry), jnp.zeros(8), h
    )[1],
    "goes into while, which is taken as it is": lambda h: lax.while_loop(
        lambda h: h.sum() < 9, lambda h: h * 2, h
    ),
    "goes into cond, which is taken as it is": lambda h: lax.cond(
        h[0, 7] > 0.3, jnp.sin, jnp.cos, h
    ),
    "goes into pure_callback, which is taken as it is": lambda h: jax.pure_callback(
        np.sin, h, h, vmap_method="sequential"
    ),
    "goes into qr, which is taken as it is": lambda h: jnp.linalg.qr(h)[1],
    "goes into bitcast_convert_type, which is taken as it is": lambda h: lax.bitcast_convert_type(
        h, jnp.int16
    )[..., 1].astype(jnp.float32),
    "goes into gather, which is taken as it is": lambda h: jnp.take_along_axis(
        h, jnp.broadcast_to(somewhere(h), (3, 8)), axis=1
    ),
    "is looked up by": lambda h: jnp.arange(5.0)[(h * 4).astype(jnp.int32)],
    "is looked up in": lambda h: h[:, somewhere(h) + jnp.arange(4)],
    "is spread over devices": on_devices,
    "is put into anywhere": lambda h: h.at[:, 2:4].set(0),
    "is cut anywhere": lambda h: lax.dynamic_slice(h, (0, somewhere(h)), (3, 7)),
    "is overwritten in part": lambda h: lax.dynamic_update_slice(
        h, jnp.ones((3, 2)), (0, somewhere(h))
    ),
}


def table() -> dict[str, Row]:
    rows = {f"elementwise: {name}": Row(function) for name, function in ELEMENTWISE.items()}
    for name, function in INFINITE_AT_0.items():
        rows[f"infinite at 0: {name}"] = Row(function, WITHOUT_ZERO)
    for name, function in AS_IT_IS.items():
        rows[f"as it is: {name}"] = Row(function)
    for kind, of_kind in [
        ("moved", MOVED),
        ("masked", MASKED),
        ("over places", OVER_PLACES),
        ("together", TOGETHER),
        ("layers", LAYERS),
    ]:
        rows |= {f"{kind}: {name}": row for name, row in of_kind.items()}
    for name, function in OVER_CHANNELS.items():
        rows[f"over channels: {name}"] = Row(function, NONE)
    return rows


def shrunk_and_checked(row: Row) -> jpq_jax.Shrunk:
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        params, x = layers(row)
        apply = functools.partial(network, function=row.function)
        shrunk = jpq_jax.shrink(apply, params, x)
        expected, got = apply(params, x), shrunk.apply(shrunk.params, x)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    return shrunk


@pytest.mark.parametrize("name", table())
def test_what_goes(name: str):
    row = table()[name]
    kept = shrunk_and_checked(row).kept["w1"][1]
    assert tuple(np.flatnonzero(~kept)) == tuple(sorted(row.goes))


@pytest.mark.parametrize("why", HELD)
def test_what_stays_is_told(why: str):
    shrunk = shrunk_and_checked(Row(HELD[why], NONE, unheard=()))
    assert shrunk.kept["w1"][1].all()
    assert [row.stays for row in shrunk.report if row.path == "w1"] == [{why: 2}]
