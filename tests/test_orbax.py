"""Orbax folders: both of its APIs, items, steps, devices that are not here, and Flax's states."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from compiled import THOROUGH
from flax import nnx
from flax.training.checkpoints import save_checkpoint
from flax.training.train_state import TrainState
from orbax.checkpoint.experimental import v1

from jpq_jax import Budget, artifact, compress, plan_leaves
from jpq_jax.checkpoint import find_checkpoint, read_checkpoint

TREE = {"dense": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.ones(3)}}
ONE = np.ones(1, np.float32)


def save(path: Path, tree: Any) -> Path:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
    return path


def save_steps(path: Path, steps: dict[int, Any], **options: Any) -> Path:
    with ocp.CheckpointManager(path, options=ocp.CheckpointManagerOptions(**options)) as manager:
        for step, tree in steps.items():
            args = (
                tree if isinstance(tree, ocp.args.CheckpointArgs) else ocp.args.StandardSave(tree)
            )
            manager.save(step, args=args)
    return path


def assert_trees_equal(found: Any, wanted: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for got, expected in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert isinstance(got, np.ndarray)
        np.testing.assert_array_equal(got, expected, strict=True)


def test_a_tree_alone(tmp_path: Path):
    place = save(tmp_path / "checkpoint", TREE)
    assert_trees_equal(read_checkpoint(place), TREE)
    assert_trees_equal(read_checkpoint(place, only="dense"), TREE["dense"])
    assert find_checkpoint(place) == place


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, ("2", "10")),
        ({"step_prefix": "checkpoint"}, ("checkpoint_2", "checkpoint_10")),
        ({"step_format_fixed_length": 4}, ("0002", "0010")),
    ],
)
def test_what_a_manager_writes(tmp_path: Path, options: dict[str, Any], names: tuple[str, str]):
    earlier = jax.tree.map(lambda leaf: leaf + 1, TREE)
    root = save_steps(tmp_path / "run", {2: earlier, 10: TREE}, **options)
    (root / "11.orbax-checkpoint-tmp").mkdir()
    (root / "12").mkdir()  # holds nothing
    for place in (root, root / names[1], root / names[1] / "default"):
        assert_trees_equal(read_checkpoint(place), TREE)
        assert find_checkpoint(place) == root / names[1] / "default"
    assert_trees_equal(read_checkpoint(root / names[0]), earlier)
    for only in ("dense", "default/dense"):
        assert_trees_equal(read_checkpoint(root, only=only), TREE["dense"])


def test_trees_that_are_called_by_their_steps(tmp_path: Path):
    """As Flax's `save_checkpoint` writes them, or a loop over a `StandardCheckpointer`."""
    for step, tree in ((3, {"w": ONE}), (20, TREE)):
        save_checkpoint(tmp_path / "flax", tree, step=step, keep=5)
        save(tmp_path / "loop" / f"step_{step}", tree)
    assert_trees_equal(read_checkpoint(tmp_path / "flax"), TREE)
    assert_trees_equal(read_checkpoint(tmp_path / "loop"), TREE)
    assert find_checkpoint(tmp_path / "loop") == tmp_path / "loop" / "step_20"
    v1.save_checkpointables(tmp_path / "items", {"model_1": TREE, "model_2": TREE})
    with pytest.raises(ValueError, match="2 items, .*: model_1, model_2$"):
        read_checkpoint(tmp_path / "items")


@pytest.mark.filterwarnings("ignore:Flax Checkpointing:DeprecationWarning")
def test_flax_files_without_orbax(tmp_path: Path):
    with flax.config.temp_flip_flag("use_orbax_checkpointing", False):
        for step in (3, 20):
            save_checkpoint(tmp_path, TREE, step=step, keep=5)
    assert_trees_equal(read_checkpoint(tmp_path / "checkpoint_20"), TREE)
    with pytest.raises(ValueError, match="below it: checkpoint_20, checkpoint_3;"):
        read_checkpoint(tmp_path)


def test_several_items_are_listed(tmp_path: Path):
    items = ocp.args.Composite(
        params=ocp.args.StandardSave(TREE),
        optimizer=ocp.args.StandardSave({"mu": ONE}),
        config=ocp.args.JsonSave({"a": 1}),
    )
    root = save_steps(tmp_path / "run", {0: items})
    for read in (read_checkpoint, find_checkpoint):
        with pytest.raises(
            ValueError, match=r"run/0: got .* 2 items, .*`only`: optimizer, params$"
        ):
            read(root)
        with pytest.raises(ValueError, match="2 items"):
            read(root, only="dense")
    assert_trees_equal(read_checkpoint(root, only="params"), TREE)
    assert_trees_equal(read_checkpoint(root, only="params/dense"), TREE["dense"])
    assert find_checkpoint(root, only="params/dense") == root / "0" / "params"
    with pytest.raises(ValueError, match=r"0/params: got only='kernel', expected one of 'dense'"):
        read_checkpoint(root, only="params/kernel")


