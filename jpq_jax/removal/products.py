"""What is known of products and convolutions, of what is known of their operands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import JaxprEqn
from numpy.typing import NDArray

from jpq_jax.removal.known import Known
from jpq_jax.removal.program import shape_of


def of_dot(eqn: JaxprEqn, operands: Sequence[Known]) -> Known | None:
    """By weights that are known: one of both operands is."""
    (left, right), (left_batch, _) = eqn.params["dimension_numbers"]
    if all(o.whole and o.value.shape == o.shape for o in operands):
        return None
    if left_batch:
        return _products(eqn, operands)
    weights, data, of_weights, of_data, first = (
        (operands[1], operands[0], right, left, False)
        if operands[1].whole
        else (operands[0], operands[1], left, right, True)
    )
    free = [i for i in range(len(data.shape)) if i not in of_data]
    if not weights.whole or any(data.value.shape[i] > 1 for i in free):
        return _products(eqn, operands)
    matrix = np.moveaxis(
        np.broadcast_to(weights.value, weights.shape), of_weights, range(len(of_weights))
    )
    data = data.full(of_data)
    order = [*of_data, *free]
    inputs = (np.transpose(x, order).reshape(-1) for x in (data.is_known, data.value))
    of_free = [size for i, size in enumerate(weights.shape) if i not in of_weights]
    found, value = summed(matrix.reshape(data.is_known.size, math.prod(of_free)), *inputs)
    ones = [1] * len(free)
    short = [*of_free, *ones] if first else [*ones, *of_free]
    return Known(shape_of(eqn.outvars[0]), found.reshape(short), value.reshape(short))


def _products(eqn: JaxprEqn, operands: Sequence[Known]) -> Known | None:
    """Of any two arrays: known where all along the sum both are, or one is 0."""
    if any(o.is_broken.any() for o in operands) or not any(o.is_known.any() for o in operands):
        return None
    left, right = operands
    numbers = eqn.params["dimension_numbers"]
    for axes in numbers:
        for i, j in zip(*axes, strict=True):
            if left.value.shape[i] != right.value.shape[j]:
                left, right = left.full([i]), right.full([j])
    [summed_left, _], both = numbers[0], (left, right)

    def total(*parts: NDArray[Any]) -> NDArray[Any]:
        dtype = jnp.result_type(jnp.float32, *parts)
        first, second = (jnp.asarray(part, dtype) for part in parts)
        return np.asarray(lax.dot_general(first, second, numbers, precision="highest"))

    some = total(*(~o.is_zero for o in both))
    known = total(*(o.is_known & ~o.is_zero for o in both))
    value = total(*(np.where(o.is_known, o.value, 0) for o in both))
    times = math.prod(left.shape[i] for i in summed_left if left.value.shape[i] == 1)
    return Known(shape_of(eqn.outvars[0]), some == known, value * times)


def summed(
    matrix: NDArray[Any], is_known: NDArray[np.bool_], value: NDArray[Any]
) -> tuple[NDArray[np.bool_], NDArray[Any]]:
    """Which outputs are known of a product by a matrix [inputs, outputs], and their values."""
    needs = (matrix != 0)[~is_known].any(axis=0)
    factors = (np.where(is_known, value, 0), matrix)
    dtype = np.complex128 if any(np.iscomplexobj(x) for x in factors) else np.float64
    return ~needs, factors[0].astype(dtype) @ matrix.astype(dtype)


def of_convolution(eqn: JaxprEqn, operands: Sequence[Known]) -> Known | None:
    image, kernel = operands
    numbers, p = eqn.params["dimension_numbers"], eqn.params
    feature, out = numbers.lhs_spec[1], numbers.out_spec[1]
    if not kernel.whole or p["batch_group_count"] != 1:
        return None
    if any(size > 1 for i, size in enumerate(image.value.shape) if i != feature):
        return None
    image = image.full([feature])
    is_known = image.is_known.reshape(-1)
    if not is_uniform(eqn):
        is_known = image.is_zero.reshape(-1)
    taps = kernel_matrix(eqn, kernel)
    groups = p["feature_group_count"]
    inputs = [
        x.reshape(groups, len(is_known) // groups) for x in (is_known, image.value.reshape(-1))
    ]
    # Its filters' places count by themselves for what is needed, and are added for the value.
    needs = (taps != 0).any(axis=0)
    parts = [
        (summed(needs[g], known, value)[0], summed(taps.sum(axis=0)[g], known, value)[1])
        for g, (known, value) in enumerate(zip(*inputs, strict=True))
    ]
    short = [1] * len(image.shape)
    short[out] = -1
    found = np.concatenate([found for found, _ in parts]).reshape(short)
    value = np.concatenate([value for _, value in parts]).reshape(short)
    return Known(shape_of(eqn.outvars[0]), found, value)


def kernel_matrix(eqn: JaxprEqn, kernel: Known) -> NDArray[Any]:
    """A convolution's kernel as [places of the filter, groups, inputs, outputs]."""
    out, into, *_ = eqn.params["dimension_numbers"].rhs_spec
    weights = np.broadcast_to(kernel.value, kernel.shape)
    groups, inputs, outputs = (
        eqn.params["feature_group_count"],
        kernel.shape[into],
        kernel.shape[out],
    )
    places = math.prod(kernel.shape[axis] for axis in eqn.params["dimension_numbers"].rhs_spec[2:])
    last = np.moveaxis(weights, (into, out), (-2, -1))
    last = last.reshape(places, inputs, groups, outputs // groups)
    return np.moveaxis(last, 2, 1)


def is_uniform(eqn: JaxprEqn) -> bool:
    """Whether a convolution makes an image that is the same everywhere of one that is."""
    padded = any(entry != (0, 0) for entry in eqn.params["padding"])
    return not padded and all(step == 1 for step in eqn.params["lhs_dilation"])
