"""Folders of safetensors, as Hugging Face's libraries write them: one file, or shards and an index.

The index says which tensor is in which file. The hub's cache has links in place of files, to names
without a suffix; those are followed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jpq_jax.checkpoint.other import HEAD, refused_file
from jpq_jax.checkpoint.safetensors import StoredLeaf, is_safetensors, stored

_INDEX = ".safetensors.index.json"


def find_tensors(folder: Path) -> Path | None:
    """The index or the only file of tensors in a folder; None without.

    Safetensors go before Flax's msgpack, which is looked for where there are none.

    Raises:
      ValueError: naming the path, if there are several that no index makes one.
    """
    files = sorted(path for path in folder.iterdir() if not path.is_dir())
    indices = [path for path in files if path.name.endswith(_INDEX)]
    covered = {name for index in indices for name in _weight_map(index).values()}
    tensors = [path for path in files if path.suffix == ".safetensors" and path.name not in covered]
    found = indices + tensors or [path for path in files if path.suffix == ".msgpack"]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(
            f"{folder}: got a folder with {len(found)} models or parts of one without an index, "
            f"expected the path of one of them: {names}"
        )
    return found[0] if found else None


def is_index(head: bytes) -> bool:
    """Whether a file begins like one: in JSON, with what both of its entries are called."""
    return head.lstrip().startswith(b"{") and (b'"weight_map"' in head or b'"total_size"' in head)


def stored_by_index(index: Path) -> dict[str, StoredLeaf]:
    """The tensors of all files that an index names.

    Raises:
      ValueError: naming the index, for one that is damaged, for files that are missing, and for
        tensors that are not where it has them.
    """
    by_name = _weight_map(index)
    files = {name: index.parent / name for name in sorted(set(by_name.values()))}
    missing = [name for name, path in files.items() if not path.is_file()]
    if missing:
        raise ValueError(
            f"{index}: got {len(missing)} of {len(files)} files missing: {_some(missing)}"
        )
    found = {
        (name, leaf.name): leaf for name, path in files.items() for leaf in _tensors(path).values()
    }
    wanted = {(file, name) for name, file in by_name.items()}
    _check(index, "in the index, but not in the file that it names", wanted - found.keys())
    _check(index, "in a file, but not in the index", found.keys() - wanted)
    return {name: found[by_name[name], name] for name in sorted(by_name)}


def _tensors(path: Path) -> dict[str, StoredLeaf]:
    """Raises ValueError for a pointer of Git LFS, or PyTorch's files, which have indices, too."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not is_safetensors(head):
        raise refused_file(path, head)
    return stored(path)


def _check(index: Path, what: str, places: Iterable[tuple[str, str]]) -> None:
    surplus = [f"{name} ({file})" for file, name in sorted(places)]
    if surplus:
        raise ValueError(f"{index}: got {len(surplus)} tensors that are {what}: {_some(surplus)}")


def _weight_map(index: Path) -> dict[str, str]:
    try:
        content: Any = json.loads(index.read_bytes())
    except ValueError as error:
        raise ValueError(f"{index}: got a damaged index, expected JSON: {error}") from error
    by_name = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(by_name, dict) or not by_name or not all(map(_is_beside, by_name.values())):
        raise ValueError(
            f"{index}: got a damaged index, expected a 'weight_map' from tensors to files beside it"
        )
    return by_name


def _is_beside(file: Any) -> bool:
    return isinstance(file, str) and file not in ("", "..") and Path(file).name == file


def _some(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
