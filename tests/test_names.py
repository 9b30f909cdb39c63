"""Rules that look at names treat "/", "." and nesting alike; no name is lost or dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jpq_jax import Budget, artifact, cli, compress, plan_leaves
from jpq_jax.checkpoint import read_checkpoint, write_safetensors
from jpq_jax.names import module_and_kind, pairs
from jpq_jax.post_training.search import _outputs
from jpq_jax.projection.sized_plan import Setting
from jpq_jax.report import compare, differences, inspect

ONE = np.ones(1, np.float32)
STORED = [
    *("bias", "scale", "mean", "var", "running_mean", "running_var"),
    *("beta", "gamma", "offset", "moving_mean", "moving_variance"),
]


@pytest.mark.parametrize(
    ("name", "module", "kind"),
    [
        ("bias", "", "bias"),
        ("layer/bias", "layer", "bias"),
        ("layer.bias", "layer", "bias"),
        ("a.b/c.bias", "a/b/c", "bias"),
        ("layer//bias.", "layer", "bias"),
        (".bias", "", "bias"),
        ("layer/bias/value", "layer", "bias"),
        ("value", "", "value"),
        ("value/kernel", "value", "kernel"),
        ("", "", ""),
        (".", "", ""),
        ("blocks[bias]", "", "blocks[bias]"),
        ("a bias", "", "a bias"),
    ],
)
def test_the_last_part_of_a_name(name: str, module: str, kind: str):
    assert module_and_kind(name) == (module, kind)


def spellings(name: str, leaf: Any) -> list[Any]:
    variable = {"layer": {name: {"value": leaf}}}  # Flax NNX's, as Orbax restores it
    return [
        {f"layer/{name}": leaf},
        {f"layer.{name}": leaf},
        {f"a.b/layer.{name}": leaf},
        {"layer": {name: leaf}},
        {"a.layer": {name: leaf}},
        {"a": [{f"0.{name}": leaf}]},
        variable,
    ]


@pytest.mark.parametrize("name", STORED)
def test_what_is_stored_by_its_name_is_so_in_every_spelling(name: str):
    for tree in spellings(name, np.ones((4, 4), np.float32)):
        (plan,) = plan_leaves(tree)
        assert (plan.compress, plan.why, plan.rounded) == (False, f"named {name}", True), tree


@pytest.mark.parametrize("name", ["weight", "kernel", "embedding", "rebias", "bias_table", "means"])
def test_kernels_are_so_in_every_spelling(name: str):
    for tree in spellings(name, np.ones((4, 4), np.float32)):
        assert plan_leaves(tree)[0].why == "kernel", tree


def test_norms_of_pytorch_are_stored():
    norm = {name: np.ones(4, np.float32) for name in ("weight", "bias", "running_mean")}
    tree = {f"encoder.norm.{name}": leaf for name, leaf in norm.items()}
    assert [p.why for p in plan_leaves(tree)] == ["1 axis"] * 3


@pytest.mark.parametrize(
    ("name", "axis"),
    [
        *(("weight", 0), ("in_proj_weight", 0), ("weight_hh_l0", 0), ("weight_ih", 0)),
        *(("kernel", -1), ("embedding", -1), ("w", -1), ("weights", -1), ("reweight", -1)),
    ],
)
def test_outputs_of_weights_are_first_in_every_spelling(name: str, axis: int):
    for tree in spellings(name, np.ones((4, 4), np.float32)):
        assert _outputs(plan_leaves(tree)[0].path) == axis, tree


def test_outputs_of_equinox_and_nnx():
    linear = eqx.filter(eqx.nn.Linear(2, 3, key=jax.random.key(0)), eqx.is_array)
    assert [_outputs(p.path) for p in plan_leaves(linear) if p.compress] == [0]
    state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    assert [_outputs(p.path) for p in plan_leaves(state) if p.compress] == [-1]


def test_modules_are_the_same_in_every_spelling():
    kernel, scale = np.ones((4, 4), np.float32), np.ones(4, np.float32)
    nested = {
        "dense": {"kernel": kernel, "bias": scale},
        "norm": {"scale": scale, "bias": scale},
    }
    settings = [
        Setting.of(plan_leaves(tree))
        for tree in (
            nested,
            {f"{a}/{b}": leaf for a, leaves in nested.items() for b, leaf in leaves.items()},
            {f"{a}.{b}": leaf for a, leaves in nested.items() for b, leaf in leaves.items()},
        )
    ]
    assert settings[0].norms == (None, None, 2, 2)
    assert settings == [settings[0]] * 3


@pytest.mark.parametrize(
    ("first", "second", "wanted"),
    [
        (["a/b", "a.b"], ["a.b", "a/b"], [1, 0]),
        (["a/b", "c"], ["c", "a.b"], [1, 0]),
        (["a.b/c"], ["a/b.c"], [0]),
        (["", "x"], ["x", ""], [1, 0]),
        ([], [], []),
    ],
)
def test_names_of_two_models(first: list[str], second: list[str], wanted: list[int]):
    assert pairs(first, second) == wanted


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (["a.b", "a/b"], ["a.b"], "leaf 'a/b': only the first of both has it"),
        (["a.b"], ["a.b", "a/b"], "leaf 'a/b': only the second of both has it"),
        (["a.b.c", "a/b/c"], ["a/b.c"], r"leaf 'a/b.c': got \['a/b.c'\] and \['a.b.c', 'a/b/c'\]"),
        (["a/b.c"], ["a.b.c", "a/b/c"], r"leaf 'a.b.c': got \['a.b.c', 'a/b/c'\] and \['a/b.c'\]"),
        (["a", "a"], ["a"], "leaf 'a': the first of both has several of this name"),
        (["a"], ["a", "a"], "leaf 'a': the second of both has several of this name"),
        (["ab"], ["a.b"], "leaf 'a.b': only the second of both has it"),
    ],
)
def test_names_that_have_not_one_partner(first: list[str], second: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        pairs(first, second)


def test_leaves_whose_names_differ_in_a_dot_are_compared_each(tmp_path: Path):
    first, second = {"a/b": ONE, "a.b": 2 * ONE}, {"a/b": 4 * ONE, "a.b": 2 * ONE}
    found = {each.path: each.largest for each in differences(first, second)}
    assert found == {"a.b": 0, "a/b": 3}
    nested = differences({"a": {"b": ONE}}, {"a.b": ONE})
    assert [each.path for each in nested] == ["a.b"]
    write_safetensors(tmp_path / "x", first)
    write_safetensors(tmp_path / "y", second)
    assert {each.path: each.largest for each in compare(tmp_path / "x", tmp_path / "y")} == found


NAMES = ["Dense_0/kernel", "Dense_0.kernel", "blocks[attn].w", "", "naïve weight", ".a", "a.", "0"]


def test_names_survive_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    random = np.random.default_rng(0)
    tensors = {name: random.normal(size=(8, 8)).astype(np.float32) for name in NAMES}
    dense, small, back = (
        str(tmp_path / name) for name in ("x.safetensors", "x.jpq", "y.safetensors")
    )
    write_safetensors(dense, tensors)
    assert cli.main(["compress", dense, "-o", small, "--bytes", "900"]) == 0
    assert cli.main(["decompress", small, "-o", back]) == 0
    assert read_checkpoint(back).keys() == tensors.keys()
    assert [each.path for each in compare(dense, back)] == sorted(NAMES)
    report = inspect(small, dense)
    assert [leaf.path for leaf in report.leaves] == sorted(NAMES)
    assert all(leaf.distortion is not None for leaf in report.leaves)


def test_paths_are_still_one_for_each_leaf():
    with pytest.raises(ValueError, match="got 2 leaves of this path"):
        plan_leaves({"a/b": jnp.ones((2, 2)), "a": {"b": jnp.ones((2, 2))}})
    flat = {"a/b": jnp.ones((2, 2)), "a.b": jnp.ones((2, 2)), "": jnp.ones((2, 2))}
    assert [p.path for p in plan_leaves(flat)] == ["", "a.b", "a/b"]
    codes = compress(flat, Budget(nbytes=500))
    assert sorted(artifact.decode(artifact.encode(codes)).codes) == ["", "a.b", "a/b"]
