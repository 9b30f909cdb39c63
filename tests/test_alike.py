"""Leaves of one shape as one: the results of each by itself, where its leaf lies."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import gathered
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jpq_jax.projection import alike

SHAPES = [(4, 8), (), (8,), (4, 8), (0, 3), (8,), (8,), (), (0, 3), (2, 4, 8)]


def leaves(shapes: list[tuple[int, ...]]) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.integers(-9, 10, shape), jnp.float32) for shape in shapes]


def scaled(w: jax.Array, factor: jax.Array, pair: tuple[jax.Array, jax.Array]) -> jax.Array:
    return w * factor + pair[0] - jnp.sum(pair[1])


def summed(w: jax.Array, factor: jax.Array) -> dict[str, jax.Array]:
    return {"sum": jnp.sum(w) * factor, "most": jnp.max(w, initial=-99.0)}


@pytest.mark.parametrize("large", [0, 16, 2**20])
def test_each_has_its_own_result(large: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(alike, "_LARGE", large)
    given, factors = leaves(SHAPES), jnp.arange(len(SHAPES), dtype=jnp.float32)
    pairs = [(jnp.float32(i), jnp.full(3, i, jnp.float32)) for i in range(len(SHAPES))]
    found = alike.each_lying_like(scaled, given, factors, pairs)
    for one, *of_one in zip(found, given, factors, pairs, strict=True):
        np.testing.assert_array_equal(one, scaled(*of_one))
    for one, *of_one in zip(
        alike.each_replicated(summed, given, factors), given, factors, strict=True
    ):
        jax.tree.map(np.testing.assert_array_equal, one, summed(*of_one))


def test_no_leaves() -> None:
    assert alike.each_replicated(summed, [], jnp.zeros(0)) == []


def test_arguments_of_another_number_of_leaves() -> None:
    with pytest.raises(ValueError, match="argument 2"):
        alike.each_replicated(summed, leaves(SHAPES), jnp.zeros(3))


def test_sharded_leaves_stay_where_they_are() -> None:
    specs = [P("x", "y"), P("x", "y"), P("y", "x"), P("x", "y"), P(None, None)]
    given = leaves([(16, 64)] * len(specs))
    factors = jnp.arange(len(specs), dtype=jnp.float32)

    def both(given: list[jax.Array], factors: jax.Array) -> tuple[list[Any], list[Any]]:
        def times(w: jax.Array, factor: jax.Array) -> jax.Array:
            return w * factor

        return (
            alike.each_lying_like(times, given, factors),
            alike.each_replicated(summed, given, factors),
        )

    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        placed = [
            jax.device_put(w, NamedSharding(mesh, spec))
            for w, spec in zip(given, specs, strict=True)
        ]
        compiled = jax.jit(both).lower(placed, factors).compile()
        products, sums = compiled(placed, factors)
    for w, factor, spec, product, of_leaf in zip(
        given, factors, specs, products, sums, strict=True
    ):
        assert product.sharding.spec == spec
        np.testing.assert_array_equal(product, w * factor)
        np.testing.assert_array_equal(of_leaf["sum"], jnp.sum(w) * factor)
    assert gathered(compiled.as_text()) <= len(specs)
