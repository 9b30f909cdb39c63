"""Hugging Face folders: one file, or shards and an index, also as the links of the hub's cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax.serialization import msgpack_serialize
from safetensors.numpy import save_file

from jpq_jax.checkpoint import find_checkpoint, read_checkpoint

A, B = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(2, np.float16)
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"
MAP = {"layer.weight": SHARDS[0], "layer.bias": SHARDS[1]}


def write_shards(folder: Path, by_name: dict[str, Any] = MAP) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"layer.weight": A}, folder / SHARDS[0], metadata={"format": "pt"})
    save_file({"layer.bias": B}, folder / SHARDS[1], metadata={"format": "pt"})
    index = {"metadata": {"total_size": A.nbytes + B.nbytes}, "weight_map": by_name}
    (folder / INDEX).write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")
    return folder


def cached(folder: Path) -> Path:
    """As in the hub's cache: links from a revision to blobs that are called by their hashes."""
    write_shards(folder / "blobs")
    revision = folder / "snapshots" / "0123abc"
    revision.mkdir(parents=True)
    for number, name in enumerate((*SHARDS, INDEX)):
        (folder / "blobs" / name).rename(folder / "blobs" / str(number))
        (revision / name).symlink_to(Path("..", "..", "blobs", str(number)))
    return revision


def check_both(found: dict[str, Any]) -> None:
    assert list(found) == ["layer.bias", "layer.weight"]
    assert np.asarray(found["layer.bias"]).dtype == B.dtype
    np.testing.assert_array_equal(np.asarray(found["layer.bias"]), B)
    np.testing.assert_array_equal(np.asarray(found["layer.weight"]), A)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("make", [write_shards, cached])
def test_shards(tmp_path: Path, make: Any, lazy: bool):
    folder = make(tmp_path / "model")
    check_both(read_checkpoint(folder, lazy=lazy))
    check_both(read_checkpoint(folder / INDEX, lazy=lazy))
    assert find_checkpoint(folder) == folder / INDEX
    assert list(read_checkpoint(folder, lazy=lazy, only="layer")) == ["bias", "weight"]


@pytest.mark.parametrize(
    "name",
    [
        *("model.safetensors", "diffusion_pytorch_model.safetensors"),
        *("adapter_model.safetensors", "model.fp16.safetensors"),
    ],
)
@pytest.mark.parametrize("linked", [False, True])
def test_one_file_of_any_name_beside_other_files(tmp_path: Path, name: str, linked: bool):
    folder = tmp_path / "model"
    folder.mkdir()
    for other in ("config.json", "pytorch_model.bin", "flax_model.msgpack", "README.md"):
        (folder / other).write_text("{}")
    file = tmp_path / "0123abc" if linked else folder / name
    save_file({"layer.weight": A, "layer.bias": B}, file)
    if linked:
        (folder / name).symlink_to(file)
        check_both(read_checkpoint(file))
    check_both(read_checkpoint(folder))
    check_both(read_checkpoint(folder, lazy=True))
    assert find_checkpoint(folder) == folder / name