def test_the_layout_of_v1(tmp_path: Path):
    v1.save(tmp_path / "one", TREE)
    v1.save_checkpointables(tmp_path / "two", {"model": TREE, "optimizer": {"mu": ONE}})
    with v1.training.Checkpointer(tmp_path / "run") as checkpointer:
        for step in (0, 5):
            checkpointer.save(step, jax.tree.map(lambda leaf, by=5 - step: leaf + by, TREE))
    assert_trees_equal(read_checkpoint(tmp_path / "one"), TREE)
    assert_trees_equal(read_checkpoint(tmp_path / "one", only="state/dense"), TREE["dense"])
    assert_trees_equal(read_checkpoint(tmp_path / "two", only="model"), TREE)
    with pytest.raises(ValueError, match="2 items, .*: model, optimizer$"):
        read_checkpoint(tmp_path / "two")
    assert_trees_equal(read_checkpoint(tmp_path / "run"), TREE)
    assert find_checkpoint(tmp_path / "run") == tmp_path / "run" / "5" / "state"


ON_DEVICES = """
import sys, jax, jax.numpy as jnp, orbax.checkpoint as ocp
count, path = int(sys.argv[1]), sys.argv[2]
assert jax.device_count() == count
sharding = jax.NamedSharding(jax.make_mesh((count,), ("x",)), jax.sharding.PartitionSpec("x"))
with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(path, {"w": jax.device_put(jnp.arange(2.0 * count), sharding)})
"""


@pytest.mark.parametrize("count", [16, 4] if THOROUGH else [16])
def test_from_more_or_fewer_devices(tmp_path: Path, count: int):
    flags = f"--xla_force_host_platform_device_count={count}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    path = tmp_path / "checkpoint"
    command = [sys.executable, "-c", ON_DEVICES, str(count), str(path)]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert jax.device_count() != count
    assert_trees_equal(read_checkpoint(path), {"w": np.arange(2.0 * count, dtype=np.float32)})


class Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.value = nnx.Linear(2, 3, rngs=rngs)  # a name that variables have inside
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(3, 3, rngs=rngs)])


def key_data(tree: Any) -> Any:
    """On the host, with typed keys as their data."""
    return jax.tree.map(
        lambda leaf: np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf), tree
    )


