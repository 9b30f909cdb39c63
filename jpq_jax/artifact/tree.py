"""Leaves by path <-> trees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

from jpq_jax.artifact.record import (
    MAX_DEPTH,
    NO_CONTAINERS,
    Containers,
    Entry,
    Path,
    Record,
    path_name,
)
from jpq_jax.vocabulary import KeyPath, PyTree, is_codes, path_string, without_lone_values

_MAX_ABSENT = 2**20  # positions of lists that hold no leaf, over a whole tree: 8 MiB of None


def flatten(tree: PyTree) -> tuple[dict[Path, Any], Containers]:
    """The leaves of a (compressed) tree by path, in an order that the paths alone decide; and what they do not say of it.

    Raises:
      TypeError: for a dict key that is neither a string nor an integer.
      ValueError: for paths that are taken twice, too long, or that `build` could not follow.
    """
    flat = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_codes)
    leaves: dict[Path, Any] = {}
    for path, (_, leaf) in zip(_paths([key_path for key_path, _ in flat]), flat, strict=True):
        if path in leaves:
            raise ValueError(f"leaf {path_name(path)!r}: two leaves have this path")
        if len(path) > MAX_DEPTH:
            raise ValueError(f"leaf {path_name(path)!r}: got {len(path)} steps, up to {MAX_DEPTH}")
        leaves[path] = leaf
    containers = _containers_of(tree, leaves)
    # Raises if it cannot; then siblings are of one kind, so that paths compare.
    build(leaves, containers)
    return dict(sorted(leaves.items(), key=lambda item: item[0])), containers


def build(leaves: Mapping[Path, Any], containers: Containers = NO_CONTAINERS) -> PyTree:
    """Nested dicts, lists and tuples with these leaves: attributes become keys; absent positions, None.

    Raises:
      ValueError: if a leaf lies inside another, one place has two kinds of children, or lists
        would be nearly empty.
    """
    for path in leaves.keys() & containers.empty.keys():
        raise ValueError(f"leaf {path_name(path)!r}: its place is empty, too")
    places = {**leaves, **containers.empty}
    if () in places and len(places) == 1:
        return _copied(places[()])
    root = _Node()
    nodes: dict[Path, _Node] = {(): root}
    for path, leaf in places.items():
        _insert(root, path, _copied(leaf), nodes)
    for path in containers.tuples:
        nodes[path].is_tuple = True
    _check_nodes(list(nodes.values()))
    return _plain(root)


def _copied(leaf: Any) -> Any:
    """Empty dicts and lists are nobody else's."""
    return type(leaf)() if type(leaf) in (dict, list) else leaf


def _containers_of(tree: PyTree, leaves: Mapping[Path, Any]) -> Containers:
    """Places without leaves, and which positions are those of a tuple.

    Beside an attribute `value` that is not a step of its leaf's path, there are no other places.
    """
    empty: dict[Path, Any] = {}
    tuples: set[Path] = set()

    def look(node: Any, key_path: KeyPath, path: Path) -> None:
        if path in leaves or is_codes(node) or jax.tree_util.all_leaves([node]):
            return
        children, _ = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)
        if not children:
            empty[path] = _empty_like(node)
        elif isinstance(node, tuple) and isinstance(children[0][0][0], SequenceKey):
            tuples.add(path)
        for (key,), child in children:
            inside = (*key_path, key)
            look(child, inside, (*path, _entry(key, inside)))

    look(tree, (), ())
    return Containers(empty, frozenset(tuples))


def _empty_like(node: Any) -> Any:
    """What stands for a place without leaves: None, a tuple or list for its like, a dict for all others."""
    if node is None:
        return None
    return () if isinstance(node, tuple) else [] if isinstance(node, list) else {}


