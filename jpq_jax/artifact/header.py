"""What a file states of its leaves, and the extras <-> an entropy-coded stream.

The tree is written from the root down. A name that was written before, or is usual in models, is a number.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from jpq_jax.artifact.adaptive import SYMBOL, Learner
from jpq_jax.artifact.record import DTYPES, MAX_DEPTH, MAX_DIMS, Entry, Extras, Form, Path, Record
from jpq_jax.artifact.stream import Reader, Writer, read_signed, uniform, write_signed

_USUAL_NAMES = (
    *("kernel", "bias", "weight", "scale", "mean", "var", "embedding", "params", "batch_stats"),
    *("conv1", "conv2", "fc1", "fc2", "bn1", "bn2", "blocks", "layers", "linear", "model"),
)
_USUAL_BYTES = b"etaonirslcdumpbkvhgfwyxqzj_0123456789"
_KINDS = 3  # of places in a tree: string keys, positions, integer keys
_FEW = 64  # places and letters that any file may have
_PER_BYTE = 8  # more of them for each of its bytes


def write_header(writer: Writer, records: Sequence[Record], extras: Extras | None) -> None:
    """records: sorted by path.

    Raises:
      TypeError: if the extras are not a dict.
      ValueError: if they do not survive JSON unchanged.
    """
    names = _Names()
    _write_place(writer, list(records), 0, names)
    names.write_text(writer, _text_of(extras))


def read_header(reader: Reader, file_bytes: int) -> tuple[list[Record], Extras]:
    """Raises ValueError for what no writer gives, or a file of this size cannot hold."""
    names = _Names(file_bytes)
    records = list(_read_place(reader, (), names))
    text = names.read_text(reader)
    return records, json_object(text, "the extras are") if text else {}


class _Names:
    """Strings: those seen by number, others by their bytes."""

    def __init__(self, file_bytes: int = 0) -> None:
        self._names = list(_USUAL_NAMES)
        self._numbers = {name: number for number, name in enumerate(_USUAL_NAMES)}
        weights = np.ones(256, np.int64)
        weights[list(_USUAL_BYTES)] = SYMBOL
        self._bytes = Learner(weights)
        self._left = _FEW + _PER_BYTE * file_bytes

    def take(self, count: int) -> None:
        """Raises ValueError if that is more than the file can hold."""
        self._left -= count
        if self._left < 0:
            raise ValueError("a header that is longer than its file")

    def write(self, writer: Writer, name: str) -> None:
        number = self._numbers.get(name)
        writer.write_number(0 if number is None else number + 1)
        if number is None:
            self.write_text(writer, name)
            self._add(name)

    def read(self, reader: Reader) -> str:
        number = reader.read_number()
        if number > len(self._names):
            raise ValueError(f"got name {number}, expected one of {len(self._names)}")
        if number:
            return self._names[number - 1]
        name = self.read_text(reader)
        if name in self._numbers:
            raise ValueError(f"the name {name!r} is written out twice")
        self._add(name)
        return name

    def _add(self, name: str) -> None:
        self._numbers[name] = len(self._names)
        self._names.append(name)

    def write_text(self, writer: Writer, text: str) -> None:
        data = np.frombuffer(text.encode(errors="surrogatepass"), np.uint8)
        writer.write_number(data.size)
        self._bytes.write(writer, data)

    def read_text(self, reader: Reader) -> str:
        length = reader.read_number()
        self.take(length)
        return (
            self._bytes.read(reader, length)
            .astype(np.uint8)
            .tobytes()
            .decode(errors="surrogatepass")
        )


def _write_place(writer: Writer, records: list[Record], depth: int, names: _Names) -> None:
    """The leaf or the branches under a place, whose paths share their first `depth` steps."""
    if len(records) == 1 and len(records[0].path) == depth:
        writer.write_number(0)
        _write_leaf(writer, records[0])
        return
    branches = [
        (entry, list(branch))
        for entry, branch in itertools.groupby(records, key=lambda record: record.path[depth])
    ]
    kind = _kind_of(branches[0][0]) if branches else 0
    writer.write_number(1 + _KINDS * len(branches) + kind)
    for entry, branch in branches:
        if isinstance(entry, str):
            names.write(writer, entry)
        elif isinstance(entry, tuple):
            write_signed(writer, entry[0])
        else:
            writer.write_number(entry)
        _write_place(writer, branch, depth + 1, names)


def _kind_of(entry: Entry) -> int:
    return 0 if isinstance(entry, str) else 1 if isinstance(entry, int) else 2


def _read_place(reader: Reader, path: Path, names: _Names) -> Iterator[Record]:
    number = reader.read_number()
    if number == 0:
        yield _read_leaf(reader, path)
        return
    count, kind = divmod(number - 1, _KINDS)
    names.take(count)
    if len(path) >= MAX_DEPTH:
        raise ValueError(f"a leaf of more than {MAX_DEPTH} steps")
    for _ in range(count):
        if kind == 0:
            entry = names.read(reader)
        else:
            entry = reader.read_number() if kind == 1 else (read_signed(reader),)
        yield from _read_place(reader, (*path, entry), names)


def _write_leaf(writer: Writer, record: Record) -> None:
    writer.write_number(len(Form) * DTYPES.index(record.dtype) + record.form)
    writer.write_number(len(record.shape))
    for dim in record.shape:
        writer.write_number(dim)
    if record.form == Form.CODES:
        writer.write_number(record.scale is not None)
        if record.scale is not None:
            ours = np.equal(record.scale, record.shape)
            writer.write(ours.astype(np.int32), uniform(2))


def _read_leaf(reader: Reader, path: Path) -> Record:
    number, form = divmod(reader.read_number(), len(Form))
    if number >= len(DTYPES):
        raise ValueError(f"got dtype {number}, expected one of {len(DTYPES)}")
    dims = reader.read_number()
    if dims > MAX_DIMS:
        raise ValueError(f"a leaf of {dims} dims, expected up to {MAX_DIMS}")
    shape = tuple(reader.read_number() for _ in range(dims))
    scale = None
    if form == Form.CODES and reader.read_number():
        ours = reader.read(dims, uniform(2))
        scale = tuple(dim if own else 1 for dim, own in zip(shape, ours, strict=True))
    return Record(path, shape, DTYPES[number], Form(form), scale)


def _text_of(extras: Extras | None) -> str:
    if extras is None or extras == {}:
        return ""
    if not isinstance(extras, dict):
        raise TypeError(f"extras: got {type(extras).__name__}, expected a dict")
    try:
        text = json.dumps(extras, separators=(",", ":"), sort_keys=True, allow_nan=False)
        unchanged = json.loads(text) == extras
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"extras cannot be written as JSON: {error}") from error
    if not unchanged:
        raise ValueError(
            "extras change when written as JSON: expected dicts with string keys, lists, strings, "
            f"finite numbers, booleans and None, got {extras!r}"
        )
    # How deep Python's parser goes depends on its version: a file is read by all or not written.
    if _deeper_than(MAX_DEPTH, extras):
        raise ValueError(f"extras are nested more than {MAX_DEPTH} deep")
    return text


def _deeper_than(limit: int, value: Any) -> bool:
    """Whether dicts and lists, without circles, are nested in more levels than `limit`."""
    level = [value]
    for _ in range(limit):
        level = [part for inner in level for part in _parts(inner)]
    return any(isinstance(inner, dict | list) for inner in level)


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def json_object(text: str, what: str) -> Extras:
    """A JSON object. Raises ValueError, also for what only Python takes for JSON."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{what} not a JSON object, but a {type(value).__name__}")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
