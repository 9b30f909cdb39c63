"""Safetensors in every dtype, name and layout, refused if damaged; and parts of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jpq_jax import artifact
from jpq_jax.checkpoint import find_checkpoint, read_checkpoint, write_safetensors
from jpq_jax.vocabulary import Codes

TENSORS: dict[str, np.ndarray] = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array([1.5, -2], ml_dtypes.bfloat16),
    "c": np.array(3.25, np.float16),
    "d": np.array([2**53 + 1], np.int64),
    "e": np.zeros((0, 4), np.float32),
    "f": np.array([np.pi], np.float64),
    "g": np.array([True, False]),
}
ONE = np.ones(1, np.float32)


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
    assert find_checkpoint(path) == path


# All that safetensors 0.8 and NumPy with ml_dtypes both have.
WRITTEN = [
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "bfloat16", "complex64", "float8_e4m3fn"),
    *("float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
]


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_dtype_is_written_and_read(tmp_path: Path, name: str, order: str):
    array = np.arange(1, 5).reshape(2, 2).astype(getattr(ml_dtypes, name, name))
    swapped = array.astype(array.dtype.newbyteorder(order))
    write_safetensors(tmp_path / "x", {"w": swapped, "transposed": swapped.T})
    found = read_checkpoint(tmp_path / "x")
    assert_same(found, {"w": array, "transposed": np.ascontiguousarray(array.T)})
    assert found["w"].dtype.isnative


REFUSED = {
    "int4": ml_dtypes.int4,
    "uint4": ml_dtypes.uint4,
    "int2": ml_dtypes.int2,
    "uint2": ml_dtypes.uint2,
    "float4_e2m1fn": ml_dtypes.float4_e2m1fn,
    "float6_e2m3fn": ml_dtypes.float6_e2m3fn,
    "float8_e3m4": ml_dtypes.float8_e3m4,
    "float8_e4m3": ml_dtypes.float8_e4m3,
    "float8_e4m3b11fnuz": ml_dtypes.float8_e4m3b11fnuz,
    "complex128": np.complex128,
    "str96": "U3",
    "datetime64": "M8[s]",
    "object": object,
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_dtypes_are_refused_by_name_before_anything_is_written(tmp_path: Path, name: str):
    leaf = np.zeros(2, REFUSED[name])
    with pytest.raises(
        ValueError, match=rf"leaf 'a\.w': got dtype {name}.*, expected one of bool, "
    ):
        write_safetensors(tmp_path / "x", {"a": {"w": leaf}, "b": ONE})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (jax.random.key(0), r"leaf 'w': got typed keys.*key_data"),
        ("text", r"leaf 'w': got dtype str"),
        (Codes(*[jnp.zeros(1)] * 3, dtype="float32"), r"leaf 'w': got Codes.*dequantize"),
    ],
)
def test_what_is_no_array_is_refused_by_name(tmp_path: Path, leaf: Any, message: str):
    with pytest.raises(ValueError, match=message):
        write_safetensors(tmp_path / "x", {"w": leaf})


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F6_E3M2"])
def test_packed_dtypes_of_safetensors_are_refused_by_name(tmp_path: Path, dtype: str):
    bits = 4 * int(dtype[1])
    header = f'{{"w":{{"dtype":"{dtype}","shape":[4],"data_offsets":[0,{bits // 8}]}}}}'.encode()
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header + bytes(bits // 8))
    with pytest.raises(ValueError, match=rf"x: leaf 'w': got dtype {dtype}, expected one of BOOL"):
        read_checkpoint(tmp_path / "x")


def test_parts_of_a_leaf_that_stays_in_its_file(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, TENSORS)
    leaf = read_checkpoint(path, lazy=True)["a.weight"]
    assert [leaf.part(0, 4).tolist(), leaf.part(4, 2).tolist()] == [[0, 1, 2, 3], [4, 5]]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"leaf 'g': the file has become shorter"):
        np.asarray(type(leaf)(path, "g", (2,), np.dtype(bool), path.stat().st_size - 1))


def test_our_own_file(tmp_path: Path):
    artifact.save(tmp_path / "a.jpq", {"w": jnp.ones((2, 2))})
    np.testing.assert_array_equal(read_checkpoint(tmp_path / "a.jpq")["w"], np.ones((2, 2)))


def test_names_are_joined_by_dots(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"layers": [{"kernel": np.ones((1, 2), np.float32)}]})
    assert list(load_file(path)) == ["layers.0.kernel"]


NAMES = [
    *(
        "Dense_0/kernel",
        "a/b",
        "a.b",
        "a//b",
        "blocks[attn].w",
        "with space",
        " ",
        "naïve/ß",
        "0",
        "01",
    ),
    *(
        "",
        ".",
        "/",
        ".a",
        "a.",
        "..",
        "(root)",
        "value",
        "a/value",
        "\N{SNOWMAN}",
        "a\nb",
        "[bold]x",
    ),
]


def test_names_of_a_flat_dict_survive(tmp_path: Path):
    flat = {name: np.full(1, i, np.float32) for i, name in enumerate(NAMES)}
    write_safetensors(tmp_path / "a.safetensors", flat)
    assert_same(read_checkpoint(tmp_path / "a.safetensors"), flat)
    artifact.save(tmp_path / "a.jpq", read_checkpoint(tmp_path / "a.safetensors"))
    write_safetensors(tmp_path / "b.safetensors", artifact.load(tmp_path / "a.jpq").codes)
    assert_same(read_checkpoint(tmp_path / "b.safetensors"), flat)


def test_pytorch_layout(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    kernel = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    tree = {
        "conv": {"kernel": kernel, "bias": np.ones(5, np.float32)},
        "dense": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)},
        "bn": {name: np.ones(5, np.float32) for name in ("scale", "bias", "mean", "var")},
    }
    flat = {f"{a}/{b}": leaf for a, leaves in tree.items() for b, leaf in leaves.items()}
    for params in (tree, flat):
        write_safetensors(path, params, pytorch=True)
        found = load_file(path)
        assert set(found) == {
            *("conv.weight", "conv.bias", "dense.weight"),
            *("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"),
        }
        np.testing.assert_array_equal(found["conv.weight"], np.einsum("hwio->oihw", kernel))
        np.testing.assert_array_equal(found["dense.weight"], tree["dense"]["kernel"].T)


@pytest.mark.parametrize(
    ("tree", "pytorch", "message"),
    [
        ({"a": {"b": ONE}, "a.b": ONE}, False, r"leaf 'a\.b': got 2 leaves of this name"),
        ({"a": [ONE], "a.0": ONE}, False, r"leaf 'a\.0': got 2 leaves"),
        ({"a": {"": ONE}, "a.": ONE}, False, r"leaf 'a\.': got 2 leaves"),
        ({"a/b": ONE, "a.b": ONE}, True, r"got \['a\.b', 'a/b'\], which PyTorch all calls 'a\.b'"),
        ({"a": {"kernel": ONE, "scale": ONE}}, True, r"which PyTorch all calls 'a\.weight'"),
    ],
)
def test_two_leaves_of_one_name(tmp_path: Path, tree: Any, pytorch: bool, message: str):
    with pytest.raises(ValueError, match=message):
        write_safetensors(tmp_path / "x", tree, pytorch=pytorch)
    assert not list(tmp_path.iterdir())


def test_damaged_files_are_named(tmp_path: Path):
    path = tmp_path / "bad.safetensors"
    save_file({"w": np.ones(4, np.float32)}, path)
    whole = path.read_bytes()
    for data, what in [
        (b"", "got an empty file; expected a safetensors"),
        (b"no tensors", "got an unknown file, which begins with b'no tensors'"),
        (whole[:-3], "a damaged safetensors file"),
        (whole[:40], "a damaged safetensors file"),
        (whole + b"x", "a damaged safetensors file"),
    ]:
        path.write_bytes(data)
        with pytest.raises(ValueError, match=rf"bad\.safetensors: {what}"):
            read_checkpoint(path)
    with pytest.raises(FileNotFoundError):
        read_checkpoint(tmp_path / "none")


NESTED = {
    "params": {"a": {"kernel": ONE, "bias": ONE + 1}},
    "step": np.int32(3),
    "list": [ONE, ONE + 2],
}
FLAT = {"params.a.kernel": ONE, "params/a/bias": ONE + 1, "paramset": ONE, "step": ONE}


@pytest.mark.parametrize(
    ("tree", "only", "wanted"),
    [
        (NESTED, "params", NESTED["params"]),
        (NESTED, "params/", NESTED["params"]),
        (NESTED, "params.a", NESTED["params"]["a"]),
        (NESTED, "list/1", ONE + 2),
        (FLAT, "params", {"a.kernel": ONE, "a/bias": ONE + 1}),
        (FLAT, "params/a", {"kernel": ONE, "bias": ONE + 1}),
        ({"a.b": {"c.d": ONE}}, "a/b/c", {"d": ONE}),
    ],
)
def test_only_a_part(tmp_path: Path, tree: Any, only: str, wanted: Any):
    artifact.save(tmp_path / "a.jpq", tree)
    found = read_checkpoint(tmp_path / "a.jpq", only=only)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize(
    ("tree", "only", "message"),
    [
        (NESTED, "param", "expected one of 'list', 'params', 'step'"),
        (NESTED, "params/b", "expected one of"),
        (NESTED, "", "expected one of"),
        (FLAT, "step/x", "expected one of 'params', 'paramset', 'step'"),
        ({"a.b": ONE, "a/b": ONE + 1}, "a", "several have it"),
        ({"a.b": ONE, "a/b": ONE + 1}, "a.b", "several have it"),
        ({"a": ONE, "a.b": ONE + 1}, "a", "several have it"),
    ],
)
def test_only_what_is_there_once(tmp_path: Path, tree: Any, only: str, message: str):
    artifact.save(tmp_path / "a.jpq", tree)
    with pytest.raises(ValueError, match=rf"a\.jpq: got only='{only}', .*{message}"):
        read_checkpoint(tmp_path / "a.jpq", only=only)


def test_only_of_a_file_leaves_the_rest_unread(tmp_path: Path):
    write_safetensors(tmp_path / "x", FLAT)
    found = read_checkpoint(tmp_path / "x", lazy=True, only="params")
    assert {name: leaf.name for name, leaf in found.items()} == {
        "a.kernel": "params.a.kernel",
        "a/bias": "params/a/bias",
    }
