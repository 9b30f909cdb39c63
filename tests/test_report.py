"""How far two models are apart, whatever their numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jpq_jax import report


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
