"""Files of format version 1: read for ever, and forged ones do no harm."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import files
import jax
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from jpq_jax import artifact

GOLDEN = Path(__file__).parent / "golden" / "v1.jpq"


@pytest.mark.newest
def test_version_1_is_read_for_ever():
    codes, extras, nbytes = artifact.load(GOLDEN)
    files.assert_same(codes, files.golden_tree())
    assert extras == files.GOLDEN_EXTRAS
    assert nbytes == GOLDEN.stat().st_size < 2048


def forge(header: Any, payload: bytes = b"", name: str = "data", key: str = "jpq") -> bytes:
    """A file with any header and a right checksum, made without the code under test."""
    text = header if isinstance(header, str) else json.dumps(header)
    body = np.frombuffer(payload + bytes(4), np.uint8)
    return with_checksum(safetensors.numpy.save({name: body}, {key: text}))


def with_checksum(data: bytes) -> bytes:
    return data[:-4] + zlib.crc32(data[:-4]).to_bytes(4, "little")


def header_of(*leaves: Any, version: Any = 1, extras: Any = None) -> dict[str, Any]:
    return {"version": version, "leaves": list(leaves), "extras": extras or {}}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=300)
@given(st.lists(json_values, min_size=3, max_size=6), st.binary(max_size=40), json_values)
def test_forged_records_do_no_harm(fields: list[Any], payload: bytes, extras: Any):
    files.decode_or_refuse(forge({"version": 1, "leaves": [fields], "extras": extras}, payload))
    for place, field in enumerate(fields[:5]):
        forged: list[Any] = [["w"], [2], "float32", len(payload), 2]
        forged[place] = field
        files.decode_or_refuse(forge(header_of(forged), payload))


@settings(deadline=None, max_examples=200)
@given(st.lists(st.lists(st.sampled_from(["a", "b", 0, 1, [0], [1]]), max_size=3), max_size=5))
def test_forged_paths_do_no_harm(paths: list[Any]):
    data = forge(header_of(*([path, [0], "float32", 0] for path in paths)))
    if files.decode_or_refuse(data):
        codes = artifact.decode(data).codes
        assert len(jax.tree.leaves(codes)) == len(paths)
        files.assert_same(artifact.decode(artifact.encode(codes)).codes, codes)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60), st.integers(0, 50))
def test_forged_codes_do_no_harm(payload: bytes, count: int):
    files.decode_or_refuse(forge(header_of([["w"], [count], "float32", len(payload), 2]), payload))


ZEROS = bytes([0, 0, 1, 0])  # no values, one symbol, all of the frequency: a leaf of zeros


def zeros_record(*shape: int) -> list[Any]:
    return [["w"], list(shape), "float32", len(ZEROS), 1]


def test_forge_makes_files_that_load():
    data = forge(header_of(zeros_record(3, 4)), ZEROS)
    files.assert_same(
        artifact.decode(data).codes, {"w": files.make_codes(np.zeros((3, 4)), (), bits=1)}
    )


CLAIMS = [
    [zeros_record(2**28)],
    [zeros_record(2**62, 2**62, 2**62)],
    [zeros_record(0, 2**40)],
    [zeros_record(0, 10**400)],
    [[[str(i)], [2**26], "float32", len(ZEROS), 1] for i in range(3)],
    [[["w"], [0, 2**40], "float32", 0]],
]


@pytest.mark.parametrize("leaves", CLAIMS, ids=range(len(CLAIMS)))
def test_enormous_claims_are_refused(leaves: list[Any]):
    compressed = sum(len(leaf) == 5 for leaf in leaves)
    with pytest.raises(ValueError, match=r"<bytes>: \d+ elements in a file of \d+ bytes"):
        artifact.decode(forge(header_of(*leaves), ZEROS * compressed))


def record_like(**changes: Any) -> list[Any]:
    fields = {"path": ["w"], "shape": [2], "dtype": "float32", "nbytes": 8} | changes
    return list(fields.values())


BAD_FILES = {
    "no bytes": (b"", "not a jpq artifact"),
    "not safetensors": (b"PK\3\4" * 20, "not a jpq artifact"),
    "not JSON": ((4).to_bytes(8, "little") + b"{]  ", "not JSON"),
    "not UTF-8": ((4).to_bytes(8, "little") + b'{"\xff"', "utf-8"),
    "not an object": ((2).to_bytes(8, "little") + b"[]", "not a JSON object"),
    "deep JSON": (forge("[" * 10**5), "not JSON"),
    "other safetensors": (safetensors.numpy.save({"w": np.ones(2)}), "not a jpq artifact"),
    "other metadata": (forge("{}", key="pt"), "without 'jpq' metadata"),
    "NaN": (forge('{"version":NaN}'), "NaN is not JSON"),
    "no version": (forge({}), "version None"),
    "text version": (forge(header_of(version="1")), "version '1'"),
    "version 0": (forge(header_of(version=0)), "version 0"),
    "true version": (forge(header_of(version=True)), "version True"),
    "newer": (forge(header_of(version=2)), "newer version of jpq_jax: got format version 2"),
    "no leaves": (forge({"version": 1, "extras": {}}), "lacks"),
    "no extras": (forge({"version": 1, "leaves": []}), "lacks"),
    "extras of a list": (forge({"version": 1, "leaves": [], "extras": []}), "lacks"),
    "other tensor": (forge(header_of(), name="weights"), "got tensors"),
    "record of text": (forge(header_of("w")), "4 to 6 fields"),
    "short record": (forge(header_of([["w"], [2], "float32"])), "4 to 6 fields"),
    "path of text": (forge(header_of(record_like(path="w"))), "steps"),
    "long path": (forge(header_of(record_like(path=["a"] * 101))), "up to 100 steps"),
    "float key": (forge(header_of(record_like(path=[0.5]))), "a key or a position"),
    "true key": (forge(header_of(record_like(path=[True]))), "a key or a position"),
    "negative position": (forge(header_of(record_like(path=[-1]))), "a key or a position"),
    "list key": (forge(header_of(record_like(path=[["a"]]))), "an integer key"),
    "distant position": (forge(header_of(record_like(path=[10**9])), bytes(8)), "are empty"),
    "negative dim": (forge(header_of(record_like(shape=[-2])), bytes(8)), "dims >= 0"),
    "float dim": (forge(header_of(record_like(shape=[2.0])), bytes(8)), "dims >= 0"),
    "many dims": (forge(header_of(record_like(shape=[1] * 65))), "up to 64 dims"),
    "dtype": (forge(header_of(record_like(dtype="object")), bytes(8)), "a known dtype"),
    "dtype of a struct": (forge(header_of(record_like(dtype="i4,f4")), bytes(8)), "known dtype"),
    "dtype of a list": (forge(header_of(record_like(dtype=["f4"]))), "a known dtype"),
    "negative size": (forge(header_of(record_like(nbytes=-8))), "a number of bytes"),
    "bits": (forge(header_of([*record_like(), 9]), bytes(8)), "1 to 8 bits"),
    "null bits": (forge(header_of([*record_like(), None]), bytes(8)), "1 to 8 bits"),
    "too few bytes": (forge(header_of(record_like()), bytes(7)), "7 bytes of leaves, expected 8"),
    "too many bytes": (forge(header_of(record_like()), bytes(9)), "9 bytes of leaves, expected 8"),
    "array too short": (forge(header_of(record_like(nbytes=4)), bytes(4)), "leaf 'w': got 4"),
    "bool of 2": (forge(header_of(record_like(dtype="bool", nbytes=2)), b"\1\2"), "neither 0"),
    "path twice": (forge(header_of(record_like(), record_like()), bytes(16)), "two leaves have"),
    "leaf on a leaf": (
        forge(header_of(record_like(), record_like(path=["w", "x"])), bytes(16)),
        "leaf 'w/x': another leaf",
    ),
    "leaf under a leaf": (
        forge(header_of(record_like(path=["w", "x"]), record_like()), bytes(16)),
        "leaf 'w': another leaf",
    ),
    "leaf over the root": (
        forge(header_of(record_like(path=[]), record_like()), bytes(16)),
        r"leaf '\(root\)': another leaf",
    ),
    "mixed keys": (
        forge(header_of(record_like(), record_like(path=[0])), bytes(16)),
        "keys of different kinds",
    ),
}


@pytest.mark.parametrize(("data", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_file_says_what_is_wrong(data: bytes, message: str):
    with pytest.raises(ValueError, match="^<bytes>: .*" + message):
        artifact.decode(data)


def u16(*numbers: int) -> bytes:
    return np.array(numbers, "<u2").tobytes()


BAD_CODES = {
    "nothing": (b"", "0 bytes left"),
    "too many values": (u16(257, 1), "257 values"),
    "too many symbols": (u16(0, 258), "258 codes"),
    "values missing": (u16(2, 1) + bytes(4), "4 bytes left, expected at least 8"),
    "frequencies missing": (u16(0, 3) + bytes(5), "5 bytes left, expected at least 6"),
    "no symbols": (u16(0, 0), "frequency table of 0 entries for 3 symbols"),
    "frequencies over the total": (u16(0, 3) + b"\xff" * 6, "frequencies are not"),
    "words for one symbol": (u16(0, 1) + bytes([1, 0, 0, 0]), "less than two distinct"),
    "a zero word": (u16(0, 2) + b"\0\0\1" + bytes(4), "zero word"),
    "too many words": (u16(0, 2) + b"\0\0\1" + b"\1" * 40, "more than 3 symbols"),
    "part of a word": (u16(0, 2) + b"\0\0\1" + b"\1" * 3, "3 bytes after the last"),
    "NaN in the codebook": (u16(1, 1) + b"\0\0\xc0\x7f", "not finite"),
    "code without bits": (u16(0, 4) + bytes(9), "codes 3 to 3"),
}


@pytest.mark.parametrize(("payload", "message"), BAD_CODES.values(), ids=BAD_CODES)
def test_bad_codes_name_the_leaf(payload: bytes, message: str):
    data = forge(header_of([["w"], [3], "float32", len(payload), 1]), payload)
    with pytest.raises(ValueError, match=r"^<bytes>: .*leaf 'w': .*" + message):
        artifact.decode(data)