def is_key(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def test_nnx_states_with_typed_keys_come_back_as_pure_dicts(tmp_path: Path):
    network = Network(nnx.Rngs(0))
    _, state = nnx.split(network)
    found = read_checkpoint(save(tmp_path / "state", state))
    pure = nnx.to_pure_dict(state)
    assert_trees_equal(nnx.restore_int_paths(found), key_data(pure))
    assert found["dropout"]["rngs"]["key"].dtype == np.uint32
    assert_trees_equal(read_checkpoint(save(tmp_path / "pure", pure)), found)
    kernels = [p.path for p in plan_leaves(found) if p.compress]
    assert kernels == ["blocks/0/kernel", "value/kernel"]
    assert list(read_checkpoint(tmp_path / "state", only="value")) == ["bias", "kernel"]


def test_nnx_optimizers(tmp_path: Path):
    network = Network(nnx.Rngs(0))
    optimizer = nnx.Optimizer(network, optax.adam(1e-3), wrt=nnx.Param)
    state = {"model": nnx.state(network), "optimizer": nnx.state(optimizer), "epoch": 3}
    found = read_checkpoint(save(tmp_path / "state", state), only="model/value")
    np.testing.assert_array_equal(found["kernel"], network.value.kernel[...])
    whole = read_checkpoint(tmp_path / "state")
    assert whole["epoch"] == 3
    kernel = whole["model"]["value"]["kernel"]["value"]  # not all of it is of NNX
    np.testing.assert_array_equal(kernel, found["kernel"])


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_typed_keys_come_back_as_their_data(tmp_path: Path, impl: str):
    keys = {"one": jax.random.key(3, impl=impl), "more": jax.random.split(jax.random.key(4), 2)}
    found = read_checkpoint(save(tmp_path / "keys", keys))
    assert_trees_equal(found, key_data(keys))
    assert jax.random.wrap_key_data(found["one"], impl=impl) == keys["one"]


def test_only_the_params_of_a_train_state(tmp_path: Path):
    model = nn.Dense(3)
    params = model.init(jax.random.key(0), jnp.ones((1, 2)))["params"]
    optimizer = optax.chain(optax.clip(1.0), optax.adam(1e-3))
    state = TrainState.create(apply_fn=model.apply, params=params, tx=optimizer)
    root = save_steps(tmp_path / "run", {7: state})
    whole = read_checkpoint(root)
    assert whole["step"] == 0
    assert whole["opt_state"][0] is None
    assert_trees_equal(whole["params"], jax.tree.map(np.asarray, params))
    assert_trees_equal(read_checkpoint(root, only="params"), whole["params"])
    assert_trees_equal(
        read_checkpoint(root, only="opt_state/1/0/mu"), whole["opt_state"][1][0]["mu"]
    )
    with pytest.raises(ValueError, match="expected one of 'opt_state', 'params', 'step'"):
        read_checkpoint(root, only="model")


def test_only_a_part_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = save(tmp_path / "state", {"params": {"w": ONE}, "optimizer": {"mu": ONE}})
    restored = []
    deserialize = ocp.type_handlers.NumpyHandler.deserialize

    async def recorded(self: Any, infos: Any, args: Any = None) -> Any:
        restored.extend(info.name for info in infos)
        return await deserialize(self, infos, args)

    monkeypatch.setattr(ocp.type_handlers.NumpyHandler, "deserialize", recorded)
    read_checkpoint(place, only="params")
    assert restored == ["params.w"]


@pytest.mark.parametrize("options", [{"use_ocdbt": False}, {"use_ocdbt": True, "use_zarr3": True}])
def test_other_storages(tmp_path: Path, options: dict[str, bool]):
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
        checkpointer.save(tmp_path / "x", ocp.args.PyTreeSave(TREE))
    assert_trees_equal(read_checkpoint(tmp_path / "x"), TREE)


def test_dtypes_containers_and_names(tmp_path: Path):
    tree = {
        **{name: np.arange(2).astype(getattr(ml_dtypes, name)) for name in ("bfloat16", "int4")},
        "float8": np.arange(3).astype(ml_dtypes.float8_e5m2),
        "complex": np.ones(2, np.complex64),
        "list": [ONE, None, (), {}, [ONE + 1]],
        **{name: np.full(1, i) for i, name in enumerate(("a/b", "a.b", "", ".", "[x] é"))},
        "nested": {"": {"c": ONE}},
    }
    assert_trees_equal(read_checkpoint(save(tmp_path / "x", tree)), tree)
    found = read_checkpoint(save(tmp_path / "y", {0: ONE, 10: (ONE, 2.5)}))
    assert_trees_equal(found, {"0": ONE, "10": [ONE, np.array(2.5)]})


@pytest.mark.parametrize("tree", [{"a.b": ONE, "a": {"b": ONE + 1}}, {"a": [ONE], "a.0": ONE + 1}])
def test_names_that_orbax_writes_over_each_other(tmp_path: Path, tree: Any):
    place = save(tmp_path / "x", tree)
    with pytest.raises(ValueError, match=r"x: leaf 'a\..': Orbax saved several leaves .* as one"):
        read_checkpoint(place)


def test_unfinished_checkpoints(tmp_path: Path):
    whole = save_steps(tmp_path / "run", {3: TREE}) / "3"
    unfinished = whole.rename(tmp_path / "run" / "3.orbax-checkpoint-tmp")
    with pytest.raises(
        ValueError, match="3.orbax-checkpoint-tmp: got an unfinished orbax checkpoint"
    ):
        read_checkpoint(unfinished)
    for read in (read_checkpoint, find_checkpoint):
        with pytest.raises(ValueError, match="run: got an orbax folder, .*unfinished: 3.orbax"):
            read(tmp_path / "run")


def lose_data(place: Path) -> None:
    (place / "manifest.ocdbt").unlink()


def lose_names(place: Path) -> None:
    (place / "_METADATA").unlink()


def break_names(place: Path) -> None:
    (place / "_METADATA").write_text("{")


@pytest.mark.parametrize("damage", [lose_data, lose_names, break_names])
def test_damaged_checkpoints_are_named(tmp_path: Path, damage: Callable[[Path], None]):
    place = save(tmp_path / "broken", TREE)
    damage(place)
    with pytest.raises(ValueError, match="broken: "):
        read_checkpoint(place)


@pytest.mark.parametrize("module", ["orbax.checkpoint", "msgpack"])
def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str):
    (tmp_path / "x.msgpack").write_bytes(b"\x81\xa1a\x01")
    place = save(tmp_path / "x", TREE) if module != "msgpack" else tmp_path / "x.msgpack"
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ValueError, match=rf"x.*: to read .*, install jpq_jax\[{module.split('.')[0]}\]"
    ):
        read_checkpoint(place)


def test_a_checkpoint_of_several_steps_is_compressed(tmp_path: Path):
    kernel = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
    root = save_steps(tmp_path / "run", {1: {"params": {"kernel": kernel}, "step": 1}})
    params = read_checkpoint(root, only="params")
    size = artifact.save(tmp_path / "x.jpq", compress(params, Budget(nbytes=500)))
    assert size <= 500
    assert artifact.load(tmp_path / "x.jpq").codes["kernel"].shape == (32, 32)
