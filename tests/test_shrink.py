"""Smaller models give what the pruned ones give, for networks of many kinds; and what is not taken out has its reason."""

from __future__ import annotations

import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import THOROUGH
from flax import nnx
from networks import Residual, image, nets, nnx_net
from safetensors.numpy import load_file

import jpq_jax

PRUNINGS = int(os.environ.get("PRUNINGS", "3" if THOROUGH else "2"))  # of each network


def pruned(params: Any, rng: np.random.Generator) -> Any:
    """Some outputs and some inputs of kernels at 0, and some of the biases; norms as after some training."""
    share = rng.choice([0.2, 0.5, 0.9])

    def of(path: str, leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.floating) or not leaf.ndim:
            return leaf
        weights = np.asarray(leaf)
        if weights.ndim == 1:
            weights = weights + rng.normal(size=weights.shape) * (rng.random(weights.shape) > share)
            weights = np.abs(weights) + 0.1 if path.endswith("var") else weights
        for axis in range(max(weights.ndim - 2, 0), weights.ndim):
            if weights.ndim > 1 and rng.random() < 0.7:
                keep = rng.random(weights.shape[axis]) >= share
                weights = weights * np.expand_dims(keep, tuple(range(1, weights.ndim - axis)))
        return jnp.asarray(weights, leaf.dtype)

    leaves = jpq_jax.leaves_with_paths(params)
    return jax.tree.unflatten(jax.tree.structure(params), [of(*leaf) for leaf in leaves])


