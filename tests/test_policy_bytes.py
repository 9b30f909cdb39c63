"""Policies under a budget in bytes: the file, written, never has more."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import THOROUGH
from flax import nnx
from networks import Depthwise, Net, image, nnx_net
from test_policy import Toy, residual

import jpq_jax
from jpq_jax.policy.evaluation import tables_of
from jpq_jax.policy.file_size import codes_of, lengths_of
from jpq_jax.policy.find import METHODS
from jpq_jax.policy.search import Trials
from jpq_jax.vocabulary import InfeasibleError


@pytest.fixture(autouse=True)
def as_users_have_it():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def right_of(net: Net) -> Any:
    x = image()
    outputs = net.apply(net.params, x)

    def right(params: Any) -> jax.Array:
        return 1 - jnp.mean((net.apply(params, x) - outputs) ** 2) / jnp.mean(outputs**2)

    return right


def found_by(net: Net, limit: float, method: Any = "evolution", **besides: Any) -> jpq_jax.Policy:
    return jpq_jax.find_policy(
        net.apply,
        net.params,
        *(x[:1] for x in net.inputs),
        right_of(net),
        limit=limit,
        cost="bytes",
        evaluations=25,
        method=method,
        **besides,
    )


def test_every_method_keeps_to_the_bytes_of_the_file():
    net, network = residual()
    whole = codes_of(
        network,
        net.params,
        tables_of(network, net.params),
        jnp.full(len(network.slot_of), 8, jnp.int32),
    )
    limit = 0.6 * jpq_jax.artifact.file_bytes(whole)
    reached = {}
    for method in METHODS if THOROUGH else ("evolution", "random"):
        found = found_by(net, limit, method)
        assert len(jpq_jax.artifact.encode(found.codes)) <= limit, method
        dense = jpq_jax.dequantize(found.codes)
        assert float(right_of(net)(dense)) == pytest.approx(found.accuracy, abs=1e-6), method
        reached[method] = found
    best = reached["evolution"]
    assert len(jpq_jax.artifact.encode(best.codes)) > 0.9 * limit
    assert best.accuracy == max(found.accuracy for found in reached.values())


def test_the_rest_of_the_file_counts_and_a_limit_that_cannot_be_is_told():
    net, _ = residual()
    rest = np.random.default_rng(0).normal(size=300).astype(np.float32)

    def file(codes: Any) -> Any:
        return {"params": codes, "rest": rest}

    with pytest.raises(ValueError, match="got file= with cost='bits'"):
        jpq_jax.find_policy(net.apply, net.params, *net.inputs, right_of(net), limit=1e9, file=file)
    with pytest.raises(InfeasibleError, match=r"got a limit of 5 bytes, expected at least"):
        found_by(net, 5, "uniform")
    alone = found_by(net, 2_500, "uniform")
    both = found_by(net, 2_500, "uniform", file=file)
    assert jpq_jax.artifact.file_bytes(file(both.codes)) <= 2_500
    assert float(both.costs.bits) < float(alone.costs.bits)
    unlimited = found_by(net, float("inf"), "uniform")
    assert all((np.asarray(bits) == 8).all() for bits in unlimited.bits.values())


def test_a_rule_of_few_levels_takes_the_next_one_that_fits():
    net, network = residual()
    tables = tables_of(network, net.params)

    def size_at(bits: int) -> int:
        policy = jnp.full(len(network.slot_of), bits, jnp.int32)
        return jpq_jax.artifact.file_bytes(codes_of(network, net.params, tables, policy))

    for bits in (3, 7):
        for limit, expected in ((size_at(bits), bits), (size_at(bits) - 1, bits - 1)):
            found = found_by(net, limit, "uniform")
            assert all((np.asarray(each) == expected).all() for each in found.bits.values())


def test_odd_networks_keep_to_the_least_there_can_be():
    """Depthwise layers in bfloat16, channels by the four, layers without any: at the very bytes of the least policy, and a few more."""
    net = nnx_net(Depthwise(nnx.Rngs(0)), image()[:1])
    params = jax.tree.map(lambda w: w.astype(jnp.bfloat16) if w.ndim > 1 else w, net.params)
    net = net._replace(params=params)
    options = {"empty": True, "multiple": 4}
    with pytest.raises(InfeasibleError) as raised:
        found_by(net, 9, "magnitude", **options)
    least = int(re.findall(r"at least ([\d,]+):", str(raised.value))[0].replace(",", ""))
    for limit in (least, least + 300):
        found = found_by(net, limit, "random", **options)
        data = jpq_jax.artifact.encode(found.codes)
        assert len(data) <= limit
        loaded = jpq_jax.artifact.decode(data, like=found.params).codes
        jax.tree.map(np.testing.assert_array_equal, loaded, found.codes)
        kinds = {
            leaf.dtype for leaf in jax.tree.leaves(jpq_jax.dequantize(loaded)) if leaf.ndim > 1
        }
        assert kinds == {jnp.dtype(jnp.bfloat16)}


def test_under_strict_rank_promotion():
    toy = Toy()
    apply = lambda params, x: jnp.tanh(x @ params["a"]["kernel"]) @ params["b"]["kernel"]  # noqa: E731
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        found = jpq_jax.find_policy(
            apply,
            toy.params,
            toy.x[:1],
            lambda params: -jnp.mean((apply(params, toy.x) - apply(toy.params, toy.x)) ** 2),
            limit=150,
            cost="bytes",
            evaluations=10,
        )
    assert jpq_jax.artifact.file_bytes(found.codes) <= 150


def test_lengths_are_those_of_geometric_numbers():
    """By float64 NumPy: -log2 of the numbers' frequencies, were they geometric with their mean, and a bit for each sign."""
    toy = Toy()
    lengths = np.asarray(lengths_of(toy.network, toy.params, toy.tables))
    assert (lengths[0] == 0).all()
    w = np.float64(toy.params["a"]["kernel"])
    for bits in (1, 3, 8):
        step = np.float64(toy.tables[0].steps[bits])
        q = np.clip(np.round(w / step), -(2 ** (bits - 1)), 2 ** (bits - 1))
        mean = np.abs(q).mean(axis=0)
        chance = mean / (1 + mean)
        information = -np.log2(1 - chance) - np.abs(q) * np.log2(chance) + (q != 0)
        np.testing.assert_allclose(lengths[bits][:4], information.mean(axis=0), rtol=1e-5)


def test_the_best_is_the_first_of_those_that_fit():
    trials = Trials(jnp.arange(5)[:, None], jnp.array([0.1, 0.9, jnp.nan, 0.5, 0.9]))
    assert int(trials.best().policy[0]) == 1
    assert int(trials.best(lambda policy: int(policy[0]) > 1).policy[0]) == 4
    best = trials.best(lambda policy: int(policy[0]) not in (1, 4))
    assert (int(best.policy[0]), best.accuracy) == (3, 0.5)
    with pytest.raises(InfeasibleError, match="of 5 policies, none"):
        trials.best(lambda policy: int(policy[0]) == 2)
    endless = Trials(jnp.arange(3)[:, None], jnp.array([jnp.nan, jnp.inf, -jnp.inf]))
    assert endless.first(3, lambda _: True) == [1, 2]
    assert endless.best(lambda policy: int(policy[0]) != 1).accuracy == -jnp.inf
