"""Which leaves are compressed, what the user may say about it, and how many bits a budget is."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import example, given, settings
from hypothesis import strategies as st

import jpq_jax
from jpq_jax import Budget, Codes, plan_leaves, project_alternating
from jpq_jax.plan import capacity, check_finite, compressed_leaves, with_compressed
from jpq_jax.vocabulary import CODE_DTYPE, LEVELS, LeafPlan


def params() -> dict[str, Any]:
    return {
        "conv": {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4)},
        "dense": {"kernel": jnp.ones((6, 5), jnp.bfloat16), "scale": jnp.ones((1, 5))},
        "stem": jnp.ones((2, 2), jnp.float16),
    }


def chosen(plan: list[LeafPlan]) -> list[str]:
    return [p.path for p in plan if p.compress]


KERNELS = ["conv/kernel", "dense/kernel", "stem"]


def test_by_default_kernels_are_compressed():
    plan = plan_leaves(params())
    assert chosen(plan) == KERNELS
    assert [p.path for p in plan] == [
        "conv/bias", "conv/kernel", "dense/kernel", "dense/scale", "stem",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "leaf", "why"),
    [
        ("kernel", jnp.ones((2, 2)), "kernel"),
        ("embedding", jnp.ones((2, 2, 2)), "kernel"),
        ("bias", jnp.ones((2, 2)), "named bias"),
        ("scale", jnp.ones((2, 2)), "named scale"),
        ("mean", jnp.ones((2, 2)), "named mean"),
        ("var", jnp.ones((2, 2)), "named var"),
        ("kernel", jnp.ones(2), "1 axis"),
        ("kernel", jnp.float32(2), "a scalar"),
        ("kernel", jnp.ones((2, 2), jnp.int32), "int32, not floating"),
        ("kernel", np.ones((2, 2), bool), "bool, not floating"),
        ("kernel", np.ones((2, 2), np.complex64), "complex64, not floating"),
        ("kernel", jnp.ones((2, 0)), "empty"),
        ("kernel", jax.ShapeDtypeStruct((2, 2), jnp.bfloat16), "kernel"),
    ],
)
def test_default_rule_and_its_reason(name: str, leaf: Any, why: str):
    [plan] = plan_leaves({"layer": {name: leaf}})
    rounded = why != "kernel" and jnp.issubdtype(leaf.dtype, jnp.floating)
    assert plan == LeafPlan(f"layer/{name}", why == "kernel", why, rounded=bool(rounded))


def test_a_random_key_among_the_leaves_is_stored():
    plan = plan_leaves({"kernel": jnp.ones((2, 2)), "key": jax.random.key(0)})
    assert chosen(plan) == ["kernel"]


def test_nnx_state_with_batch_statistics_and_a_dropout_key():
    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.dense = nnx.Linear(3, 4, rngs=rngs)
            self.norm = nnx.BatchNorm(4, rngs=rngs)
            self.drop = nnx.Dropout(0.5, rngs=rngs)

    state = nnx.state(Net(nnx.Rngs(0)))
    assert chosen(plan_leaves(state, lambda path, _: path.endswith("kernel"))) == ["dense/kernel"]
    assert chosen(plan_leaves(state)) == ["dense/kernel"]


def test_equinox_model():
    model = eqx.nn.MLP(2, 3, 4, 1, key=jax.random.key(0))
    arrays = eqx.filter(model, eqx.is_array)
    assert chosen(plan_leaves(arrays)) == ["layers/0/weight", "layers/1/weight"]


def test_a_mask_tree_may_be_callable_as_equinox_models_are():
    model = eqx.filter(eqx.nn.MLP(2, 3, 4, 1, key=jax.random.key(0)), eqx.is_array)
    mask = jax.tree.map(lambda leaf: leaf.shape == (4, 2), model)
    assert callable(mask)
    assert chosen(plan_leaves(model, mask)) == ["layers/0/weight"]


def test_mask_tree():
    mask = jax.tree.map(lambda leaf: leaf.ndim == 4, params())
    plan = plan_leaves(params(), mask)
    assert chosen(plan) == ["conv/kernel"]
    assert {p.why for p in plan} == {"the user's mask"}


@pytest.mark.parametrize(
    ("mask", "paths"),
    [
        ({"conv": False, "dense": True, "stem": False}, ["dense/kernel", "dense/scale"]),
        (
            {"conv": {"kernel": True, "bias": False}, "dense": False, "stem": True},
            ["conv/kernel", "stem"],
        ),
        (True, ["conv/bias", "conv/kernel", "dense/kernel", "dense/scale", "stem"]),
        ({"conv": np.bool_(0), "dense": jnp.array(False), "stem": 1}, ["stem"]),
    ],
)
def test_a_mask_may_be_a_prefix_of_the_tree(mask: Any, paths: list[str]):
    assert chosen(plan_leaves(params(), mask)) == paths


def test_a_predicate_sees_paths_and_leaves():
    seen = {}

    def where(path: str, leaf: Any) -> bool:
        seen[path] = leaf.shape
        return path.startswith("conv")

    plan = plan_leaves(params(), where)
    assert chosen(plan) == ["conv/bias", "conv/kernel"]
    assert {p.why for p in plan} == {"the user's predicate"}
    assert seen["dense/kernel"] == (6, 5)
    assert len(seen) == 5


@pytest.mark.parametrize(
    "mask",
    [
        {"conv": True},
        {"conv": True, "dense": False, "other": False},
        {"conv": {"kernel": True}, "dense": False, "stem": False},
        {"conv": [True, False], "dense": False, "stem": False},
        {"conv": False, "dense": False, "stem": {"kernel": True}},
        [True, False, False],
        {"conv": True, "dense": False, "stem": np.array([True, False])},
    ],
)
def test_a_mask_of_another_structure(mask: Any):
    with pytest.raises(ValueError, match="the mask does not fit the params"):
        plan_leaves(params(), mask)


@pytest.mark.parametrize("where", [False, lambda path, _: path == "conv/kernels"])
def test_a_choice_of_no_leaf_lists_the_leaves(where: Any):
    with pytest.raises(ValueError, match="selects no leaf.*conv/bias, conv/kernel, dense/kernel"):
        plan_leaves(params(), where)


@pytest.mark.parametrize("dtype", [jnp.int8, bool, jnp.complex64])
@pytest.mark.parametrize("where", [True, lambda *_: True])
def test_only_floating_leaves_may_be_selected(dtype: Any, where: Any):
    with pytest.raises(ValueError, match=rf"leaf 'b/0'.*{jnp.dtype(dtype).name}.*floating"):
        plan_leaves({"a": jnp.ones(2), "b": [jnp.ones((2, 2), dtype)]}, where)


@pytest.mark.parametrize("leaf", [1.0, "name", object()])
def test_a_leaf_that_is_no_array(leaf: Any):
    with pytest.raises(
        ValueError, match=f"leaf 'a/1': got {type(leaf).__name__}, expected an array"
    ):
        plan_leaves({"a": [jnp.ones((2, 2)), leaf]})


def test_a_compressed_tree_is_not_compressed_again():
    code, book = jnp.ones((2, 2), CODE_DTYPE), jnp.zeros(LEVELS).at[1].set(0.5)
    with pytest.raises(ValueError, match=r"leaf 'kernel'.*Codes"):
        plan_leaves({"kernel": Codes(code, book, jnp.int32(1), "float32")})


def test_an_empty_tree_has_an_empty_plan():
    assert plan_leaves({}) == []
    assert plan_leaves({}, True) == []
    assert plan_leaves({"a": None}, lambda *_: True) == []


def test_compressed_leaves_go_out_and_come_back_in_order():
    tree = params()
    plan = plan_leaves(tree)
    leaves = compressed_leaves(tree, plan)
    assert [leaf.shape for leaf in leaves] == [(3, 3, 2, 4), (6, 5), (2, 2)]
    back = with_compressed(tree, plan, ["a", "b", "c"])
    assert (back["conv"]["kernel"], back["dense"]["kernel"], back["stem"]) == ("a", "b", "c")
    assert back["conv"]["bias"] is tree["conv"]["bias"]


WEIGHTS = 72 + 30 + 4


@pytest.mark.parametrize(
    ("budget", "bits"),
    [
        (Budget(bits=0), 0),
        (Budget(bits=100), 100),
        (Budget(bits=100.9), 100),
        (Budget(bits=math.inf), 8 * WEIGHTS),
        (Budget(bits=2**70), 8 * WEIGHTS),
        (Budget(ratio=32), WEIGHTS),
        (Budget(ratio=7), 32 * WEIGHTS // 7),
        (Budget(ratio=math.inf), 0),
        (Budget(ratio=1), 8 * WEIGHTS),
        (Budget(ratio=1e-320), 8 * WEIGHTS),
        (Budget(ratio=np.float64(1e-320)), 8 * WEIGHTS),
        (Budget(ratio=np.float32(7)), 32 * WEIGHTS // 7),
        (Budget(ratio=np.int8(7)), 32 * WEIGHTS // 7),
        (Budget(bits=np.float16(60)), 60),
        (Budget(bits=np.uint8(60)), 60),
    ],
)
def test_capacity_in_bits(budget: Budget, bits: int):
    got = capacity(budget, params(), plan_leaves(params()))
    assert got == bits
    assert type(got) is int


@settings(deadline=None, derandomize=True, max_examples=200)
@given(
    weights=st.integers(1, 2**28),
    ratio=st.floats(2.0**-6, 2.0**30, width=32),
    kind=st.sampled_from([float, np.float32, np.float64]),
)
@example(weights=430_500, ratio=float(np.float16(10)), kind=np.float16)
def test_capacity_never_misses_the_ratio(weights: int, ratio: float, kind: type):
    tree = {"kernel": jax.ShapeDtypeStruct((weights, 1), jnp.float32)}
    bits = capacity(Budget(ratio=kind(ratio)), tree, plan_leaves(tree))
    exact = min(32 * weights / ratio, 8 * weights)
    assert exact - 1 < bits <= exact


def test_nothing_to_compress_says_why():
    tree = {"bias": jnp.ones(3), "steps": jnp.zeros((2, 2), jnp.int32)}
    with pytest.raises(ValueError, match="no leaf to compress: bias: 1 axis.*steps: int32"):
        capacity(Budget(bits=3), tree, plan_leaves(tree))
    with pytest.raises(ValueError, match="it has no leaves"):
        capacity(Budget(bits=3), {}, [])
    with pytest.raises(ValueError, match="no leaf to compress"):
        project_alternating(tree, Budget(bits=3))


def test_more_weights_than_32_bits_count():
    most = (2**32 - 1) // 8
    for size, fits in ((most, True), (most + 1, False)):
        tree = {"kernel": jax.ShapeDtypeStruct((size, 1), jnp.float32)}
        plan = plan_leaves(tree)
        if fits:
            assert capacity(Budget(bits=math.inf), tree, plan) == 8 * most
        else:
            with pytest.raises(ValueError, match=f"got {most + 1} weights.*at most {most}"):
                capacity(Budget(ratio=2), tree, plan)


def test_a_budget_of_the_file_is_refused():
    with pytest.raises(ValueError, match="nbytes"):
        capacity(Budget(nbytes=1000), params(), plan_leaves(params()))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_weights_that_are_not_finite_are_named(value: float, dtype: Any):
    tree = {"a": jnp.ones((2, 2)), "b": {"kernel": jnp.ones((2, 2), dtype).at[0, 1].set(value)}}
    with pytest.raises(ValueError, match="leaf 'b/kernel': got 1 NaN or infinite weights"):
        check_finite("b/kernel", tree["b"]["kernel"])
    with pytest.raises(ValueError, match="leaf 'b/kernel'"):
        project_alternating(tree, Budget(bits=3))


def test_stored_leaves_may_hold_anything_and_traced_ones_are_not_looked_at():
    tree = {"bias": jnp.array([jnp.nan]), "kernel": jnp.ones((2, 2))}
    codes = project_alternating(tree, Budget(bits=3))
    assert bool(jnp.isnan(codes["bias"][0]))
    jax.jit(lambda leaf: check_finite("kernel", leaf))(jnp.full((2, 2), jnp.inf))


@pytest.mark.parametrize(
    ("dtype", "why"),
    [
        ("float8_e8m0fnu", "which has no zero"),
        ("float6_e2m3fn", "with which JAX does not compute"),
        ("float6_e3m2fn", "with which JAX does not compute"),
        ("float8_e5m3fnu", "not floating"),  # so NumPy and JAX have it
        ("longdouble", "with which JAX does not compute"),
        *((name, "not floating") for name in ("int4", "uint2", "bool", "complex64", "S3", "O")),
        ("datetime64[s]", "not floating"),
    ],
)
def test_dtypes_that_cannot_be_compressed_are_stored_and_say_why(dtype: str, why: str):
    leaf = np.zeros((4, 4), np.dtype(dtype))
    [plan] = plan_leaves({"kernel": leaf})
    assert not plan.compress
    assert not plan.rounded
    assert why in plan.why
    with pytest.raises(ValueError, match="leaf 'kernel': got dtype .*expected a floating dtype"):
        plan_leaves({"kernel": leaf}, lambda path, _: True)


def test_keys_are_no_kernels():
    keys = jax.random.split(jax.random.key(0), (3, 3))
    [plan] = plan_leaves({"kernel": keys})
    assert "a PRNG key" in plan.why


@pytest.mark.parametrize(
    "dtype", ["float4_e2m1fn", "float8_e3m4", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2"]
)
def test_narrow_floats_are_projected_to_what_they_can_be(dtype: str):
    kernel = np.random.default_rng(0).normal(size=(16, 16)).astype(np.dtype(dtype))
    codes = jpq_jax.project({"kernel": kernel}, Budget(ratio=16))["kernel"]
    found = np.asarray(jpq_jax.dequantize(codes))
    assert found.dtype == kernel.dtype
    wide, back = kernel.astype(np.float32), found.astype(np.float32)
    assert ((back - wide) ** 2).sum() < 0.3 * (wide**2).sum()
    assert (back[np.asarray(codes.code) == 0] == 0).all()


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">f2"])
def test_a_foreign_byte_order_is_no_other_kernel(dtype: str):
    kernel = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float16)
    native = kernel.astype(np.dtype(dtype).newbyteorder("="))
    for budget, compressed in (
        (Budget(ratio=8), jpq_jax.project),
        (Budget(nbytes=250), jpq_jax.compress),
    ):
        expected = compressed({"kernel": native}, budget)  # whose program then is there
        found = compressed({"kernel": kernel.astype(dtype)}, budget)
        np.testing.assert_array_equal(found["kernel"].code, expected["kernel"].code)
