"""How far two models are apart, whatever their numbers."""

from __future__ import annotations

import dataclasses
from typing import Any

import files
import jax.numpy as jnp
import numpy as np
import pytest

from jpq_jax import dequantize, report
from jpq_jax.artifact import leaf


@pytest.mark.parametrize(
    ("a", "b", "relative", "largest"),
    [
        ([3.0, 4.0], [3.0, 4.0], 0, 0),
        ([0.0, 0.0], [0.0, 0.0], 0, 0),
        ([0.0, 0.0], [0.0, 1.0], np.inf, 1),
        ([3.0, 4.0], [0.0, 4.0], 9 / 25, 3),
        ([-np.inf, 4.0], [-np.inf, 2.0], 1 / 4, 2),  # as attention masks are
        ([np.nan, 4.0], [np.nan, 2.0], 1 / 4, 2),
        ([np.nan, 4.0], [1.0, 4.0], np.inf, np.inf),
        ([3.0, 4.0], [np.inf, 4.0], np.inf, np.inf),
        ([3e200, 4e200], [0.0, 4e200], 9 / 25, 3e200),  # whose squares overflow
        ([3e-200, 4e-200], [0.0, 4e-200], 9 / 25, 3e-200),
        ([3j, 4.0], [0j, 4.0], 9 / 25, 3),
        ([True, False], [True, True], 1, 1),
        ([], [], 0, 0),
    ],
)
def test_differences_of_any_numbers(a: list[Any], b: list[Any], relative: float, largest: float):
    [found] = report.differences({"w": np.array(a)}, {"w": np.array(b)})
    assert found.relative == pytest.approx(relative)
    assert found.largest == pytest.approx(largest)
    assert report.overall([found]) == pytest.approx(relative)


def test_overall_error_weighs_leaves_by_their_squares():
    first = {"a": np.full(4, 1e160), "b": np.full(4, 2e160), "c": np.zeros(0)}
    second = {"a": np.zeros(4), "b": np.full(4, 2e160), "c": np.zeros(0)}
    found = report.differences(first, second)
    assert report.overall(found) == pytest.approx(1 / 5)
    assert report.overall([]) == 0


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_compressed_trees_are_what_they_stand_for(
    dtype: str, scaled: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(leaf, "_PART", 7)
    codes = files.random_codes((6, 5))
    scale = jnp.arange(1, 6, dtype=jnp.float32)[None] / 3 if scaled else None
    codes = dataclasses.replace(codes, dtype=dtype, scale=scale)
    dense = np.asarray(dequantize(codes), np.float64)
    kernel = np.linspace(-1, 1, 30).reshape(6, 5)
    [found] = report.differences({"w": kernel}, {"w": codes})
    assert found.largest == np.abs(dense - kernel).max()
    assert found.error == pytest.approx(np.linalg.norm(dense - kernel))
    assert found.norm == pytest.approx(np.linalg.norm(kernel))
