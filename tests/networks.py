"""Small networks of many kinds, whose channels tests take out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen, nnx


class Net(NamedTuple):
    apply: Callable[..., jax.Array]
    params: Any
    inputs: tuple[Any, ...]


def nnx_net(model: nnx.Module, *inputs: Any) -> Net:
    model.eval()
    graph, state = nnx.split(model)
    return Net(lambda state, *x: nnx.merge(graph, state)(*x), state, inputs)


def image(size: int = 8, channels: int = 3) -> jax.Array:
    return jax.random.normal(jax.random.key(7), (2, size, size, channels))


class Plain(nnx.Module):
    """Valid and padded convolutions, both pools, a flattened map."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(3, 8, (3, 3), padding="VALID", rngs=rngs)
        self.conv2 = nnx.Conv(8, 10, (3, 3), padding="SAME", rngs=rngs)
        self.fc1 = nnx.Linear(10 * 3 * 3, 16, rngs=rngs)
        self.fc2 = nnx.Linear(16, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.conv1(x))
        x = nnx.max_pool(nnx.leaky_relu(self.conv2(x)), (2, 2), (2, 2))
        return self.fc2(nnx.gelu(self.fc1(x.reshape(len(x), -1))))


class Residual(nnx.Module):
    """Batch norms, a strided shortcut by a convolution, the mean over an image."""

    def __init__(self, rngs: nnx.Rngs):
        conv = functools.partial(nnx.Conv, kernel_size=(3, 3), use_bias=False, rngs=rngs)
        self.first, self.norm0 = conv(3, 8), nnx.BatchNorm(8, rngs=rngs)
        self.conv1, self.norm1 = conv(8, 8), nnx.BatchNorm(8, rngs=rngs)
        self.conv2, self.norm2 = conv(8, 8), nnx.BatchNorm(8, rngs=rngs)
        self.conv3, self.norm3 = conv(8, 12, strides=2), nnx.BatchNorm(12, rngs=rngs)
        self.short = nnx.Conv(8, 12, (1, 1), strides=2, rngs=rngs)
        self.out = nnx.Linear(12, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm0(self.first(x)))
        x = nnx.relu(x + self.norm2(self.conv2(nnx.relu(self.norm1(self.conv1(x))))))
        x = nnx.relu(self.short(x) + self.norm3(self.conv3(x)))
        return self.out(x.mean(axis=(1, 2)))


class Depthwise(nnx.Module):
    """Depthwise with and without a multiplier, and grouped."""

    def __init__(self, rngs: nnx.Rngs):
        self.into = nnx.Conv(3, 8, (1, 1), rngs=rngs)
        self.depth = nnx.Conv(8, 8, (3, 3), feature_group_count=8, rngs=rngs)
        self.double = nnx.Conv(8, 16, (3, 3), feature_group_count=8, rngs=rngs)
        self.grouped = nnx.Conv(16, 12, (3, 3), feature_group_count=4, rngs=rngs)
        self.out = nnx.Linear(12, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.relu6(self.depth(self.into(x)))
        x = nnx.silu(self.double(x))
        return self.out(nnx.avg_pool(self.grouped(x), (8, 8)).reshape(len(x), -1))


class DenseNet(nnx.Module):
    """Each layer sees all that came before."""

    def __init__(self, rngs: nnx.Rngs):
        self.convs = nnx.List([nnx.Conv(3 + 6 * i, 6, (3, 3), rngs=rngs) for i in range(3)])
        self.norm = nnx.BatchNorm(21, rngs=rngs)
        self.out = nnx.Linear(21, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for conv in self.convs:
            x = jnp.concatenate([x, nnx.relu(conv(x))], axis=-1)
        return self.out(nnx.relu(self.norm(x)).max(axis=(1, 2)))


class Transformer(nnx.Module):
    """Tokens, attention of two heads, a gated feed-forward layer, layer norms."""

    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Embed(11, 12, rngs=rngs)
        self.norm1, self.norm2 = nnx.LayerNorm(12, rngs=rngs), nnx.RMSNorm(12, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 12, 16, decode=False, rngs=rngs)
        self.up = nnx.Linear(12, 32, rngs=rngs)
        self.down = nnx.Linear(16, 12, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed(tokens)
        x = x + self.attention(self.norm1(x))
        gate, value = jnp.split(self.up(self.norm2(x)), 2, axis=-1)
        x = x + self.down(nnx.silu(gate) * value)
        return self.embed.attend(x)


class LinenNet(linen.Module):
    """Of Linen, with batch norm, in half precision inside."""

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = linen.Conv(8, (3, 3), padding="VALID")(x)
        x = linen.relu(linen.BatchNorm(use_running_average=True)(x))
        x = linen.max_pool(x, (2, 2), (2, 2))
        x = linen.tanh(linen.Dense(12)(x.reshape(len(x), -1)))
        return linen.Dense(5)(x)


class Hourglass(nnx.Module):
    """Down and up again by a transposed convolution, with a skip, and checkpointed."""

    def __init__(self, rngs: nnx.Rngs):
        self.down = nnx.Conv(3, 8, (3, 3), strides=2, rngs=rngs)
        self.up = nnx.ConvTranspose(8, 6, (2, 2), strides=(2, 2), rngs=rngs)
        self.out = nnx.Conv(9, 4, (1, 1), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jax.checkpoint(lambda x: nnx.relu(self.down(x)))(x)
        return self.out(jnp.concatenate([nnx.relu(self.up(y)), x], axis=-1))


def mlp(params: Any, x: jax.Array) -> jax.Array:
    """A dict of arrays, with a low-rank layer, a shared one, and a padded shortcut."""
    h = jax.nn.relu(x @ params["w1"] + params["b1"])
    h = jnp.pad(x, ((0, 0), (2, 2))) + h @ (params["u"] @ params["v"]) + params["b2"]
    h = jax.nn.softplus(h)
    for _ in range(2):
        h = jnp.tanh(h @ params["shared"])
    return h @ params["w3"]


def mlp_params() -> Any:
    sizes = {"w1": (6, 14), "b1": (14,), "u": (14, 4), "v": (4, 10), "b2": (10,)}
    sizes |= {"shared": (10, 10), "w3": (10, 3)}
    return {
        name: jax.random.normal(jax.random.key(i), size)
        for i, (name, size) in enumerate(sizes.items())
    }


def nets() -> dict[str, Callable[[], Net]]:
    linen_net = LinenNet()
    tokens = jnp.arange(14).reshape(2, 7) % 11
    return {
        "plain": lambda: nnx_net(Plain(nnx.Rngs(0)), image()),
        "residual": lambda: nnx_net(Residual(nnx.Rngs(0)), image()),
        "depthwise": lambda: nnx_net(Depthwise(nnx.Rngs(0)), image()),
        "dense-concat": lambda: nnx_net(DenseNet(nnx.Rngs(0)), image()),
        "transformer": lambda: nnx_net(Transformer(nnx.Rngs(0)), tokens),
        "linen": lambda: Net(
            linen_net.apply, linen_net.init(jax.random.key(0), image()), (image(),)
        ),
        "hourglass": lambda: nnx_net(Hourglass(nnx.Rngs(0)), image()),
        "dict": lambda: Net(mlp, mlp_params(), (jax.random.normal(jax.random.key(0), (4, 6)),)),
    }