def fit(records: Mapping[Path, Record], like: PyTree) -> tuple[list[Path], Any]:
    """Which leaves go where in a tree like this one: paths in its order, and its structure.

    Args:
      records: what is there, by path.
      like: the tree wanted: arrays, `ShapeDtypeStruct`s or `Codes`.

    Raises:
      ValueError: naming the first leaf that is missing, surplus, or of another shape or dtype.
    """
    wanted, structure = jax.tree_util.tree_flatten_with_path(like, is_leaf=is_codes)
    paths = _paths([key_path for key_path, _ in wanted])
    for path, (_, leaf) in zip(paths, wanted, strict=True):
        _check_leaf(path, records.get(path), leaf)
    surplus = records.keys() - set(paths)
    if surplus:
        raise ValueError(f"leaf {path_name(min(surplus, key=str))!r}: in the file, not in `like`")
    return paths, structure


def _paths(key_paths: Sequence[KeyPath]) -> list[Path]:
    """What a file calls these leaves."""
    return [tuple(_entry(key, path) for key in path) for path in without_lone_values(key_paths)]


def _entry(key: Any, key_path: KeyPath) -> Entry:
    match key:
        case GetAttrKey(name=str(name)) | DictKey(key=str(name)):
            return name
        case SequenceKey(idx=int(index)) | FlattenedIndexKey(key=int(index)):
            return index
        case DictKey(key=int(number)) if not isinstance(number, bool):
            return (number,)
    raise TypeError(
        f"leaf {path_string(key_path)!r}: got the key {key!r}, expected a string or an integer"
    )


class _Node(dict[Entry, Any]):
    """An inner place of a tree under construction; unlike a leaf that happens to be a dict."""

    is_tuple = False

    def length(self) -> int:
        """Of the list that it stands for: 1 + the last position; 0 if it stands for a dict."""
        return max((entry + 1 for entry in self if isinstance(entry, int)), default=0)


def _insert(root: _Node, path: Path, leaf: Any, nodes: dict[Path, _Node]) -> None:
    def clash() -> ValueError:
        return ValueError(f"leaf {path_name(path)!r}: another leaf lies on or under its path")

    if not path:
        raise clash()
    node = root
    for depth, entry in enumerate(path[:-1], 1):
        child = node.get(entry)
        if child is None and entry not in node:
            child = node[entry] = nodes[path[:depth]] = _Node()
        if not isinstance(child, _Node):
            raise clash()
        node = child
    if path[-1] in node:
        raise clash()
    node[path[-1]] = leaf


def _check_nodes(nodes: list[_Node]) -> None:
    for node in nodes:
        if len({type(entry) for entry in node}) > 1:
            raise ValueError(f"keys of different kinds in one place of the tree: {list(node)}")
    absent = sum(node.length() - len(node) for node in nodes if node.length())
    if absent > _MAX_ABSENT:
        raise ValueError(f"{absent} positions of lists are empty, expected at most {_MAX_ABSENT}")


def _plain(node: Any) -> PyTree:
    if not isinstance(node, _Node):
        return node
    if length := node.length():
        positions = [_plain(node.get(position)) for position in range(length)]
        return tuple(positions) if node.is_tuple else positions
    return {
        entry[0] if isinstance(entry, tuple) else entry: _plain(child)
        for entry, child in node.items()
    }


def _check_leaf(path: Path, record: Record | None, like: Any) -> None:
    def expect(holds: bool, got: Any, expected: Any) -> None:
        if not holds:
            raise ValueError(
                f"leaf {path_name(path)!r}: got {got}, expected {expected} as in `like`"
            )

    if not hasattr(like, "shape") or not hasattr(like, "dtype"):
        raise ValueError(
            f"leaf {path_name(path)!r} of `like`: got {type(like).__name__}, expected an array"
        )
    if record is None:
        raise ValueError(f"leaf {path_name(path)!r}: in `like`, not in the file")
    dtype = like.dtype if is_codes(like) else like.dtype.name
    expect(record.shape == tuple(like.shape), f"shape {record.shape}", tuple(like.shape))
    expect(record.dtype == dtype, f"dtype {record.dtype}", dtype)
