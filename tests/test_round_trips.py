"""Trees of chance: what is saved comes back to the bit, and is saved to the same bytes again.

TREES=2000 in the environment tries as many.
"""

from __future__ import annotations

import os
from typing import Any

import files
import ml_dtypes
import numpy as np
import pytest
from compiled import THOROUGH

from jpq_jax import artifact
from jpq_jax.vocabulary import LEVELS, Codes

_DTYPES = ("float32", "float16", "bfloat16", "int8", "uint16", "int32", "float64", "int64", "bool")
_SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-42, 3e38, 1.5])


def shape_of(draw: np.random.Generator) -> tuple[int, ...]:
    """Of 0 to 5 axes, sometimes empty."""
    return tuple(draw.integers(0 if draw.random() < 0.1 else 1, 6, size=draw.integers(0, 6)))


def array(draw: np.random.Generator) -> Any:
    shape, dtype = shape_of(draw), str(draw.choice(_DTYPES))
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    if kind.kind in "iu":
        return draw.integers(0, 100, size=shape).astype(kind)
    if kind.kind == "b":
        return draw.random(shape) < 0.5
    way = draw.integers(5)
    if way == 0:
        with np.errstate(over="ignore"):
            return draw.choice(_SPECIAL, size=shape).astype(kind)
    if way == 1:
        return (draw.integers(-50, 50, size=shape) * 0.125).astype(kind)
    if way == 2:
        return np.where(draw.random(shape) < 0.1, draw.normal(size=shape), 0).astype(kind)
    return draw.normal(size=shape).astype(kind)


def codes(draw: np.random.Generator) -> Codes:
    shape, bits = shape_of(draw), int(draw.integers(1, 9))
    count = int(draw.integers(1, 2**bits + 1))
    if draw.random() < 0.5:
        values = np.sort(draw.choice(np.arange(1, 400), size=count, replace=False)) * 0.03125
    else:
        values = np.unique(draw.normal(size=count).astype(np.float32))
    codebook = np.zeros(LEVELS, np.float32)
    codebook[1 : 1 + values.size] = values
    code = draw.integers(0, values.size, size=shape, endpoint=True)
    code = np.where(draw.random(shape) < draw.random(), code, 0).astype(np.int16)
    scale = None
    if shape and draw.random() < 0.2:
        scale = draw.uniform(0.5, 2, size=(1,) * (len(shape) - 1) + shape[-1:]).astype(np.float32)
    dtype = str(draw.choice(("float32", "bfloat16", "float16")))
    return Codes(code, codebook, np.asarray(bits, np.int32), dtype, scale)


def tree(draw: np.random.Generator, depth: int = 0) -> Any:
    if depth and draw.random() < 0.6:
        return codes(draw) if draw.random() < 0.5 else array(draw)
    parts = [tree(draw, depth + 1) for _ in range(draw.integers(1, 4))]
    if draw.random() < 0.3:
        return parts
    names = draw.permutation(["kernel", "bias", "w/x", "ä", "0", "a.b"])[: len(parts)]
    if draw.random() < 0.2:
        return {int(i): part for i, part in enumerate(parts)}
    return {str(name): part for name, part in zip(names, parts, strict=True)}


@pytest.mark.parametrize("part", range(8))
def test_it_comes_back(part: int):
    for seed in range(part, int(os.environ.get("TREES", "320" if THOROUGH else "96")), 8):
        expected = tree(np.random.default_rng(seed))
        data = artifact.encode(expected)
        got = artifact.decode(data).codes
        for a, b in zip(flat(got), flat(expected), strict=True):
            assert a == b, seed
        assert artifact.encode(got) == data, seed


def flat(of: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """(path, all there is to the leaf), with no library's idea of a tree."""
    if isinstance(of, dict):
        items: list[tuple[Any, Any]] = sorted(of.items(), key=lambda item: str(item[0]))
    elif isinstance(of, list):
        items = list(enumerate(of))
    elif isinstance(of, Codes):
        scale = None if of.scale is None else files.bits_of(of.scale)
        return [(path, files.bits_of(of), scale)]
    else:
        return [(path, files.bits_of(of))]
    return [leaf for key, part in items for leaf in flat(part, (*path, key))]
