"""Checkpoints of others: read in every dtype, written in Flax's and PyTorch's layout, and refused if damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file, save_file

from jpq_jax import artifact
from jpq_jax.checkpoint import read_checkpoint, write_safetensors

TENSORS: dict[str, np.ndarray] = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array([1.5, -2], ml_dtypes.bfloat16),
    "c": np.array(3.25, np.float16),
    "d": np.array([2**53 + 1], np.int64),
    "e": np.zeros((0, 4), np.float32),
    "f": np.array([np.pi], np.float64),
    "g": np.array([True, False]),
}


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        got = np.asarray(found[name])
        assert got.dtype == tensor.dtype
        assert got.shape == tensor.shape
        assert got.tobytes() == tensor.tobytes()


def test_safetensors_come_back_to_the_bit(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    size = write_safetensors(path, TENSORS)
    assert size == path.stat().st_size
    assert_same(read_checkpoint(path), TENSORS)


def test_parts_of_a_leaf_that_stays_in_its_file(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, TENSORS)
    leaf = read_checkpoint(path, lazy=True)["a.weight"]
    assert [leaf.part(0, 4).tolist(), leaf.part(4, 2).tolist()] == [[0, 1, 2, 3], [4, 5]]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"leaf 'g': the file has become shorter"):
        np.asarray(type(leaf)(path, "g", (2,), np.dtype(bool), path.stat().st_size - 1))


def test_orbax_folder(tmp_path: Path):
    tree = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}, "step": jnp.int32(4)}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "checkpoint", tree)
    found = read_checkpoint(tmp_path / "checkpoint")
    assert jax.tree.all(jax.tree.map(np.array_equal, found, tree))


def test_our_own_file(tmp_path: Path):
    artifact.save(tmp_path / "a.jpq", {"w": jnp.ones((2, 2))})
    np.testing.assert_array_equal(read_checkpoint(tmp_path / "a.jpq")["w"], np.ones((2, 2)))


def test_names_are_joined_by_dots(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"layers": [{"kernel": np.ones((1, 2), np.float32)}]})
    assert list(load_file(path)) == ["layers.0.kernel"]


def test_pytorch_layout(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    kernel = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    tree = {
        "conv": {"kernel": kernel, "bias": np.ones(5, np.float32)},
        "dense": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)},
        "bn": {name: np.ones(5, np.float32) for name in ("scale", "bias", "mean", "var")},
    }
    write_safetensors(path, tree, pytorch=True)
    found = load_file(path)
    assert set(found) == {
        *("conv.weight", "conv.bias", "dense.weight"),
        *("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"),
    }
    np.testing.assert_array_equal(found["conv.weight"], np.einsum("hwio->oihw", kernel))
    np.testing.assert_array_equal(found["dense.weight"], tree["dense"]["kernel"].T)


def test_two_leaves_of_one_name(tmp_path: Path):
    one = np.ones(1, np.float32)
    with pytest.raises(ValueError, match=r"another leaf is called 'a\.b'"):
        write_safetensors(tmp_path / "x", {"a": {"b": one}, "a.b": one})
    assert not list(tmp_path.iterdir())


def test_damaged_files_are_named(tmp_path: Path):
    path = tmp_path / "bad.safetensors"
    save_file({"w": np.ones(4, np.float32)}, path)
    for data in (b"", b"no tensors", path.read_bytes()[:-3]):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"bad\.safetensors: neither a safetensors file"):
            read_checkpoint(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no orbax checkpoint"):
        read_checkpoint(tmp_path / "empty")
    with pytest.raises(FileNotFoundError):
        read_checkpoint(tmp_path / "none")
