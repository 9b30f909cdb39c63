"""Policies under a budget in bytes: the file, written, never has more."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import THOROUGH
from networks import Net, image
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

    with pytest.raises(InfeasibleError, match=r"got a limit of 5 bytes, expected at least"):
        found_by(net, 5, "uniform")
    alone = found_by(net, 2_500, "uniform")
    both = found_by(net, 2_500, "uniform", file=file)
    assert jpq_jax.artifact.file_bytes(file(both.codes)) <= 2_500
    assert float(both.costs.bits) < float(alone.costs.bits)
    unlimited = found_by(net, float("inf"), "uniform")
    assert all((np.asarray(bits) == 8).all() for bits in unlimited.bits.values())


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
    with pytest.raises(InfeasibleError, match="none of the 5 policies"):
        trials.best(lambda policy: int(policy[0]) == 2)
