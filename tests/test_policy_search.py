"""Searches for policies of bits by channels: that they find the best, under the budget, and can be trained under."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import THOROUGH
from networks import image
from test_policy import Toy, residual

import jpq_jax
from jpq_jax.policy.agent import agent_search
from jpq_jax.policy.allocation import (
    lagrangian_policy,
    magnitude_policy,
    sensitivity_of,
    uniform_policy,
)
from jpq_jax.policy.decisions import ACTIONS, cost_of, decided
from jpq_jax.policy.evaluation import accuracies
from jpq_jax.policy.find import METHODS
from jpq_jax.policy.network import by_path, costs, network_of
from jpq_jax.policy.search import evolution, random_search


@pytest.fixture(autouse=True)
def as_users_have_it():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def test_a_limit_that_is_met_exactly_is_kept_to():
    toy = Toy()
    weights = 6 * 4 + 4 * 2
    for bits in (1, 4):
        setting = toy.setting(float(bits * weights))
        np.testing.assert_array_equal(uniform_policy(setting), jnp.full(6, bits))
    least = float(cost_of(setting, decided(setting, jnp.zeros((2, ACTIONS))).policy))
    assert toy.setting(least).limit == least
    with pytest.raises(
        ValueError, match=f"got a limit of {least - 1:.0f} bits, expected at least {least:.0f}"
    ):
        toy.setting(least - 1)


def test_policies_may_be_measured_side_by_side():
    toy = Toy()
    policies = jax.random.randint(jax.random.key(0), (5, 6), 0, 9)
    expected = toy.accuracies(policies)
    for at_once in (2, 8):
        measure = accuracies(toy.network, toy.params, toy.tables, toy.right, at_once)
        np.testing.assert_allclose(measure(policies), expected, rtol=1e-5)
    found = jpq_jax.find_policy(
        toy.apply, toy.params, toy.x[:1], toy.right, limit=80, method="lagrangian", at_once=2
    )
    assert len(found.rewards) == 4
    with pytest.raises(ValueError, match="got at_once=0"):
        jpq_jax.find_policy(toy.apply, toy.params, toy.x[:1], toy.right, limit=80, at_once=0)


def test_an_accuracy_that_is_none_does_not_end_the_agent():
    toy = Toy()

    def some(policies: jax.Array) -> jax.Array:
        found = toy.accuracies(policies)
        return jnp.where(jnp.arange(len(found)) % 3 == 1, jnp.nan, found)

    found = agent_search(toy.setting(80.0), some, jax.random.key(0), 60)
    later = found.rewards[40:]
    assert float(later[jnp.isfinite(later)].max()) > 0.3
    assert len(jnp.unique(later[jnp.isfinite(later)])) > 3
    sensitivity, _ = sensitivity_of(toy.setting(80.0), toy.tables, some)
    assert jnp.isfinite(sensitivity).all()


def test_a_block_that_is_not_needed_is_left_without_channels():
    draw = np.random.default_rng(0)
    shapes = {"first": (6, 8), "up": (8, 8), "down": (8, 8), "last": (8, 3)}
    params = {name: jnp.asarray(draw.normal(size=s), jnp.float32) for name, s in shapes.items()}
    params["down"] *= 1e-3
    x = jnp.asarray(draw.normal(size=(32, 6)), jnp.float32)

    def apply(params: Any, x: jax.Array) -> jax.Array:
        h = x @ params["first"]
        return (h + jax.nn.relu(h @ params["up"]) @ params["down"]) @ params["last"]

    outputs = apply(params, x)

    def right(params: Any) -> jax.Array:
        return 1 - jnp.mean((apply(params, x) - outputs) ** 2) / jnp.mean(outputs**2)

    only_the_rest = 6 * 8 + 8 * 3
    setting = {"limit": only_the_rest, "cost": "macs", "shared": False, "evaluations": 60}
    with pytest.raises(ValueError, match="expected at least 88"):
        jpq_jax.find_policy(apply, params, x[:1], right, **setting)
    for method in reversed(METHODS) if THOROUGH else ("lagrangian", "agent", "evolution"):
        found = jpq_jax.find_policy(
            apply, params, x[:1], right, **setting, empty=True, method=method
        )
        assert float(found.costs.macs) == only_the_rest
    assert found.accuracy > 0.999  # by evolution
    shrunk = jpq_jax.shrink(apply, found.params, x[:1], empty=True)
    assert shrunk.params["up"].shape == (8, 0)
    np.testing.assert_allclose(shrunk.apply(shrunk.params, x), apply(found.params, x), rtol=1e-5)


@pytest.mark.parametrize("limit", [60.0, 90.0] if THOROUGH else [60.0])
def test_the_search_is_within_a_hundredth_of_the_best_of_all_policies(limit: float):
    toy = Toy()
    best = toy.best(toy.setting(limit))
    for seed in range(3 if THOROUGH else 2):
        told: list[int] = []
        found = jpq_jax.find_policy(
            toy.apply,
            toy.params,
            toy.x[:1],
            toy.right,
            limit=limit,
            evaluations=300,
            seed=seed,
            progress=told.append,
        )
        assert told == sorted(set(told))
        assert told[-1] == len(found.rewards)
        assert found.sensed == 3  # two layers, and none
        assert found.accuracy == float(found.rewards[3:].max())
        assert 0.99 * best <= found.accuracy <= best + 1e-5
        assert float(found.costs.bits) <= limit
        assert len(found.rewards) <= 300


def test_every_method_keeps_to_the_budget_and_a_seed_gives_one_result():
    toy = Toy()
    setting, key = toy.setting(80.0), jax.random.key(1)
    sensitivity, measured = sensitivity_of(setting, toy.tables, toy.accuracies)
    assert measured.shape == (3,)
    for policy in (
        uniform_policy(setting),
        magnitude_policy(setting, toy.tables),
        lagrangian_policy(setting, toy.tables, sensitivity),
    ):
        assert 0.5 * setting.limit < float(cost_of(setting, policy)) <= setting.limit
    for search in (random_search, evolution, agent_search):
        found = search(setting, toy.accuracies, key, 45)
        best = found.best()
        assert float(cost_of(setting, best.policy)) <= setting.limit
        assert found.rewards.shape == (45,)
        assert best.accuracy == float(found.rewards.max())
        assert float(toy.accuracies(best.policy[None])[0]) == best.accuracy
        again = search(setting, toy.accuracies, key, 45)
        np.testing.assert_array_equal(found.rewards, again.rewards)


def test_the_agent_learns():
    toy = Toy()
    found = agent_search(toy.setting(80.0), toy.accuracies, jax.random.key(0), 200)
    assert float(found.rewards[-40:].mean()) > float(found.rewards[:40].mean()) + 0.05


def test_a_policy_is_trained_under_and_shrunk(tmp_path: Any):
    net, _ = residual()
    x = image()
    outputs = net.apply(net.params, x)

    def right(params: Any) -> jax.Array:
        return -jnp.mean((net.apply(params, x) - outputs) ** 2)

    found = jpq_jax.find_policy(
        net.apply, net.params, x[:1], right, limit=9000.0, cost="macs", method="magnitude"
    )
    assert float(found.costs.macs) <= 9000
    planner = jpq_jax.channelwise(found.bits)
    once = jpq_jax.project_params(planner, where=lambda path, _: path in found.bits)
    zeros = jax.tree.map(jnp.zeros_like, found.params)
    _, state = once.update(zeros, once.init(found.params), found.params)
    small = jpq_jax.shrink(net.apply, jpq_jax.finalize(found.params, state), x)
    network_after = network_of(small.apply, jpq_jax.dequantize(small.params), x[:1])
    whole = jnp.full(len(network_after.slot_of), 1, jnp.int32)
    assert float(costs(network_after, whole).macs) == pytest.approx(float(found.costs.macs))
    assert jpq_jax.artifact.save(tmp_path / "small.jpq", small.params) > 0


def test_bad_methods():
    toy = Toy()
    with pytest.raises(ValueError, match="got method='luck'"):
        jpq_jax.find_policy(toy.apply, toy.params, toy.x[:1], toy.right, limit=80, method="luck")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="got cost='time', expected one of bits, macs"):
        jpq_jax.find_policy(toy.apply, toy.params, toy.x[:1], toy.right, limit=80, cost="time")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="got multiple=0"):
        jpq_jax.find_policy(toy.apply, toy.params, toy.x[:1], toy.right, limit=80, multiple=0)
    with pytest.raises(ValueError, match="leaf 'b': expected the kernel"):
        network_of(lambda params, x: x + params["b"], {"b": jnp.ones((1, 3))}, jnp.ones((1, 3)))
    turned = {"w": jnp.ones((4, 3))}  # outputs first
    with pytest.raises(ValueError, match="leaf 'w': .* its outputs last"):
        network_of(lambda params, x: x @ params["w"].T, turned, jnp.ones((1, 3)))
    with pytest.raises(ValueError, match="no kernel of a layer"):
        network_of(lambda params, x: x + params["b"], {"b": jnp.ones(3)}, jnp.ones((1, 3)))
    with pytest.raises(ValueError, match="evaluations=3, expected at least"):
        jpq_jax.find_policy(toy.apply, toy.params, toy.x[:1], toy.right, limit=80, evaluations=3)
    for wrong in (
        toy.params | {"c": 1.0},
        {"a": jpq_jax.Codes(jnp.zeros((2, 2), jnp.int16), jnp.zeros(257), jnp.int32(1), "float32")},
    ):
        with pytest.raises(ValueError, match="leaf '[ac]': got (float|Codes), expected an array"):
            jpq_jax.find_policy(toy.apply, wrong, toy.x[:1], toy.right, limit=80)
    wrong = jax.tree.map(lambda leaf: leaf.at[0].set(jnp.nan), toy.params)
    with pytest.raises(ValueError, match="leaf 'a/bias': got 1 NaN"):
        jpq_jax.find_policy(toy.apply, wrong, toy.x[:1], toy.right, limit=80)
    for limit in (jnp.nan, 1.0):
        with pytest.raises(ValueError, match="expected at least"):
            jpq_jax.find_policy(toy.apply, toy.params, toy.x[:1], toy.right, limit=float(limit))
    for method in ("random", "agent", "evolution"):
        with pytest.raises(ValueError, match="NaN for the accuracy of all"):
            jpq_jax.find_policy(
                toy.apply,
                toy.params,
                toy.x[:1],
                lambda _: jnp.nan,
                limit=80,
                evaluations=12,
                method=method,
            )
    assert set(by_path(toy.network, jnp.zeros(6, jnp.int32))) == {"a/kernel", "b/kernel"}


def test_weights_that_are_on_a_grid_already_exceed_no_budget():
    """Whose error at a few bits is 0, by which no price of a bit would be too high."""
    rng = np.random.default_rng(0)
    params = {
        "a": {
            "kernel": jnp.asarray(np.sign(rng.normal(size=(6, 8))), jnp.float32),
            "bias": jnp.zeros(8),
        },
        "b": {"kernel": jnp.asarray(rng.normal(size=(8, 4)), jnp.float32)},
    }
    x = jnp.asarray(rng.normal(size=(32, 6)), jnp.float32)
    outputs = Toy.apply(params, x)

    def right(params: Any) -> jax.Array:
        return 1 - jnp.mean((Toy.apply(params, x) - outputs) ** 2)

    for method in METHODS if THOROUGH else ("magnitude", "evolution"):
        found = jpq_jax.find_policy(
            Toy.apply, params, x[:1], right, limit=70.0, method=method, evaluations=30
        )
        assert float(found.costs.bits) <= 70
