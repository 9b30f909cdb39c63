"""NumPy's and Flax's files are read; of others the message says what they are and what to do."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.serialization import msgpack_serialize, to_bytes

from jpq_jax.checkpoint import read_checkpoint

ONE = np.ones(1, np.float32)


def assert_trees_equal(found: Any, wanted: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for got, expected in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert got.dtype == expected.dtype
        assert got.shape == expected.shape
        assert got.tobytes() == expected.tobytes()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path: Path, save: Callable[..., None]):
    arrays = {
        "a/b": np.arange(6.0).reshape(2, 3),
        "a.b": np.ones(2, np.float16),
        "": np.array(3),
        "x [é]": np.array([1 + 2j], np.complex64),
        "a": np.zeros((0, 3)),
        "a.npy": np.array([True]),
        "bfloat16": np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16).T,
    }
    save(tmp_path / "x.npz", **arrays)
    (tmp_path / "x.npz").rename(tmp_path / "x")
    assert_trees_equal(read_checkpoint(tmp_path / "x"), arrays)


def test_arrays_of_the_other_byte_order_and_layout_in_npz(tmp_path: Path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.savez(tmp_path / "x.npz", big=array.astype(">f4"), columns=np.asfortranarray(array))
    assert_trees_equal(read_checkpoint(tmp_path / "x.npz"), {"big": array, "columns": array})


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (np.array([{"a": ONE}], object), r"leaf 'w': .*allow_pickle=False"),
        (np.array(["a"]), r"leaf 'w': got dtype <U1, expected numbers"),
        (np.array(["2020"], "M8[D]"), r"leaf 'w': got dtype datetime64\[D\]"),
        (np.zeros(1, [("a", "u1"), ("b", "u1")]), r"leaf 'w': got dtype"),
        (ONE.astype(ml_dtypes.float8_e4m3fn), r"leaf 'w': got dtype \|V1.*float8.*safetensors"),
        (ONE.astype(ml_dtypes.int4), r"leaf 'w': got dtype \|V1.*below 8 bits"),
    ],
)
def test_what_is_no_number_in_npz(tmp_path: Path, leaf: np.ndarray, message: str):
    np.savez(tmp_path / "x.npz", a=ONE, w=leaf)
    with pytest.raises(ValueError, match=rf"x\.npz: {message}"):
        read_checkpoint(tmp_path / "x.npz")


def test_damaged_npz(tmp_path: Path):
    path = tmp_path / "x.npz"
    np.savez(path, w=np.arange(100.0))
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    with pytest.raises(ValueError, match=r"x\.npz: got a truncated zip archive"):
        read_checkpoint(path)
    path.write_bytes(whole.replace(b"\x08@", b"\x09@", 1))
    with pytest.raises(ValueError, match=r"x\.npz: leaf 'w': .*CRC"):
        read_checkpoint(path)
    np.savez(path)
    with pytest.raises(ValueError, match=r"x\.npz: got arrays \[\], expected some"):
        read_checkpoint(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w.npy", b"")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("w.npy", b"")
    with pytest.raises(ValueError, match="each once"):
        read_checkpoint(path)


def test_flax_msgpack(tmp_path: Path):
    tree = {
        "Dense_0": {"kernel": jnp.arange(6.0).reshape(2, 3), "a.b/c": jnp.ones(2, jnp.bfloat16)},
        **{n: np.arange(3).astype(getattr(ml_dtypes, n)) for n in ("int4", "float8_e4m3fn")},
        "list": [np.ones(2), np.zeros((0, 3), np.float16)],
        "numbers": {"int": 3, "float": 2.5, "bool": True, "complex": 1 + 2j, "np": np.float16(2)},
        "keys": {0: np.ones(1), 10: np.ones(2)},
        "": {"none": None, "empty": {}},
        "scalar": jnp.float32(4),
    }
    (tmp_path / "x").write_bytes(msgpack_serialize(tree))
    assert_trees_equal(read_checkpoint(tmp_path / "x"), jax.tree.map(np.asarray, tree))
    found = read_checkpoint(tmp_path / "x", only="Dense_0")
    assert list(found) == ["a.b/c", "kernel"]


def test_flax_state_dicts(tmp_path: Path):
    (tmp_path / "x").write_bytes(to_bytes({"a": [ONE, (ONE, {"b": ONE})]}))
    wanted = {"a": {"0": ONE, "1": {"0": ONE, "1": {"b": ONE}}}}
    assert_trees_equal(read_checkpoint(tmp_path / "x"), wanted)


def test_flax_arrays_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 16)
    tree = {"a": {"w": np.arange(15.0).reshape(3, 5)}, "b": np.arange(9, dtype=ml_dtypes.bfloat16)}
    data = msgpack_serialize(tree)
    assert data.count(b"__msgpack_chunked_array__") == 2
    (tmp_path / "x").write_bytes(data)
    assert_trees_equal(read_checkpoint(tmp_path / "x"), tree)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (msgpack_serialize({"a": {"b": "text"}}), "leaf 'a/b': got str, expected numbers"),
        (msgpack_serialize({"a": {"b": b"text"}}), "leaf 'a/b': got bytes, expected numbers"),
        (msgpack_serialize({"a": ONE})[:-2], "incomplete"),
        (msgpack_serialize({"a": ONE}) + b"\0", "extra data"),
        (msgpack_serialize({"a": ONE}).replace(b"float32", b"float99"), "float99"),
        (msgpack_serialize({"a": ONE}).replace(b"float32", b"float64"), "buffer size"),
        (msgpack_serialize({"a": ONE}).replace(b"\xc7\x11\x01", b"\xc7\x11\x05"), "kind 5"),
        (b"\x82\xa1a\x01\x02\x03", r"keys \['a', 2\], expected all of one type"),
    ],
)
def test_damaged_or_other_msgpack(tmp_path: Path, data: bytes, message: str):
    (tmp_path / "x.msgpack").write_bytes(data)
    with pytest.raises(ValueError, match=rf"x\.msgpack: got a damaged or other .*{message}"):
        read_checkpoint(tmp_path / "x.msgpack")


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"), io.BytesIO(b""))
    return buffer.getvalue()


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, ONE)
    return buffer.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
OTHERS = {
    "torch's zip": (
        zipped("m/data.pkl", "m/version"),
        r"PyTorch.*save_file\(.*torch\.load\('FILE'",
    ),
    "TorchScript": (zipped("m/data.pkl", "m/constants.pkl"), r"TorchScript.*torch\.jit\.load"),
    "torch's older pickle": (pickle.dumps({"w": 1}, 2), r"pickle, which can run code.*save_file"),
    "a pickle of today": (pickle.dumps({"w": 1}, 5), "pickle, which can run code"),
    "ONNX": (b"\x08\x07\x12\x07pytorch\x1a\x052.1.0:\x10", "ONNX.*numpy_helper"),
    "GGUF": (b"GGUF\x03\x00\x00\x00", "GGUF.*take the safetensors"),
    "HDF5": (b"\x89HDF\r\n\x1a\n\x00", "HDF5.*numpy.savez"),
    "Keras": (zipped("config.json", "model.weights.h5", "metadata.json"), "Keras.*numpy.savez"),
    "an LFS pointer": (POINTER, "Git LFS pointer.*git lfs pull"),
    "a web page": (b"\n <!DOCTYPE html>\n<html>", "HTML.*download the file itself"),
    "a web page after a mark": (b"\xef\xbb\xbf<html lang=en>", "HTML"),
    "an answer of a store": (b'<?xml version="1.0"?><Error>', "HTML or XML page"),
    "an error in JSON": (b'{"error": "not found"}', "a JSON text"),
    "an empty file": (b"", "an empty file"),
    "npy": (npy(), "an array without a name.*numpy.savez"),
    "another zip": (zipped("a.txt", "w.npy"), "zip archive of other than arrays: unpack"),
    "a zip that ends": (zipped("w.npy")[:-8], "truncated zip archive"),
    "gzip": (gzip.compress(b"x"), "packed archive: unpack"),
    "tar": (tarred(), "packed archive: unpack"),
    "zstd": (b"\x28\xb5\x2f\xfd\x04", "packed archive"),
    "TensorFlow's list": (b'model_checkpoint_path: "ckpt-1"', "TensorFlow checkpoint"),
    "TensorFlow Lite": (b"\x1c\x00\x00\x00TFL3\x14", "TensorFlow Lite"),
    "text": (b"hello", "an unknown file, which begins with b'hello'"),
    "zeros": (bytes(64), "an unknown file"),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("suffix", ["", ".safetensors", ".bin"])
def test_files_of_others_by_their_content(tmp_path: Path, kind: str, suffix: str):
    data, message = OTHERS[kind]
    path = tmp_path / f"model{suffix}"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"model{suffix}: got .*{message}.*; expected a safeten"):
        read_checkpoint(path)


def test_what_only_a_suffix_tells(tmp_path: Path):
    for name, message in [("x.pb", "a TensorFlow SavedModel"), ("x.onnx", "got ONNX")]:
        (tmp_path / name).write_bytes(b"\x0a\x05hello")
        with pytest.raises(ValueError, match=message):
            read_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pytorch_model.bin", r"PyTorch.*torch\.load"),
        ("pytorch_model-00001-of-00002.bin", "PyTorch"),
        *((f"model.{suffix}", "PyTorch") for suffix in ("pt", "pth", "ckpt")),
        ("saved_model.pb", "TensorFlow SavedModel"),
        ("ckpt-1.data-00000-of-00001", "TensorFlow checkpoint"),
        ("tf_model.h5", "HDF5"),
        ("model.keras", "Keras"),
        ("model.Q4_K_M.gguf", "GGUF"),
        ("model.onnx", "ONNX"),
    ],
)
def test_folders_of_others(tmp_path: Path, name: str, message: str):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(
        ValueError, match=rf"got a folder with {name}, .*{message}.*; expected a safe"
    ):
        read_checkpoint(tmp_path)
