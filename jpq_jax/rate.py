"""How many bits a compressed tree takes: the paper metric, and an account of all that a file must hold."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from jpq_jax.vocabulary import LEVELS, Codes, PyTree, is_codes, leaves_with_paths

Metric = Literal["paper", "coded", "file"]


class LeafRate(NamedTuple):
    """What one leaf takes, in bits.

    Attributes:
      path: the leaf's place in the tree.
      compressed: whether it is `Codes`, or stored as it is.
      weights: how many there are.
      nonzeros: how many are not 0.
      bits: b, what indexes the distinct nonzero values; the width of the dtype in a stored leaf.
      values: b x nonzeros: the paper metric; 0 in a stored leaf, which the papers do not count.
      values_coded: ideal code length of which value each nonzero has.
      positions_coded: ideal code length of where the nonzeros are, each weight by itself; 0 in a leaf of which all is stored.
      codebook: 32 per value in use, and per channel scale if there is one.
      learning: half a log2 of the weights per value in use, what it takes to learn how frequent it is.
      stored: in a stored leaf, all of it, or its nonzeros, if these and where they are take less.
    """

    path: str
    compressed: bool
    weights: int
    nonzeros: int
    bits: int
    values: int
    values_coded: float
    positions_coded: float
    codebook: int
    learning: float
    stored: int

    @property
    def coded(self) -> float:
        """What `allocation.rates.CodedRate` counts; 0 in a stored leaf."""
        return self.values_coded + self.positions_coded + self.codebook + self.learning

    @property
    def file(self) -> float:
        """All that a file must hold of the leaf, its name not counted."""
        return self.values_coded + self.positions_coded + self.codebook + self.stored


def account(codes: PyTree) -> list[LeafRate]:
    """The account of every leaf of a compressed tree, in JAX's order."""
    return [
        _codes_rate(path, leaf) if is_codes(leaf) else _stored_rate(path, leaf)
        for path, leaf in leaves_with_paths(codes)
    ]


def rate_bits(codes: PyTree, metric: Metric = "paper") -> float:
    """Bits of a compressed tree.

    Args:
      codes: a compressed tree of concrete arrays.
      metric: "paper", sum of b x nonzeros over the compressed leaves, as counted by Yang et al.,
        CVPR 2020; "coded", ideal adaptive code length of the compressed leaves: sum over each leaf's codes, zero
        among them, of n_c log2(n / n_c), and for each value in use 32 bits and (log2 n) / 2 (Rissanen, 1984), and 32
        for each channel scale; or "file", what a file must hold of every leaf: values and positions at their order-0
        entropies, codebooks, and stored leaves in their own dtype. "file" leaves out names and headers.

    Raises:
      ValueError: if the metric is another.
    """
    if metric not in get_args(Metric):
        raise ValueError(f"metric: got {metric!r}, expected one of {', '.join(get_args(Metric))}")
    rates = account(codes)
    if metric == "paper":
        return sum(r.values for r in rates)
    return sum(r.coded if metric == "coded" else r.file for r in rates)


def paper_ratio(codes: PyTree) -> float:
    """Sum 32 n_i / sum b_i nnz_i over the compressed leaves; infinite if every weight is pruned."""
    rates = [rate for rate in account(codes) if rate.compressed]
    bits = sum(r.values for r in rates)
    return 32 * sum(r.weights for r in rates) / bits if bits else float("inf")


def _entropy_bits(counts: np.ndarray) -> float:
    counts = counts[counts > 0].astype(np.float64)
    return float(-(counts * np.log2(counts / counts.sum())).sum()) if counts.size else 0.0


def _codes_rate(path: str, leaf: Codes) -> LeafRate:
    counts = np.bincount(np.asarray(leaf.code).ravel(), minlength=LEVELS)
    nonzeros = int(counts[1:].sum())
    bits, used = int(leaf.bits), int((counts[1:] > 0).sum())
    scales = leaf.scale.size if leaf.scale is not None and nonzeros else 0
    return LeafRate(
        path=path,
        compressed=True,
        weights=leaf.size,
        nonzeros=nonzeros,
        bits=bits,
        values=bits * nonzeros,
        values_coded=_entropy_bits(counts[1:]),
        positions_coded=_entropy_bits(np.array([counts[0], nonzeros])),
        codebook=32 * (used + scales),
        learning=used * math.log2(max(leaf.size, 1)) / 2,
        stored=0,
    )


def _stored_rate(path: str, leaf: Any) -> LeafRate:
    width = 8 * np.dtype(leaf.dtype).itemsize
    size, nonzeros = int(np.size(leaf)), int(np.count_nonzero(np.asarray(leaf)))
    positions = _entropy_bits(np.array([size - nonzeros, nonzeros]))
    if positions + width * nonzeros < width * size:
        stored = width * nonzeros
    else:
        positions, stored = 0.0, width * size
    return LeafRate(path, False, size, nonzeros, width, 0, 0.0, positions, 0, 0.0, stored)
