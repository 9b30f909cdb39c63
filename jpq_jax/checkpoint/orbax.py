"""Orbax checkpoint folders, of its first API and of v1.

A tree is a folder with a file `_METADATA`: an *item*. A checkpoint has `_CHECKPOINT_METADATA` and
one or more items as folders in it (`default`, `state`, or as they are named); a tree saved alone is
both. A `CheckpointManager` writes a folder of checkpoints, called by their steps.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np

from jpq_jax.names import repeated, subtree
from jpq_jax.vocabulary import PyTree

_TREE = "_METADATA"
_WHOLE = "_CHECKPOINT_METADATA"
_SIGNS = (_TREE, _WHOLE, "orbax.checkpoint", "manifest.ocdbt")
_UNFINISHED = ".orbax-checkpoint-tmp"
_STEP = re.compile(r"(?:.*_)?(\d+)")


class Item(NamedTuple):
    """Attributes:
    path: the folder of a tree.
    only: what is wanted of it; None for all.
    """

    path: Path
    only: str | None


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is one of Orbax's, of one checkpoint or several steps, finished or not."""
    steps = [folder, *_steps(folder).values(), *_unfinished(folder)]
    return _UNFINISHED in folder.name or any((s / sign).exists() for s in steps for sign in _SIGNS)


def find_item(folder: Path, only: str | None) -> Item:
    """The tree in a folder of `is_checkpoint`, of the latest step if there are several.

    Raises:
      ValueError: naming the folder, if it is unfinished, or has no trees, or several that `only`
        does not choose from.
    """
    if _UNFINISHED in folder.name:
        raise ValueError(
            f"{folder}: got an unfinished orbax checkpoint: its saving was interrupted"
        )
    if (folder / _TREE).exists():
        return Item(folder, only)
    items = {path.name: path for path in _folders(folder) if (path / _TREE).exists()}
    steps = _steps(folder)
    if items and ((folder / _WHOLE).exists() or not all(map(_STEP.fullmatch, items))):
        return _chosen(folder, items, only)
    if steps:
        return find_item(steps[max(steps)], only)
    unfinished = ", ".join(path.name for path in _unfinished(folder))
    why = f"all unfinished: {unfinished}" if unfinished else "no tree of arrays in it"
    raise ValueError(f"{folder}: got an orbax folder, expected a checkpoint in it; there is {why}")


def _chosen(folder: Path, items: dict[str, Path], only: str | None) -> Item:
    """By the first part of `only`, which may be left out where there is one item."""
    first, *rest = [None] if only is None else only.rstrip("/").split("/", 1)
    if first in items:
        return Item(items[first], rest[0] if rest else None)
    if len(items) == 1:
        return Item(next(iter(items.values())), only)
    raise ValueError(
        f"{folder}: got a checkpoint with {len(items)} items, expected the name of one of them as "
        f"`only`: {', '.join(sorted(items))}"
    )


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and _UNFINISHED not in p.name)


def _steps(folder: Path) -> dict[int, Path]:
    found = ((_STEP.fullmatch(path.name), path) for path in _folders(folder))
    return {int(match[1]): path for match, path in found if match and _has_tree(path)}


def _has_tree(folder: Path) -> bool:
    return any((place / _TREE).exists() for place in (folder, *_folders(folder)))


def _unfinished(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if _UNFINISHED in path.name)


def read(folder: Path, only: str | None) -> PyTree:
    """The tree of arrays in a folder of `is_checkpoint`, on the host.

    Raises:
      ValueError: naming the folder: as `find_item` does, for what is damaged, for leaves that Orbax
        wrote over each other, and without Orbax.
    """
    item = find_item(folder, only)
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise ValueError(f"{folder}: to read orbax checkpoints, install jpq_jax[orbax]") from error
    try:
        return _without_values(_restored(ocp, item))
    except (ValueError, OSError, KeyError) as error:
        raise ValueError(f"{item.path}: {error}") from error


def _restored(ocp: ModuleType, item: Item) -> PyTree:
    """As NumPy arrays, which needs none of the devices that they were saved from."""
    place = item.path.absolute()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        metadata = checkpointer.metadata(place).item_metadata
        if metadata is None:
            raise ValueError("got a damaged orbax checkpoint, whose metadata cannot be read")
        tree = metadata.tree
        _check_names(tree)
        wanted = tree if item.only is None else subtree(tree, item.only)
        ids = {id(leaf) for leaf in jax.tree.leaves(wanted)}
        target = jax.tree.map(lambda leaf: leaf if id(leaf) in ids else ocp.PLACEHOLDER, tree)
        how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target)
        found = checkpointer.restore(place, ocp.args.PyTreeRestore(target, how))
    return found if item.only is None else subtree(found, item.only)


def _check_names(tree: PyTree) -> None:
    """Orbax stores a leaf under its keys joined by "."; of those of one such name it keeps one."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path in paths]
    for name in repeated(names):
        raise ValueError(
            f"leaf {name!r}: Orbax saved several leaves of this name as one, others are lost"
        )


def _without_values(tree: PyTree) -> PyTree:
    """A Flax NNX state as its pure dict: without the `value` under every variable."""
    variables = jax.tree.leaves(tree, is_leaf=_is_variable)
    if not all(map(_is_variable, variables)):
        return tree
    return jax.tree.map(lambda variable: variable["value"], tree, is_leaf=_is_variable)


def _is_variable(node: Any) -> bool:
    return isinstance(node, dict) and [*node] == ["value"] and isinstance(node["value"], np.ndarray)
