"""A budget in bytes of the file: the price of a bit at which a compressed tree's file is as large as it may be."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax

from jpq_jax import artifact
from jpq_jax.artifact.record import Extras, fewest_bytes
from jpq_jax.vocabulary import InfeasibleError, PyTree, is_codes

_ENOUGH = 0.997  # of the budget
_ROUNDS = 24
_SLOPE = -0.7  # octaves of bytes for one of the price, before it is known
_FINEST = 2.0**-14  # octaves of the price


class Tried(NamedTuple):
    """Attributes:
    price: of a bit.
    codes: the compressed tree at that price.
    nbytes: of its file.
    """

    price: float
    codes: PyTree
    nbytes: int


class Interval(NamedTuple):
    """Attributes, each a log2 of the price of a bit:
    low: at which the file is too large, or as large as it gets.
    start: to try first.
    high: at which all is zero.
    """

    low: float
    start: float
    high: float


def largest_within(
    nbytes: int,
    codes_at: Callable[[float], PyTree],
    prices: Interval,
    extras: Extras | None = None,
) -> Tried:
    """The compressed tree of about the lowest price at which the file keeps to so many bytes.

    Args:
      nbytes: the budget, everything in the file counted.
      codes_at: from a price of a bit to the tree that is saved.
      prices: where to look.
      extras: that the file will be saved with.

    Raises:
      InfeasibleError: for a budget that even zeros exceed, or that readers refuse for so many weights.
    """

    def tried(at: float) -> Tried:
        codes = codes_at(2.0**at)
        return Tried(2.0**at, codes, artifact.file_bytes(codes, extras))

    low, at, high = prices
    found = tried(at)
    fewest = fewest_bytes(_weights(found.codes))
    if nbytes < fewest:
        raise InfeasibleError(
            f"got a budget of {nbytes} bytes, expected at least {fewest}: readers refuse so many weights in less"
        )
    best: float | None = None
    known: list[tuple[float, float]] = []
    while True:
        known.append((at, math.log2(found.nbytes)))
        if found.nbytes <= nbytes:
            high = at
            best = at if found.nbytes >= fewest else best
            if found.nbytes >= _ENOUGH * nbytes:
                break
        else:
            low = at
        if len(known) == _ROUNDS or high - low <= _FINEST:
            break
        at = _next(known, math.log2(max(nbytes, 1) * (1 + _ENOUGH) / 2), low, high)
        del found  # before there is another: a large model's codes are to be held once
        found = tried(at)
    if best is None:
        raise InfeasibleError(
            f"got a budget of {nbytes} bytes, expected at least {tried(prices.high).nbytes}: what a file of zeros takes "
            "with these names, shapes and stored leaves"
        )
    return found if at == best else tried(best)


def _weights(codes: PyTree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(codes, is_leaf=is_codes))


def _next(known: list[tuple[float, float]], target: float, low: float, high: float) -> float:
    """Where a line through the two points nearest to the target meets it; the middle, if that is outside.

    known: (log2 of a price, log2 of bytes).
    """
    nearest = sorted(known, key=lambda point: abs(point[1] - target))[:2]
    (x, y), slope = nearest[0], _SLOPE
    if len(nearest) == 2 and nearest[1][0] != x and nearest[1][1] != y:
        slope = min((nearest[1][1] - y) / (nearest[1][0] - x), _SLOPE / 8)
    at = x + (target - y) / slope
    return at if low < at < high else (low + high) / 2
