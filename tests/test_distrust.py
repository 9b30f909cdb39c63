"""Damaged and forged files: no bytes do harm, and what is refused says why."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import files
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jpq_jax import artifact
from jpq_jax.artifact.adaptive import SYMBOL, Learner
from jpq_jax.artifact.stream import Writer, uniform


def with_checksum(data: bytes) -> bytes:
    """The same under a right checksum, made without the code under test."""
    return data[:4] + zlib.crc32(data[8:], zlib.crc32(data[:4])).to_bytes(4, "little") + data[8:]


def small_file() -> bytes:
    tree = {"w": files.random_codes((6, 5)), "b": jnp.ones(2), "on": np.array([True, False])}
    return artifact.encode(tree, {"config": "x"})


def test_errors_name_the_file(tmp_path: Path):
    path = tmp_path / "net.jpq"
    path.write_bytes(small_file()[:-1])
    with pytest.raises(ValueError, match=r"net\.jpq: the checksum does not match"):
        artifact.load(path)


@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
def test_every_altered_byte_is_noticed(mask: int):
    data = small_file()
    for position in range(len(data)):
        bad = bytearray(data)
        bad[position] ^= mask
        with pytest.raises(ValueError, match=r"^<bytes>: "):
            artifact.decode(bytes(bad))


def test_every_truncation_and_anything_appended_is_noticed():
    data = small_file()
    for bad in (*(data[:length] for length in range(len(data))), data + b"\0", data + data):
        with pytest.raises(ValueError, match=r"^<bytes>: "):
            artifact.decode(bad)


@settings(deadline=None, max_examples=400)
@given(st.data())
def test_forged_bytes_under_a_right_checksum_do_no_harm(data: st.DataObject):
    bad = bytearray(small_file())
    for _ in range(data.draw(st.integers(1, 4))):
        bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    files.decode_or_refuse(with_checksum(bytes(bad)))


def forge(write: Callable[[Writer], Any], stored: bytes = b"", version: int = 4) -> bytes:
    """A file with any first stream and a right checksum."""
    writer = Writer()
    write(writer)
    stream = writer.finish()
    length = bytes([len(stream) & 0x7F | 0x80, len(stream) >> 7])
    return with_checksum(b"JPQ" + bytes([version, *bytes(4)]) + length + stream + stored)


def numbers(*values: int) -> Callable[[Writer], None]:
    def write(writer: Writer) -> None:
        for value in values:
            writer.write_number(value)

    return write


# Of a header: a dict with one branch; "kernel", "bias" and "weight" of the known names; leaves.
ONE, TWO = 1 + 4 * 1, 1 + 4 * 2
KERNEL, BIAS = 1, 2
FLOAT32, BOOL = 8 * 0, 8 * 8
CODES, LOSSLESS, EMPTY = 1, 3, 7  # forms
NO_EXTRAS = 0


def test_forge_makes_files_that_load():
    data = forge(numbers(ONE, KERNEL, 0, FLOAT32, 1, 2, NO_EXTRAS), bytes(8))
    files.assert_same(artifact.decode(data).codes, {"kernel": jnp.zeros(2)})


def codes_of(*shape: int) -> list[int]:
    return [ONE, KERNEL, 0, FLOAT32 + CODES, len(shape), *shape, 0, NO_EXTRAS]


def leaf_of(shape: tuple[int, ...], *then: int) -> Callable[[Writer], None]:
    """Codes of 1 bit, and what follows."""

    def write(writer: Writer) -> None:
        numbers(*codes_of(*shape))(writer)
        writer.write(np.array([0]), uniform(8))
        numbers(*then)(writer)

    return write


def text(data: bytes) -> Callable[[Writer], None]:
    """An empty tree, and extras."""

    def write(writer: Writer) -> None:
        weights = np.ones(256, np.int64)
        weights[list(b"etaonirslcdumpbkvhgfwyxqzj_0123456789")] = SYMBOL
        numbers(1, len(data))(writer)
        Learner(weights).write(writer, np.frombuffer(data, np.uint8))

    return write


BAD_FILES = {
    "no bytes": (b"", "not a jpq artifact"),
    "only magic": (b"JPQ", "truncated within its header"),
    "not a file of ours": (b"PK\3\4" * 20, "not a jpq artifact"),
    "newer": (forge(numbers(1, 0), version=5), "newer version of jpq_jax: got format version 5"),
    "version 0": (forge(numbers(1, 0), version=0), "format version 0"),
    "endless length": (with_checksum(b"JPQ\3" + bytes(4) + b"\xff" * 20), "does not end"),
    "stream too long": (with_checksum(b"JPQ\3" + bytes(4) + b"\x05abc"), "expected at least"),
    "zero byte": (with_checksum(b"JPQ\3" + bytes(4) + b"\x02a\0"), "zero byte"),
    "unknown name": (forge(numbers(ONE, 99)), "got name 99"),
    "unknown dtype": (forge(numbers(0, 8 * 99)), "got dtype 99"),
    "unknown dtype of version 3": (forge(numbers(0, 3 * 99), version=3), "got dtype 99"),
    "unknown form": (forge(numbers(0, FLOAT32 + 5)), "got dtype 0 in form 5"),
    "unknown empty place": (forge(numbers(0, 8 * 4 + EMPTY)), "an empty place of kind 4"),
    "an empty place twice": (
        forge(numbers(TWO, KERNEL, 0, EMPTY, KERNEL, 0, FLOAT32, 0, NO_EXTRAS), bytes(4)),
        "its place is empty, too",
    ),
    "filled up in vain": (forge(numbers(0, FLOAT32, 0, NO_EXTRAS), bytes(9)), "expected"),
    "kind of array": (forge(numbers(0, LOSSLESS, 1, 3, NO_EXTRAS, 7)), "of kind 7"),
    "an empty array that is coded": (forge(numbers(0, LOSSLESS, 1, 0, NO_EXTRAS)), "empty array"),
    "floats as integers": (forge(numbers(0, LOSSLESS, 1, 3, NO_EXTRAS, 1)), "of kind 1"),
    "many elements": (forge(numbers(0, LOSSLESS, 1, 3, NO_EXTRAS, 0, 257)), "257 distinct"),
    "many digits": (forge(numbers(0, LOSSLESS, 1, 3, NO_EXTRAS, 2, 0, 24)), "24 digits"),
    "many dims": (forge(numbers(0, FLOAT32, 65)), "65 dims"),
    "many branches": (forge(numbers(1 + 4 * 10**6, KERNEL)), "longer than its file"),
    "long extras": (forge(numbers(1, 10**6)), "longer than its file"),
    "deep": (forge(numbers(*[1 + 4 + 1, 0] * 101)), "more than 100 steps"),
    "distant position": (
        forge(numbers(1 + 4 + 1, 10**9, 0, FLOAT32, 0, NO_EXTRAS), bytes(4)),
        "are empty",
    ),
    "extras that are no JSON": (forge(text(b"{]")), "not JSON"),
    "extras of NaN": (forge(text(b"[NaN]")), "NaN is not JSON"),
    "extras of a list": (forge(text(b"[]")), "extras are not a JSON object, but a list"),
    "extras of no text": (forge(text(b"\xff\xff")), "utf-8"),
    "path twice": (
        forge(numbers(TWO, KERNEL, 0, FLOAT32, 0, KERNEL, 0, FLOAT32, 0, NO_EXTRAS), bytes(8)),
        "not in the order",
    ),
    "paths out of order": (
        forge(numbers(TWO, KERNEL, 0, FLOAT32, 0, BIAS, 0, FLOAT32, 0, NO_EXTRAS), bytes(8)),
        "not in the order",
    ),
    "too few bytes": (
        forge(numbers(0, FLOAT32, 1, 2, NO_EXTRAS), bytes(7)),
        "21 bytes, expected 22",
    ),
    "too many bytes": (
        forge(numbers(0, FLOAT32, 1, 2, NO_EXTRAS), bytes(9)),
        "23 bytes, expected 22",
    ),
    "bool of 2": (forge(numbers(0, BOOL, 1, 2, NO_EXTRAS), b"\1\2"), "neither 0"),
    "more than was read": (
        forge(numbers(0, FLOAT32, 0, NO_EXTRAS, 7, 7, 7), bytes(4)),
        "more than",
    ),
    "many values": (forge(leaf_of((3,), 257, 0)), "leaf 'kernel': 0 negative of 257 values"),
    "more negative values than values": (forge(leaf_of((3,), 2, 3)), "3 negative of 2 values"),
    "kind of values": (forge(leaf_of((3,), 1, 0, 3)), "values of kind 3"),
    "kind of floats": (forge(leaf_of((3,), 1, 0, 0, 1)), "floats from byte 1"),
    "kind of numbers": (forge(leaf_of((3,), 0, 0, 3)), "numbers of kind 3"),
    "kind of lines": (forge(leaf_of((3,), 0, 0, 1, 0, 2)), "lines of kind 2"),
    "wide exponents": (forge(leaf_of((3,), 0, 0, 1, 0, 1, 0, 300)), "exponents 0 to 300"),
    "wide base": (forge(leaf_of((3,), 0, 0, 1, 2000, 0, 0, 0)), "exponent 1000"),
}


@pytest.mark.parametrize(("data", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_file_says_what_is_wrong(data: bytes, message: str):
    with pytest.raises(ValueError, match="^<bytes>: .*" + message):
        artifact.decode(data)


@pytest.mark.parametrize("shape", [(2**28,), (2**62, 2**62, 2**62), (0, 2**40), (2**63, 0)])
def test_enormous_claims_are_refused(shape: tuple[int, ...]):
    stored = numbers(ONE, KERNEL, 0, FLOAT32, len(shape), *shape, NO_EXTRAS)
    for write in (stored, leaf_of(shape, 0, 0, 0)):
        with pytest.raises(ValueError, match=r"<bytes>: \d+ elements in a file of \d+ bytes"):
            artifact.decode(forge(write))


@settings(deadline=None, max_examples=300)
@given(st.lists(st.integers(0, 40), max_size=40), st.binary(max_size=40))
def test_forged_streams_do_no_harm(values: list[int], stored: bytes):
    files.decode_or_refuse(forge(numbers(*values), stored))
    files.decode_or_refuse(forge(leaf_of((3, 4), *values), stored))


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 34), st.integers(0, 2), st.lists(st.integers(0, 2**12), max_size=40))
def test_forged_arrays_do_no_harm(dtype: int, kind: int, values: list[int]):
    stream = numbers(0, 8 * dtype + LOSSLESS, 2, 3, 4, NO_EXTRAS, kind, *values)
    files.decode_or_refuse(forge(stream))


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=100))
def test_any_stream_does_no_harm(data: bytes):
    for version in (3, 4):
        start = b"JPQ" + bytes([version, 0, 0, 0, 0, len(data)])
        files.decode_or_refuse(with_checksum(start + data))