def size(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("name", nets())
def test_outputs_stay_what_they_are(name: str):
    net, smaller = nets()[name](), 0
    apply = jax.jit(net.apply)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        for seed in range(PRUNINGS):
            params = pruned(net.params, np.random.default_rng(seed))
            multiple = 4 if seed % 5 == 4 else 1
            shrunk = jpq_jax.shrink(
                net.apply, params, *net.inputs, multiple=multiple, empty=seed % 3 == 0
            )
            expected = apply(params, *net.inputs)
            got = shrunk.apply(shrunk.params, *net.inputs)
            scale = max(float(jnp.abs(expected).max()), 1e-3)
            np.testing.assert_allclose(got, expected, atol=1e-4 * scale)
            smaller += size(shrunk.params) < size(params)
    assert smaller >= PRUNINGS / 2


def two_layers(params: Any, x: jax.Array) -> jax.Array:
    return jax.nn.relu(x @ params["w1"] + params["b1"][None]) @ params["w2"] + params["b2"][None]


def two_layer_params(hidden: int = 8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"w1": (5, hidden), "b1": (hidden,), "w2": (hidden, 3), "b2": (3,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def shrunk_layers(params: Any, **options: Any) -> jpq_jax.Shrunk:
    return jpq_jax.shrink(two_layers, params, jnp.ones((2, 5)), **options)


def test_units_without_inputs_or_without_outputs_go():
    params = two_layer_params()
    params["w1"][:, [1, 4]] = 0
    params["b1"][1], params["b1"][4] = -1.0, 0.25  # ReLU makes 0 of the first
    params["w2"][6] = 0
    shrunk = shrunk_layers(params)
    stay = [0, 2, 3, 5, 7]
    np.testing.assert_array_equal(shrunk.params["w1"], params["w1"][:, stay])
    np.testing.assert_array_equal(shrunk.params["b1"], params["b1"][stay])
    np.testing.assert_array_equal(shrunk.params["w2"], params["w2"][stay])
    np.testing.assert_allclose(shrunk.params["b2"], params["b2"] + 0.25 * params["w2"][4])
    assert shrunk.report[0] == jpq_jax.Shortened("b1", 0, 8, 5, {})


@pytest.mark.parametrize("seed", range(5))
def test_no_more_units_could_go(seed: int):
    """Against the rule for two layers, unit by unit."""
    rng, params = np.random.default_rng(seed), two_layer_params(20)
    params["w1"] *= rng.random((5, 20)) < 0.3
    params["w2"] *= rng.random((20, 3)) < 0.4
    stays = params["w1"].any(axis=0) & params["w2"].any(axis=1)
    assert 2 < stays.sum() < 18
    shrunk = shrunk_layers(params)
    np.testing.assert_array_equal(shrunk.params["w1"], params["w1"][:, stays])
    eights = shrunk_layers(params, multiple=8)
    assert len(eights.params["b1"]) == 8 * -(-stays.sum() // 8)


def test_a_model_of_zeros_keeps_one_unit():
    params = {name: np.zeros_like(leaf) for name, leaf in two_layer_params().items()}
    shrunk = shrunk_layers(params)
    assert shrunk.params["w1"].shape == (5, 1)
    assert {"is the last one": 1} in [row.stays for row in shrunk.report]
    np.testing.assert_array_equal(shrunk.apply(shrunk.params, jnp.ones((3, 5))), 0)


def test_a_layer_may_lose_all_its_units():
    params = two_layer_params()
    params["w1"][:] = 0
    shrunk = shrunk_layers(params, empty=True, multiple=4)
    assert shrunk.params["w1"].shape == (5, 0)
    assert shrunk.params["w2"].shape == (0, 3)
    x = jnp.ones((3, 5))
    np.testing.assert_allclose(shrunk.apply(shrunk.params, x), two_layers(params, x), rtol=1e-6)


@pytest.mark.parametrize("name", [name for name in nets() if name != "transformer"])
def test_what_is_empty_can_be_shrunk_again(name: str):
    """Kernels but for the first and the last are zero; what is left of them depends on where a channel is listened to."""
    net = nets()[name]()
    whole = jpq_jax.leaves_with_paths(net.params)
    kernels = [path for path, leaf in whole if leaf.ndim > 1]
    dead = [
        jnp.zeros_like(leaf) if path in kernels[1:-1] or leaf.ndim == 1 else leaf
        for path, leaf in whole
    ]
    params = jax.tree.unflatten(jax.tree.structure(net.params), dead)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        once = jpq_jax.shrink(net.apply, params, *net.inputs, empty=True)
        assert any(leaf.size == 0 for leaf in jax.tree.leaves(once.params))
        twice = jpq_jax.shrink(once.apply, once.params, *net.inputs, empty=True)
        expected = net.apply(params, *net.inputs)
        for shrunk in (once, twice):
            got = shrunk.apply(shrunk.params, *net.inputs)
            np.testing.assert_allclose(got, expected, atol=1e-5)


def test_groups_may_all_go():
    def block(params: Any, x: jax.Array) -> jax.Array:
        y = convolution(x, params["up"], 1)
        y = convolution(y, params["depth"], 8)
        return x + convolution(y, params["down"], 1)

    def convolution(x: jax.Array, kernel: jax.Array, groups: int) -> jax.Array:
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups
        )

    shapes = {"up": (1, 1, 3, 8), "depth": (3, 3, 1, 8), "down": (1, 1, 8, 3)}
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    params["depth"] = jnp.zeros_like(params["depth"])
    shrunk = jpq_jax.shrink(block, params, image(), empty=True)
    assert {leaf.size for leaf in jax.tree.leaves(shrunk.params)} == {0}
    np.testing.assert_array_equal(shrunk.apply(shrunk.params, image()), image())


def test_a_residual_block_that_gives_nothing_is_left_without_channels():
    net = nnx_net(Residual(nnx.Rngs(0)), image())
    whole = jpq_jax.leaves_with_paths(net.params)
    dead = [jnp.zeros_like(leaf) if path.startswith("conv1") else leaf for path, leaf in whole]
    params = jax.tree.unflatten(jax.tree.structure(net.params), dead)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        shrunk = jpq_jax.shrink(net.apply, params, image(), empty=True)
        expected = net.apply(params, image())
        np.testing.assert_allclose(net.apply(shrunk.params, image()), expected, atol=1e-4)
    shapes = {path: leaf.shape for path, leaf in jpq_jax.leaves_with_paths(shrunk.params)}
    assert shapes["conv1/kernel"] == (3, 3, 8, 0)
    assert shapes["conv2/kernel"] == (3, 3, 0, 8)


def test_codes_stay_codes(tmp_path: Any):
    params = two_layer_params(40)
    params["w1"][:, ::2] = 0
    codes = jpq_jax.project(params, jpq_jax.Budget(ratio=30))
    shrunk = shrunk_layers(codes)
    assert isinstance(shrunk.params["w1"], jpq_jax.Codes)
    jpq_jax.validate(shrunk.params)
    path = tmp_path / "small.jpq"
    jpq_jax.artifact.save(path, shrunk.params)
    small = jpq_jax.dequantize(jpq_jax.artifact.load(path, like=shrunk.params).codes)
    x = jax.random.normal(jax.random.key(0), (7, 5))
    expected = two_layers(jpq_jax.dequantize(codes), x)
    np.testing.assert_allclose(shrunk.apply(small, x), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(two_layers(small, x), expected, rtol=1e-5, atol=1e-5)


def test_an_nnx_module_of_the_smaller_params(tmp_path: Any):
    net = nnx_net(Residual(nnx.Rngs(0)), image())
    params = pruned(net.params, np.random.default_rng(1))
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        shrunk = jpq_jax.shrink(net.apply, params, image())
        assert size(shrunk.params) < size(params)
        expected = net.apply(params, image())
        np.testing.assert_allclose(net.apply(shrunk.params, image()), expected, atol=1e-4)
    path = tmp_path / "small.safetensors"
    jpq_jax.write_safetensors(path, shrunk.params)
    stored = {name.replace(".", "/"): leaf for name, leaf in load_file(path).items()}
    for name, leaf in jpq_jax.leaves_with_paths(shrunk.params):
        np.testing.assert_array_equal(stored[name], leaf, err_msg=name)


def convolved(params: Any, x: jax.Array, padding: str) -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    for name in ("first", "second"):
        x = jax.lax.conv_general_dilated(
            x, params[name], (1, 1), padding, dimension_numbers=numbers
        )
        x = x + params[f"{name}_bias"].reshape(1, 1, 1, -1)
    return x


@pytest.mark.parametrize(("padding", "left"), [("VALID", 3), ("SAME", 4)])
def test_a_constant_is_not_the_same_at_a_padded_border(padding: str, left: int):
    rng = np.random.default_rng(0)
    params = {
        "first": rng.normal(size=(3, 3, 2, 5)).astype(np.float32),
        "second": rng.normal(size=(3, 3, 5, 4)).astype(np.float32),
        "first_bias": np.array([0, 0, 1, 0, 0], np.float32),
        "second_bias": np.zeros(4, np.float32),
    }
    params["first"][..., [0, 2]] = 0  # one gives 0, the other 1
    apply = functools.partial(convolved, padding=padding)
    x = jnp.asarray(rng.normal(size=(2, 8, 8, 2)), jnp.float32)
    shrunk = jpq_jax.shrink(apply, params, x)
    assert shrunk.params["first"].shape == (3, 3, 2, left)
    np.testing.assert_allclose(shrunk.apply(shrunk.params, x), apply(params, x), atol=1e-4)
    reasons = {why for row in shrunk.report for why in row.stays}
    assert reasons == (
        set() if left == 3 else {"is a constant other than 0, which no bias behind it takes up"}
    )


def test_what_is_not_known_stays_and_is_told():
    def apply(params: Any, x: jax.Array) -> jax.Array:
        def step(h: jax.Array, _: Any) -> tuple[jax.Array, None]:
            return jnp.tanh(h @ params["w2"]), None

        h, _ = jax.lax.scan(step, x @ params["w1"], None, length=3)
        return h @ params["w3"]

    rng = np.random.default_rng(0)
    params = {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in {"w1": (5, 6), "w2": (6, 6), "w3": (6, 3)}.items()
    }
    params["w1"][:, 2] = params["w2"][2] = params["w2"][:, 2] = 0
    shrunk = jpq_jax.shrink(apply, params, jnp.ones((2, 5)))
    assert jax.tree.map(np.shape, shrunk.params) == jax.tree.map(np.shape, params)
    assert {why for row in shrunk.report for why in row.stays} == {
        "goes into scan, which is taken as it is"
    }


def test_a_channel_that_is_dead_all_along_a_residual_stream_goes():
    def apply(params: Any, x: jax.Array) -> jax.Array:
        h = x @ params["into"]
        for i in range(2):
            h = h + jax.nn.relu(h @ params["up"][i]) @ params["down"][i]
        return h @ params["out"]

    rng = np.random.default_rng(0)
    shapes = {"into": (5, 6), "up": (2, 6, 9), "down": (2, 9, 6), "out": (6, 3)}
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    params["out"][[1, 4]] = 0
    params["up"][:, [1, 4]] = 0  # nobody listens to two of them, though they are written
    shrunk = jpq_jax.shrink(apply, params, jnp.ones((2, 5)))
    assert shrunk.params["into"].shape == (5, 4)
    assert shrunk.params["down"].shape == (2, 9, 4)
    x = jnp.asarray(rng.normal(size=(3, 5)), jnp.float32)
    np.testing.assert_allclose(shrunk.apply(shrunk.params, x), apply(params, x), rtol=1e-4)


def test_bad_options():
    with pytest.raises(ValueError, match="multiple=0"):
        shrunk_layers(two_layer_params(), multiple=0)


def random_params(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def gated(params: Any, x: jax.Array) -> jax.Array:
    return (jax.nn.sigmoid(x @ params["gate"]) * jax.nn.relu(x @ params["w"])) @ params["out"]


def with_places(params: Any, x: jax.Array) -> jax.Array:
    h = params["places"] + x[:, None] * params["w"].reshape(1, 1, -1)
    return h.reshape(len(x), -1) @ params["out"]


def concatenated(params: Any, x: jax.Array) -> jax.Array:
    parts = [(x @ params["gate"]) * (x @ params["w"]), x @ params["w"], x @ params["more"]]
    return jnp.concatenate(parts, -1)[:, 6:12] @ params["out"]


IMPLICIT = {
    "a gate on the left": (gated, {"gate": (6, 1), "w": (6, 6), "out": (6, 4)}, (4, 6)),
    "places on the left": (with_places, {"places": (3, 6), "w": (6,), "out": (18, 4)}, (4, 1)),
    "behind a gate": (
        concatenated,
        {"gate": (6, 1), "w": (6, 6), "more": (6, 6), "out": (6, 4)},
        (4, 6),
    ),
}


@pytest.mark.parametrize(("apply", "shapes", "inputs"), IMPLICIT.values(), ids=IMPLICIT)
@pytest.mark.parametrize("gone", [[], [1, 4]])
def test_axes_of_one_index_stand_for_longer_ones(
    apply: Any, shapes: Any, inputs: Any, gone: list[int]
):
    params = random_params(**shapes)
    if apply is not with_places:
        params["w"][:, gone] = 0
    x = jax.random.normal(jax.random.key(0), inputs)
    with jax.numpy_rank_promotion("allow"):
        shrunk = jpq_jax.shrink(apply, params, x)
        expected = apply(params, x)
        np.testing.assert_allclose(shrunk.apply(shrunk.params, x), expected, rtol=1e-4, atol=1e-4)
    if apply is gated:
        assert shrunk.params["w"].shape == (6, 6 - len(gone))


def test_what_only_the_function_holds_stays_with_its_constants():
    """A frozen layer before the one that is trained: its dead unit's constant is not counted twice."""
    frozen, params = two_layer_params(), {"b2": jnp.zeros(3)}
    frozen["w1"][:, 0], frozen["b1"][0] = 0, 2.0
    x = jax.random.normal(jax.random.key(0), (7, 5))

    def apply(params: Any, x: jax.Array) -> jax.Array:
        return two_layers(frozen | params, x)

    shrunk = jpq_jax.shrink(apply, params, x[:2])
    np.testing.assert_allclose(shrunk.apply(shrunk.params, x), apply(params, x), rtol=1e-5)


def test_a_constant_that_grows_with_the_batch_is_told():
    params = two_layer_params()
    params["w1"][:, 0], params["b1"][0] = 0, 2.0

    def of_set(params: Any, x: jax.Array) -> jax.Array:
        hidden = jnp.sum(jax.nn.relu(x @ params["w1"] + params["b1"][None]), axis=0)
        return hidden @ params["w2"] + params["b2"]

    x = jax.random.normal(jax.random.key(0), (8, 5))
    shrunk = jpq_jax.shrink(of_set, params, x[:2])
    assert shrunk.params["w1"].shape == (5, 7)
    np.testing.assert_allclose(shrunk.apply(shrunk.params, x[:2]), of_set(params, x[:2]), rtol=1e-4)
    with pytest.raises(ValueError, match="other constants"):
        shrunk.apply(shrunk.params, x)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_constants_of_narrow_models_have_their_dtype(dtype: Any):
    params = {"w": jnp.zeros((3, 4), dtype), "v": jnp.ones((4, 2), dtype)}

    def apply(params: Any, x: jax.Array) -> jax.Array:
        placed = jax.lax.dynamic_update_slice(jnp.zeros((6, 4), dtype), x @ params["w"], (1, 0))
        return placed @ params["v"] + jnp.sum(x)

    x = jnp.ones((4, 3), dtype)
    shrunk = jpq_jax.shrink(apply, params, x)
    np.testing.assert_array_equal(shrunk.apply(shrunk.params, x), apply(params, x))


def test_a_constant_of_another_shape_is_told():
    def apply(params: Any, x: jax.Array) -> jax.Array:
        h = jax.nn.relu(x @ params["w"] + params["b"].reshape(1, 1, -1)).sum(1)
        return h @ params["out"] + params["b2"].reshape(1, -1)

    params = random_params(w=(3, 6), b=(6,), out=(6, 4), b2=(4,))
    params["w"][:, 2], params["b"][2] = 0, 1
    shrunk = jpq_jax.shrink(apply, params, jnp.ones((2, 8, 3)))
    assert shrunk.params["w"].shape == (3, 5)
    x = jax.random.normal(jax.random.key(0), (5, 8, 3))
    for smaller in (shrunk.apply, jax.jit(shrunk.apply)):
        np.testing.assert_allclose(smaller(shrunk.params, x), apply(params, x), rtol=1e-4)
    with pytest.raises(ValueError, match="inputs of these shapes"):
        shrunk.apply(shrunk.params, jnp.ones((2, 5, 3)))
    params["b"][2] = -1  # nothing is added up any more
    shrunk = jpq_jax.shrink(apply, params, jnp.ones((2, 8, 3)))
    longer = jax.random.normal(jax.random.key(0), (2, 5, 3))
    np.testing.assert_allclose(
        shrunk.apply(shrunk.params, longer), apply(params, longer), rtol=1e-4
    )


def test_a_bias_along_another_axis_takes_nothing_up():
    def apply(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        h = jax.nn.relu(x @ params["w"] + params["b"].reshape(1, -1)) @ params["out"]
        return (h + params["b2"].reshape(-1, 1))[:, :, None] + y

    params = random_params(w=(5, 6), b=(6,), out=(6, 4), b2=(4,))
    params["w"][:, 2], params["b"][2] = 0, 1
    x, y = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate(((4, 5), (4, 4, 3))))
    shrunk = jpq_jax.shrink(apply, params, x, y)
    np.testing.assert_allclose(shrunk.apply(shrunk.params, x, y), apply(params, x, y), rtol=1e-4)


def test_codes_are_what_apply_takes_too():
    params = two_layer_params(40)
    params["w1"][:, ::2] = 0
    codes = jpq_jax.project(params, jpq_jax.Budget(ratio=30))
    shrunk = shrunk_layers(codes)
    x = jax.random.normal(jax.random.key(0), (7, 5))
    expected = two_layers(jpq_jax.dequantize(codes), x)
    got = jax.jit(shrunk.apply)(shrunk.params, x)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_keys_of_dropout_are_no_weights():
    class Dropping(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.up, self.down = nnx.Linear(5, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.down(self.dropout(nnx.relu(self.up(x))))

    net = nnx_net(Dropping(nnx.Rngs(0)), jnp.ones((2, 5)))
    params = pruned(net.params, np.random.default_rng(2))
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        shrunk = jpq_jax.shrink(net.apply, params, *net.inputs)
        expected = net.apply(params, *net.inputs)
        np.testing.assert_allclose(shrunk.apply(shrunk.params, *net.inputs), expected, rtol=1e-5)


def test_what_the_function_does_not_use_is_left_alone():
    params = two_layer_params() | random_params(auxiliary=(6, 9))
    shrunk = shrunk_layers(params)
    np.testing.assert_array_equal(shrunk.params["auxiliary"], params["auxiliary"])


def test_a_gate_that_is_shut_goes_with_what_it_gates():
    def apply(params: Any, x: jax.Array) -> jax.Array:
        gate, value = jnp.split(x @ params["up"], 2, axis=-1)
        return (jax.nn.silu(gate) * value) @ params["down"]

    params = random_params(up=(5, 16), down=(8, 3))
    params["up"][:, [1, 6]] = 0  # of the gates
    params["up"][:, 8 + 4] = 0  # of the values
    params["down"][2] = 0
    x = jax.random.normal(jax.random.key(0), (4, 5))
    shrunk = jpq_jax.shrink(apply, params, x)
    assert shrunk.params["up"].shape == (5, 8)
    assert shrunk.params["down"].shape == (4, 3)
    np.testing.assert_allclose(shrunk.apply(shrunk.params, x), apply(params, x), rtol=1e-4)
