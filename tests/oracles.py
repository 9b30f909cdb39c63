"""Independent answers in float64 NumPy: what the tests of knapsacks, codebooks and projections compare with."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MAX_BITS = 8


def support(
    weights: Sequence[np.ndarray], bits: Sequence[int], capacity: float
) -> list[np.ndarray]:
    """The 0-1 knapsack: all weights in one sorted list, the longest prefix that fits, no zeros."""
    flat = np.concatenate([np.asarray(w, np.float64).ravel() for w in weights])
    price = np.repeat(np.asarray(bits, np.int64), [np.size(w) for w in weights])
    order = np.argsort(-(flat**2 / price), kind="stable")
    kept = np.zeros(flat.size, bool)
    kept[order] = np.cumsum(price[order]) <= capacity
    kept &= flat != 0
    ends = np.cumsum([np.size(w) for w in weights])[:-1]
    return [m.reshape(np.shape(w)) for m, w in zip(np.split(kept, ends), weights, strict=True)]


class Greedy(NamedTuple):
    """The items taken, whether the cheapest fit, and the profit of the first increment that did not fit."""

    item: list[int]
    feasible: bool
    missed: float


def choice(cost: np.ndarray, profit: np.ndarray, capacity: int) -> Greedy:
    """The multiple-choice knapsack as published: hulls by a stack, increments sorted, a misfit closes its group."""
    hulls = [hull([int(c) for c in cs], ps) for cs, ps in zip(cost, profit, strict=True)]
    item = [h[0] for h in hulls]
    spent = sum(int(cost[g, i]) for g, i in enumerate(item))
    if spent > capacity:
        return Greedy(item, False, 0.0)
    steps = []
    for g, h in enumerate(hulls):
        for i, j in itertools.pairwise(h):
            gain, price = (
                float(profit[g, j]) - float(profit[g, i]),
                int(cost[g, j]) - int(cost[g, i]),
            )
            steps.append((-gain / price, g, j, price, gain))
    closed: set[int] = set()
    missed = 0.0
    for _, g, j, price, gain in sorted(steps):
        if g in closed:
            continue
        if spent + price > capacity:
            missed = missed if closed else gain
            closed.add(g)
        else:
            item[g], spent = j, spent + price
    return Greedy(item, True, missed)


def hull(cost: Sequence[int], profit: np.ndarray) -> list[int]:
    """Items that are not dominated, then a monotone chain: slopes must fall strictly."""
    by_cost = sorted(range(len(cost)), key=lambda i: (cost[i], -profit[i], i))
    undominated = [by_cost[0]]
    for i in by_cost[1:]:
        if profit[i] > profit[undominated[-1]]:
            undominated.append(i)

    def slope(i: int, j: int) -> float:
        return (float(profit[j]) - float(profit[i])) / (cost[j] - cost[i])

    stack: list[int] = []
    for i in undominated:
        while len(stack) > 1 and slope(stack[-2], stack[-1]) <= slope(stack[-1], i):
            stack.pop()
        stack.append(i)
    return stack


def best_choice(cost: np.ndarray, profit: np.ndarray, capacity: int) -> float | None:
    """The most profit over all combinations that fit, or None if none does."""
    groups, items = cost.shape
    every = np.array(list(itertools.product(range(items), repeat=groups)))
    total = cost.astype(np.int64)[np.arange(groups), every].sum(axis=1)
    gain = profit.astype(np.float64)[np.arange(groups), every].sum(axis=1)
    fits = total <= capacity
    return float(gain[fits].max()) if fits.any() else None


def squared_error(x: np.ndarray, levels: np.ndarray) -> float:
    """Squared error of the nonzeros of `x`, each at the nearest level."""
    return float(((nonzeros(x) - nearest(nonzeros(x), levels)) ** 2).sum())


def nonzeros(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64).ravel()
    return x[x != 0]


def nearest(x: np.ndarray, levels: np.ndarray) -> np.ndarray:
    levels = np.sort(np.asarray(levels, np.float64))
    return levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, x)]


def lloyd(x: np.ndarray, bits: int) -> np.ndarray:
    """Published k-means on all nonzeros: equally spaced start beside a fixed 0; empty values are given up (set to 0)."""
    x = np.sort(nonzeros(x))
    values = np.linspace(x[0], x[-1], 2**bits) if x.size else np.zeros(2**bits)
    sums = np.concatenate([[0], np.cumsum(x)])
    previous = np.inf
    for _ in range(100):
        levels = np.unique(np.append(values, 0))
        distortion = squared_error(x, levels)
        if distortion == 0 or abs(previous - distortion) / distortion < 1e-3:
            break
        previous = distortion
        middles = (levels[1:] + levels[:-1]) / 2
        edge = np.concatenate([[0], np.searchsorted(x, middles, side="right"), [x.size]])
        members = np.diff(edge)
        means = np.diff(sums[edge]) / np.maximum(members, 1)
        values = means[(members > 0) & (levels != 0)]
    return np.unique(np.append(values, 0))


def least_error(x: np.ndarray, values: int) -> float:
    """The least squared error of any `values` values beside 0: all assignments of the few weights are tried."""
    label = np.array(list(itertools.product(range(values + 1), repeat=x.size)))
    error = np.where(label == 0, x**2, 0).sum(axis=1)
    for k in range(1, values + 1):
        member = label == k
        total = np.where(member, x, 0).sum(axis=1)
        squares = np.where(member, x**2, 0).sum(axis=1)
        error += squares - total**2 / np.maximum(member.sum(axis=1), 1)
    return float(error.min())


class Alternation(NamedTuple):
    """Squared error of the best round, over all leaves, and the bits that it pays for."""

    error: float
    spent: int


def alternate(
    weights: Sequence[np.ndarray], capacity: int, start_bits: int = 3, rounds: int = 3
) -> Alternation:
    """The published alternation: support at the bits, then bits and values at the support; the best round."""
    bits = [start_bits] * len(weights)
    best = Alternation(np.inf, 0)
    for _ in range(rounds):
        masks = support(weights, bits, capacity)
        kept = [
            np.where(m, np.asarray(w, np.float64), 0) for m, w in zip(masks, weights, strict=True)
        ]
        books = [[lloyd(w, b) for b in range(1, MAX_BITS + 1)] for w in kept]
        errors = [
            [squared_error(w, levels) for levels in of_leaf]
            for w, of_leaf in zip(kept, books, strict=True)
        ]
        counts = np.array([m.sum() for m in masks])
        cost = counts[:, None] * np.arange(1, MAX_BITS + 1)
        item = choice(cost, -np.array(errors), capacity).item
        bits = [i + 1 for i in item]
        pruned = sum(
            float((np.asarray(w, np.float64)[~m] ** 2).sum())
            for m, w in zip(masks, weights, strict=True)
        )
        error = pruned + sum(errors[leaf][i] for leaf, i in enumerate(item))
        if error < best.error:
            best = Alternation(error, int(sum(cost[leaf, i] for leaf, i in enumerate(item))))
    return best


def entropy_bits(labels: np.ndarray) -> float:
    """Ideal code length of the labels at their own frequencies."""
    shares = [np.count_nonzero(labels == label) / labels.size for label in np.unique(labels)]
    return -labels.size * sum(p * np.log2(p) for p in shares)