def test_flax_weights_where_there_are_no_safetensors(tmp_path: Path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    (tmp_path / "flax_model.msgpack").write_bytes(msgpack_serialize({"layer": {"kernel": A}}))
    np.testing.assert_array_equal(read_checkpoint(tmp_path)["layer"]["kernel"], A)


@pytest.mark.parametrize(
    ("names", "listed"),
    [
        (("model.safetensors", "adapter_model.safetensors"), "adapter_model.*, model.safetensors"),
        (("model.fp16.safetensors", "model.safetensors"), "2 models .*: model.fp16.*, model.saf"),
        (SHARDS, "without an index, .*: model-00001-of-00002.*, model-00002"),
        (("a.msgpack", "b.msgpack"), "a.msgpack, b.msgpack"),
    ],
)
def test_several_models_are_listed(tmp_path: Path, names: tuple[str, ...], listed: str):
    for name in names:
        save_file({name: A}, tmp_path / name)
    with pytest.raises(ValueError, match=listed):
        read_checkpoint(tmp_path)


def test_a_file_beside_shards_and_their_index(tmp_path: Path):
    save_file({"w": A}, write_shards(tmp_path) / "consolidated.safetensors")
    with pytest.raises(ValueError, match=f"{INDEX}, consolidated.safetensors"):
        read_checkpoint(tmp_path)
    check_both(read_checkpoint(tmp_path / INDEX))


@pytest.mark.parametrize("break_it", ["removed", "dangling"])
def test_missing_shards_are_named(tmp_path: Path, break_it: str):
    folder = cached(tmp_path)
    (tmp_path / "blobs" / "1" if break_it == "dangling" else folder / SHARDS[1]).unlink()
    with pytest.raises(ValueError, match=rf"{INDEX}: got 1 of 2 files missing: {SHARDS[1]}"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("by_name", "message"),
    [
        (MAP | {"more": SHARDS[0]}, rf"in the index, but not .*: more \({SHARDS[0]}\)"),
        (
            {"layer.weight": SHARDS[0]} | {"x": SHARDS[1]},
            rf"in the index, but not .*: x \({SHARDS[1]}\)",
        ),
        (dict.fromkeys(MAP, SHARDS[0]), rf"in the index, but not .*: layer\.bias \({SHARDS[0]}\)"),
        ({"layer.weight": "../x.safetensors"}, "damaged index, expected a 'weight_map'"),
        ({"layer.weight": 3}, "damaged index, expected a 'weight_map'"),
        ({}, "damaged index, expected a 'weight_map'"),
        ([], "damaged index, expected a 'weight_map'"),
    ],
)
def test_an_index_that_does_not_fit_the_shards(tmp_path: Path, by_name: Any, message: str):
    write_shards(tmp_path, by_name)
    with pytest.raises(ValueError, match=rf"{INDEX}: got .*{message}"):
        read_checkpoint(tmp_path / INDEX)
    with pytest.raises(ValueError, match=INDEX):
        read_checkpoint(tmp_path)


def test_tensors_that_no_index_has(tmp_path: Path):
    write_shards(tmp_path)
    save_file({"layer.bias": B, "lost": B}, tmp_path / SHARDS[1])
    with pytest.raises(ValueError, match=rf"in a file, but not in the index: lost \({SHARDS[1]}\)"):
        read_checkpoint(tmp_path)


def test_an_index_that_is_no_json(tmp_path: Path):
    write_shards(tmp_path)
    (tmp_path / INDEX).write_text('{"weight_map": {')
    for path in (tmp_path, tmp_path / INDEX):
        with pytest.raises(ValueError, match=f"{INDEX}: got a damaged index, expected JSON"):
            read_checkpoint(path)


def test_a_link_whose_blob_is_gone(tmp_path: Path):
    (tmp_path / "model.safetensors").symlink_to("gone")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        read_checkpoint(tmp_path)


def test_checkpoints_below_a_folder_are_listed(tmp_path: Path):
    cached(tmp_path / "models--a--b")
    with pytest.raises(ValueError, match=r"below it: .*snapshots/0123abc/model-00001-of-00002"):
        read_checkpoint(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="a folder without a checkpoint in it or below it"):
        read_checkpoint(tmp_path / "empty")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer.*git lfs pull"),
        (b"\x80\x02}", r"pickle.*torch\.load"),
        (b"", "an empty file"),
    ],
)
def test_shards_that_are_other_files(tmp_path: Path, data: bytes, message: str):
    (write_shards(tmp_path) / SHARDS[1]).write_bytes(data)
    with pytest.raises(ValueError, match=rf"{SHARDS[1]}: got .*{message}"):
        read_checkpoint(tmp_path)


def test_an_index_of_pytorch(tmp_path: Path):
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "pytorch_model-00001-of-00001.bin"}}))
    (tmp_path / "pytorch_model-00001-of-00001.bin").write_bytes(b"\x80\x02}")
    for path in (index, tmp_path):
        with pytest.raises(ValueError, match=r"00001\.bin.* pickle.*torch\.load"):
            read_checkpoint(path)
