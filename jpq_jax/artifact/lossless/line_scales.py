"""How large the floats on each line of a leaf tend to be: the mean of their half octaves against that of all."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jpq_jax.artifact.activity import Activity
from jpq_jax.artifact.living import slabs
from jpq_jax.artifact.lossless.fields import Layout, Words, fields_of, is_nonzero

SLAB = 2**17  # floats that are looked at together, in numbers of 64 bits
_SAMPLE = 2**15
_LINE_BITS = 24.0  # about what an axis takes besides the entropy of its lines' scales
_WIDEST = 2**8 - 1  # of a line's scale, see `activity`
_SHORTEST = 4  # a line that is worth a scale of its own, in floats


def line_scales_of(words: Words, layout: Layout, *, with_dead: bool) -> Activity:
    """Of the axes for which they make the code shorter, by a sample.

    words: of one axis or more, not all zeros.
    with_dead: whether lines of zeros need no code; not where zeros have signs.
    """
    sums, counts = _sums_of_scales(words, layout)
    mean = sums[0].sum() / counts[0].sum()
    lines = []
    for of_line, count in zip(sums, counts, strict=True):
        relative = np.where(count > 0, of_line / np.maximum(count, 1) - mean, 0)
        lines.append(np.clip(np.rint(relative), -_WIDEST, _WIDEST).astype(np.int32))
    chosen = _chosen_axes(words, layout, lines, counts)
    alive = [
        (count > 0) if axis in chosen and with_dead else np.ones(count.size, bool)
        for axis, count in enumerate(counts)
    ]
    of_chosen = tuple(line if axis in chosen else None for axis, line in enumerate(lines))
    return Activity(0, of_chosen, tuple(alive))


def sampled(size: int) -> NDArray[np.int64]:
    """Places in an array in C order."""
    return np.arange(0, size, max(size // _SAMPLE, 1))


def entropy_bits(symbols: NDArray[np.integer]) -> float:
    """What they take by their own frequencies, and to learn these (Rissanen, 1984)."""
    if not symbols.size:
        return 0.0
    counts = np.bincount(symbols - symbols.min())
    counts = counts[counts > 0]
    return float(counts @ np.log2(symbols.size / counts) + counts.size / 2 * np.log2(symbols.size))


def _sums_of_scales(
    words: Words, layout: Layout
) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """Over the lines of each axis: of the half octaves of what is not 0, and how many these are."""
    matrix = words.reshape(-1, words.shape[-1])
    rows, columns = matrix.shape
    of_rows = np.zeros((2, rows), np.int64)
    of_columns = np.zeros((2, columns), np.int64)
    for start, end in slabs(rows, columns, SLAB):
        part = matrix[start:end].astype(np.uint64)
        some = is_nonzero(part, layout)
        scales = np.zeros(part.shape, np.int64)
        scales[some] = fields_of(part[some], layout).half_octaves(layout)
        of_rows[:, start:end] = scales.sum(axis=1), some.sum(axis=1)
        of_columns += scales.sum(axis=0), some.sum(axis=0)
    leading = of_rows.reshape(2, *words.shape[:-1])
    axes = range(1, leading.ndim)
    pairs = [leading.sum(axis=tuple(a for a in axes if a != axis)) for axis in axes]
    pairs.append(of_columns)
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _chosen_axes(
    words: Words,
    layout: Layout,
    lines: list[NDArray[np.int32]],
    counts: list[NDArray[np.int64]],
) -> list[int]:
    """One by one, as long as the code gets shorter."""
    flat, places = words.reshape(-1), sampled(words.size)
    some = flat[places].astype(np.uint64)
    is_some = is_nonzero(some, layout)
    index = np.unravel_index(places[is_some], words.shape)
    scales = fields_of(some[is_some], layout).half_octaves(layout)
    each = flat.size / places.size
    costs = {
        axis: entropy_bits(line[count > 0]) + _LINE_BITS
        for axis, (line, count) in enumerate(zip(lines, counts, strict=True))
        if line.size > 1 and flat.size >= _SHORTEST * line.size
    }
    best, chosen = each * entropy_bits(scales), []
    while costs:
        tried = {axis: each * entropy_bits(scales - lines[axis][index[axis]]) for axis in costs}
        axis = min(costs, key=lambda axis: tried[axis] + costs[axis])
        if tried[axis] + costs.pop(axis) >= best:
            break
        best, scales = tried[axis], scales - lines[axis][index[axis]]
        chosen.append(axis)
    return chosen
