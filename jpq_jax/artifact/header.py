"""What a file states of its leaves, and the extras <-> an entropy-coded stream.

The tree is written from the root down. A name that was written before, or is usual in models, is a number.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jpq_jax.artifact.adaptive import SYMBOL, Learner
from jpq_jax.artifact.record import (
    DTYPES,
    MAX_DEPTH,
    MAX_DIMS,
    Containers,
    Entry,
    Extras,
    Form,
    Path,
    Record,
)
from jpq_jax.artifact.stream import Reader, Writer, read_signed, uniform, write_signed

NEWEST = 4  # version
_USUAL_NAMES = (
    *("kernel", "bias", "weight", "scale", "mean", "var", "embedding", "params", "batch_stats"),
    *("conv1", "conv2", "fc1", "fc2", "bn1", "bn2", "blocks", "layers", "linear", "model"),
)
_USUAL_BYTES = b"etaonirslcdumpbkvhgfwyxqzj_0123456789"
_TUPLE = 3  # the kind of a place whose positions are those of a tuple
_EMPTY = (None, {}, [], ())  # places without leaves, by their number
_FEW = 64  # places and letters that any file may have
_PER_BYTE = 8  # more of them for each of its bytes


class Empty(NamedTuple):
    """A place without leaves.

    Attributes:
      path: its place in the tree.
      number: in `_EMPTY`.
    """

    path: Path
    number: int


class _Numbering(NamedTuple):
    """How a version counts.

    Attributes:
      kinds: of places in a tree: string keys, positions, integer keys, and positions of a tuple.
      forms: of leaves, the last one of places without leaves.
    """

    kinds: int
    forms: int


_NUMBERINGS = {2: _Numbering(3, 3), 3: _Numbering(3, 3), 4: _Numbering(4, 8)}


def write_header(
    writer: Writer, records: Sequence[Record], containers: Containers, extras: Extras | None
) -> None:
    """As of the newest version. records: sorted by path.

    Raises:
      TypeError: if the extras are not a dict.
      ValueError: if they do not survive JSON unchanged.
    """
    names = _Names()
    empty = [Empty(path, _EMPTY.index(value)) for path, value in containers.empty.items()]
    items = sorted([*records, *empty], key=lambda item: item.path)
    _write_place(writer, items, 0, names, containers.tuples)
    names.write_text(writer, _text_of(extras))


def read_header(
    reader: Reader, file_bytes: int, version: int
) -> tuple[list[Record], Containers, Extras]:
    """Raises ValueError for what no writer gives, or a file of this size cannot hold."""
    names, tuples = _Names(file_bytes), set()
    items = list(_read_place(reader, (), names, _NUMBERINGS[version], tuples))
    records = [item for item in items if isinstance(item, Record)]
    empty = {item.path: _EMPTY[item.number] for item in items if isinstance(item, Empty)}
    text = names.read_text(reader)
    extras = json_object(text, "the extras are") if text else {}
    return records, Containers(empty, frozenset(tuples)), extras


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


def _write_place(
    writer: Writer,
    items: Sequence[Record | Empty],
    depth: int,
    names: _Names,
    tuples: frozenset[Path],
) -> None:
    """The leaf or the branches under a place, whose paths share their first `depth` steps."""
    if len(items) == 1 and len(items[0].path) == depth:
        writer.write_number(0)
        _write_leaf(writer, items[0])
        return
    branches = [
        (entry, list(branch))
        for entry, branch in itertools.groupby(items, key=lambda item: item.path[depth])
    ]
    is_tuple = bool(items) and items[0].path[:depth] in tuples
    kind = _kind_of(branches[0][0], is_tuple=is_tuple) if branches else 0
    writer.write_number(1 + _NUMBERINGS[NEWEST].kinds * len(branches) + kind)
    for entry, branch in branches:
        if isinstance(entry, str):
            names.write(writer, entry)
        elif isinstance(entry, tuple):
            write_signed(writer, entry[0])
        else:
            writer.write_number(entry)
        _write_place(writer, branch, depth + 1, names, tuples)


def _kind_of(entry: Entry, *, is_tuple: bool) -> int:
    if isinstance(entry, int):
        return _TUPLE if is_tuple else 1
    return 0 if isinstance(entry, str) else 2


def _read_place(
    reader: Reader, path: Path, names: _Names, numbering: _Numbering, tuples: set[Path]
) -> Iterator[Record | Empty]:
    number = reader.read_number()
    if number == 0:
        yield _read_leaf(reader, path, numbering)
        return
    count, kind = divmod(number - 1, numbering.kinds)
    names.take(count)
    if len(path) >= MAX_DEPTH:
        raise ValueError(f"a leaf of more than {MAX_DEPTH} steps")
    if kind == _TUPLE and count:
        tuples.add(path)
    for _ in range(count):
        if kind == 0:
            entry = names.read(reader)
        else:
            entry = (read_signed(reader),) if kind == 2 else reader.read_number()
        yield from _read_place(reader, (*path, entry), names, numbering, tuples)


def _write_leaf(writer: Writer, item: Record | Empty) -> None:
    forms = _NUMBERINGS[NEWEST].forms
    if isinstance(item, Empty):
        writer.write_number(forms * item.number + forms - 1)
        return
    writer.write_number(forms * DTYPES.index(item.dtype) + item.form)
    writer.write_number(len(item.shape))
    for dim in item.shape:
        writer.write_number(dim)
    if item.form == Form.CODES:
        writer.write_number(item.scale is not None)
        if item.scale is not None:
            ours = np.equal(item.scale, item.shape)
            writer.write(ours.astype(np.int32), uniform(2))


def _read_leaf(reader: Reader, path: Path, numbering: _Numbering) -> Record | Empty:
    number, form = divmod(reader.read_number(), numbering.forms)
    if numbering.kinds > _TUPLE and form == numbering.forms - 1:
        if number >= len(_EMPTY):
            raise ValueError(f"an empty place of kind {number}, expected 0 to {len(_EMPTY) - 1}")
        return Empty(path, number)
    if number >= len(DTYPES) or form >= len(Form):
        raise ValueError(f"got dtype {number} in form {form}, expected one of {len(DTYPES)}")
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
