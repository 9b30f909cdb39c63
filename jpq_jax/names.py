"""Names of leaves: their parts, in a file of tensors, of a subtree, and in two models compared.

Checkpoints write one place as `layer/bias`, as `layer.bias` or as nested dicts; every rule that
looks at names uses the functions here.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import jax

from jpq_jax.vocabulary import PyTree, is_codes, without_lone_values

_SEPARATOR = re.compile(r"[/.]")


def parts(name: str) -> list[str]:
    """Of `block/dense.kernel`: block, dense, kernel."""
    return _SEPARATOR.split(name)


def module_and_kind(name: str) -> tuple[str, str]:
    """What a leaf belongs to and what it is there: `a/layer` and `bias` of `a.layer.bias`.

    Empty parts are left out, and so is a last `value` below others, as Flax NNX's variables have.
    """
    found = [part for part in parts(name) if part]
    if len(found) > 1 and found[-1] == "value":
        found.pop()
    return "/".join(found[:-1]), "".join(found[-1:])


def tensor_names(tree: PyTree) -> list[tuple[str, Any]]:
    """The leaves by their names in a file of tensors: their keys, each as it is, joined by ".".

    So those of a flat dict keep their names, with whatever "/" and "." is in them.

    Raises:
      ValueError: if two leaves would have one name.
    """
    flat = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_codes)
    key_paths = without_lone_values([path for path, _ in flat])
    names = [
        jax.tree_util.keystr(path, simple=True, separator=".") if path else "(root)"
        for path in key_paths
    ]
    for name in repeated(names):
        places = [path for path, other in zip(key_paths, names, strict=True) if other == name]
        keys = " and ".join(map(jax.tree_util.keystr, places))
        raise ValueError(
            f"leaf {name!r}: got {len(places)} leaves of this name, expected one: {keys}"
        )
    return [(name, leaf) for name, (_, leaf) in zip(names, flat, strict=True)]


def subtree(tree: PyTree, only: str) -> PyTree:
    """What lies under a name, `params/dense` or `params.dense`, of a nested tree or a flat dict.

    Args:
      tree: of dicts and lists.
      only: the name. Of names of a flat dict that begin with it, the rest is kept.

    Raises:
      ValueError: if there is nothing of this name, or more than one thing.
    """
    inside, below = _found(tree, parts(only.rstrip("/")))
    twice = repeated(name for name, _ in below)
    if twice or len(inside) + bool(below) > 1:
        raise ValueError(f"got only={only!r}, expected the name of one place: several have it")
    if below:
        return dict(below)
    if not inside:
        raise ValueError(
            f"got only={only!r}, expected one of {_children(tree)} or what is under it"
        )
    return inside[0]


def _found(node: PyTree, wanted: list[str]) -> tuple[list[PyTree], list[tuple[str, PyTree]]]:
    """What has exactly this name; and, by the rest of theirs, what has longer ones in a key."""
    if not wanted:
        return [node], []
    inside: list[PyTree] = []
    below: list[tuple[str, PyTree]] = []
    for key, child in _items(node):
        key_parts = parts(key)
        if key_parts == wanted[: len(key_parts)]:
            deeper = _found(child, wanted[len(key_parts) :])
            inside += deeper[0]
            below += deeper[1]
        elif key_parts[: len(wanted)] == wanted:
            below.append((_rest(key, len(wanted)), child))
    return inside, below


def _items(node: PyTree) -> list[tuple[str, PyTree]]:
    if isinstance(node, dict):
        return [(str(key), child) for key, child in node.items()]
    if isinstance(node, list | tuple):
        return [(str(index), child) for index, child in enumerate(node)]
    return []


def _rest(key: str, count: int) -> str:
    """What follows so many parts of a key, as it is."""
    return _SEPARATOR.split(key, count)[-1]


def _children(tree: PyTree, most: int = 8) -> str:
    """The first parts of the names in a tree, for messages."""
    first = list(dict.fromkeys(parts(key)[0] for key, _ in _items(tree)))
    return ", ".join(map(repr, first[:most])) + (", ..." if len(first) > most else "")


def pairs(first: Sequence[str], second: Sequence[str]) -> list[int]:
    """Of each name of the second model, which of the first is the same.

    That is its equal, if there is one; else the one that differs in "/" and "." alone.

    Raises:
      ValueError: if a name is there twice, or none or several of the other model are the same.
    """
    for which, names in (("first", first), ("second", second)):
        for name in repeated(names):
            raise ValueError(f"leaf {name!r}: the {which} of both has several of this name")
    found = {name: position for position, name in enumerate(first)}
    ours, theirs = (_by_parts(a, set(b)) for a, b in ((first, second), (second, first)))
    for key in sorted(ours.keys() | theirs.keys()):
        here, there = ours[key], theirs[key]
        if not here or not there:
            which = "first" if here else "second"
            raise ValueError(f"leaf {(here + there)[0]!r}: only the {which} of both has it")
        if len(here) + len(there) > 2:
            raise ValueError(f"leaf {there[0]!r}: got {there} and {here}, expected one and one")
        found[there[0]] = found[here[0]]
    return [found[name] for name in second]


def _by_parts(names: Sequence[str], others: set[str]) -> dict[tuple[str, ...], list[str]]:
    """Those that have no equal."""
    found: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in names:
        if name not in others:
            found[tuple(parts(name))].append(name)
    return found


def repeated(names: Iterable[str]) -> list[str]:
    """Those that are there more than once."""
    return [name for name, number in Counter(names).items() if number > 1]
