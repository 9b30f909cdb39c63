"""Policies of bits by channels: what they cost against the shrunk model, and that no decision exceeds the budget."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import THOROUGH
from flax import nnx
from networks import DenseNet, Depthwise, Net, Plain, Residual, image, nnx_net

import jpq_jax
from experiments import config as configuration
from experiments import model
from jpq_jax.policy.allocation import (
    lagrangian_policy,
    magnitude_policy,
    uniform_policy,
)
from jpq_jax.policy.decisions import ACTIONS, Setting, cost_of, decided, setting_of
from jpq_jax.policy.evaluation import accuracies, tables_of, under_policy
from jpq_jax.policy.importance import importance_of
from jpq_jax.policy.network import Network, alive, by_path, costs, network_of, without_dead
from jpq_jax.policy.search import evolution

COSTS = ("bits", "macs", "bit_operations")
KINDS = [Plain, Residual, Depthwise, DenseNet] if THOROUGH else [Residual, Depthwise]


@pytest.fixture(autouse=True)
def as_users_have_it():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.parametrize(
    ("name", "side", "channels", "weights", "macs"),
    [
        ("lenet5", 28, 1, 430_500, 2_293_000),
        ("resnet20", 32, 3, 268_336, 40_551_040),
        ("mobilenet", 224, 3, 4_209_088, 568_740_352),
    ],
)
def test_weights_and_multiplications_are_the_published(
    name: Any, side: int, channels: int, weights: int, macs: int
):
    net = model.build(name, seed=0)
    example = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
    network = network_of(net.logits, net.variables, example)
    found = costs(network, jnp.full(len(network.slot_of), 8, jnp.int32))
    assert int(found.bits) == 8 * weights
    assert float(found.macs) == pytest.approx(macs, rel=1e-6)
    assert float(found.bit_operations) == pytest.approx(8 * 32 * macs, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_costs_are_those_of_the_shrunk_model(kind: type):
    net = nnx_net(kind(nnx.Rngs(0)), image()[:1])
    network = network_of(net.apply, net.params, *net.inputs)
    rng = np.random.default_rng(0)
    setting = setting_of(network, importance_of(network, net.params), "bits", 1e9)
    actions = rng.random((len(network.layers), ACTIONS))
    policy = decided(setting, jnp.asarray(actions, jnp.float32)).policy
    params = without_dead(network, net.params, alive(network, policy))
    shrunk = jpq_jax.shrink(net.apply, params, *net.inputs)
    small = network_of(shrunk.apply, shrunk.params, *net.inputs)
    assert small.slots < network.slots
    after = costs(small, jnp.full(len(small.slot_of), 1, jnp.int32))
    assert float(costs(network, policy).macs) == pytest.approx(float(after.macs), rel=1e-6)
    expected = net.apply(params, *net.inputs)
    got = shrunk.apply(shrunk.params, *net.inputs)
    np.testing.assert_allclose(got, expected, atol=1e-4 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("multiple", [1, 4])
def test_no_empty_policy_costs_more_than_it_says(kind: type, multiple: int):
    net = nnx_net(kind(nnx.Rngs(0)), image()[:1])
    network = network_of(net.apply, net.params, *net.inputs)
    importance = importance_of(network, net.params)
    setting = setting_of(network, importance, "macs", 1e9, multiple=multiple, empty=True)
    for seed in range(3):
        keep = np.random.default_rng(seed).choice([0.0, 0.5], len(network.layers))
        actions = jnp.asarray(np.stack([keep] * ACTIONS, axis=1), jnp.float32)
        policy = decided(setting, actions).policy
        params = without_dead(network, net.params, alive(network, policy))
        shrunk = jpq_jax.shrink(net.apply, params, *net.inputs, empty=True)
        claimed, left = float(costs(network, policy).macs), 0.0
        kernels = [leaf for leaf in jax.tree.leaves(shrunk.params) if leaf.ndim > 1]
        if any(leaf.size for leaf in kernels):
            small = network_of(shrunk.apply, shrunk.params, *net.inputs)
            whole = jnp.full(len(small.slot_of), 1, jnp.int32)
            left = float(costs(small, whole).macs)
        assert left <= claimed * (1 + 1e-6)
        expected = net.apply(params, *net.inputs)
        got = shrunk.apply(shrunk.params, *net.inputs)
        np.testing.assert_allclose(got, expected, atol=1e-4)


def residual() -> tuple[Net, Network]:
    net = nnx_net(Residual(nnx.Rngs(0)), image()[:1])
    return net, network_of(net.apply, net.params, *net.inputs)


def test_layers_that_are_added_share_slots():
    _, network = residual()
    slots = {layer.path: set(layer.slots.tolist()) for layer in network.layers}
    assert slots["first/kernel"] == slots["conv2/kernel"]
    assert not slots["first/kernel"] & slots["conv1/kernel"]
    assert slots["conv3/kernel"] == slots["short/kernel"] != slots["first/kernel"]
    assert network.slots == 8 + 8 + 12


@pytest.mark.parametrize("cost", COSTS)
def test_no_action_exceeds_the_budget(cost: Any):
    net, network = residual()
    importance = importance_of(network, net.params)
    whole = costs(network, jnp.full(len(network.slot_of), 8, jnp.int32))
    setting = setting_of(network, importance, cost, 0.2 * float(getattr(whole, cost)))
    actions = jax.random.uniform(jax.random.key(0), (500, len(network.layers), ACTIONS))
    found = jax.jit(jax.vmap(lambda one: decided(setting, one)))(actions)
    spent = jax.vmap(lambda one: cost_of(setting, one))(found.policy)
    assert (spent <= setting.limit).all()
    assert float(spent.max()) > 0.9 * setting.limit
    assert (found.policy >= 0).all()
    assert (found.policy <= 8).all()
    with pytest.raises(ValueError, match="expected at least"):
        setting_of(network, importance, cost, 1.0)


@pytest.mark.parametrize("criterion", ["magnitude", "taylor", "norm"])
def test_importance_is_of_all_that_shares_a_slot(criterion: Any):
    """By float64 NumPy: two layers that are added, and the norm of the sum."""
    draw = np.random.default_rng(0)
    shapes = {"left": (4, 6), "right": (5, 6), "scale": (6,), "last": (6, 3)}
    params = {k: draw.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    gradients = {k: draw.normal(size=s).astype(np.float32) for k, s in shapes.items()}

    def apply(params: Any, x: jax.Array) -> jax.Array:
        h = x[:, :4] @ params["left"] + x[:, 4:] @ params["right"]
        return jax.nn.relu(h * params["scale"][None]) @ params["last"]

    network = network_of(apply, params, jnp.ones((1, 9)))
    w, g = ({k: np.float64(v) for k, v in tree.items()} for tree in (params, gradients))
    both = np.concatenate([w["left"], w["right"]])
    by_first_order = np.concatenate([w["left"] * g["left"], w["right"] * g["right"]])
    of_slots, of_last = {
        "magnitude": (np.sqrt((both**2).mean(axis=0)), np.sqrt((w["last"] ** 2).mean(axis=0))),
        "taylor": (np.abs(by_first_order.sum(axis=0)), np.abs((w["last"] * g["last"]).sum(axis=0))),
        "norm": (np.abs(w["scale"]), np.full(3, np.abs(w["scale"]).max())),
    }[criterion]
    found = by_path(network, importance_of(network, params, criterion, gradients))
    for path, expected in (("left", of_slots), ("right", of_slots), ("last", of_last)):
        np.testing.assert_allclose(found[path], expected, rtol=1e-5, err_msg=path)


@pytest.mark.parametrize("criterion", ["magnitude", "taylor", "norm"])
def test_the_least_important_slots_go_first(criterion: Any):
    net, network = residual()
    gradients = jax.tree.map(lambda w: jnp.cos(37 * w), net.params)
    importance = np.asarray(importance_of(network, net.params, criterion, gradients))
    assert importance.shape == (len(network.slot_of),)
    setting = setting_of(network, jnp.asarray(importance), "bits", 1e9)
    half = jnp.tile(jnp.array([0.5, 1.0, 0.0]), (len(network.layers), 1))
    policy = decided(setting, half).policy
    living = np.asarray(alive(network, policy))
    assert living[:-1].sum() == (8 + 8 + 12) // 2
    for i in range(len(network.layers)):
        mine = network.layer_of == i
        kept, bits = living[network.slot_of[mine]], np.asarray(policy)[mine]
        if not kept.all():
            assert importance[mine][kept].min() >= importance[mine][~kept].max()
        order = np.argsort(-importance[mine][kept], kind="stable")
        assert bits[kept][order][0] == 8  # the most important of those that stay
        assert bits[kept][order][-1] == 1
        assert (np.diff(bits[kept][order]) <= 0).all()


def test_slots_stay_in_multiples_by_every_method():
    net, network = residual()
    whole = float(costs(network, jnp.full(len(network.slot_of), 8, jnp.int32)).bits)
    importance = importance_of(network, net.params)
    setting = setting_of(network, importance, "bits", 0.1 * whole, multiple=3)
    tables = tables_of(network, net.params)
    actions = jax.random.uniform(jax.random.key(0), (50, len(network.layers), ACTIONS))
    by_actions = jax.jit(jax.vmap(lambda one: decided(setting, one).policy))(actions)
    tried: list[jax.Array] = [by_actions]

    def measure(policies: jax.Array) -> jax.Array:
        tried.append(policies)
        return jnp.sum(jnp.sin(policies.astype(jnp.float32)), axis=1)

    evolution(setting, measure, jax.random.key(1), 60)
    sensitivity = jnp.ones(len(network.layers))
    rules = (
        uniform_policy(setting),
        magnitude_policy(setting, tables),
        lagrangian_policy(setting, tables, sensitivity),
    )
    policies = jnp.concatenate([*tried, jnp.stack(rules)])
    assert (jax.vmap(lambda one: cost_of(setting, one))(policies) <= setting.limit).all()
    living = np.asarray(jax.vmap(lambda one: alive(network, one))(policies))
    numbers = set()
    assert setting.sizes.tolist() == [8, 8, 12]
    for group in range(3):
        mine = np.asarray(setting.group_of_slot) == group
        each = living[:, mine].sum(1)
        assert ((each % 3 == 0) | (each == mine.sum())).all()
        numbers |= set(each.tolist())
    assert {3, 6} <= numbers


def test_slots_that_are_shared_in_part_are_decided_for_by_themselves():
    """A padded shortcut writes to the middle of what its block writes to, as in ResNet-20."""
    draw = np.random.default_rng(0)
    b = draw.normal(size=(8, 16)) * np.where(np.abs(np.arange(16) - 7.5) > 4, 10, 1)
    params = {"a": draw.normal(size=(5, 8)), "b": b, "c": draw.normal(size=(16, 3))}
    params = {k: jnp.asarray(w, jnp.float32) for k, w in params.items()}

    def apply(params: Any, x: jax.Array) -> jax.Array:
        h = x @ params["a"]
        return (jnp.pad(h, ((0, 0), (4, 4))) + jax.nn.relu(h) @ params["b"]) @ params["c"]

    network = network_of(apply, params, jnp.ones((1, 5)))
    importance = importance_of(network, params)
    setting = setting_of(network, importance, "bits", 1e6, multiple=4)
    assert setting.sizes.tolist() == [8, 8]
    assert setting.decider.tolist() == [0, 1]
    least = decided(setting, jnp.zeros((3, ACTIONS))).policy
    living = alive(network, least)
    for layer, some in zip(network.layers, (4, 8), strict=False):
        assert int(living[layer.slots].sum()) == some


def test_slots_that_a_leaf_without_a_policy_writes_to_are_shared():
    net, _ = residual()
    own = network_of(
        net.apply,
        net.params,
        *net.inputs,
        where=lambda path, _: path != "first/kernel" and path.endswith("kernel"),
    )
    setting = setting_of(own, importance_of(own, net.params), "macs", 1e9, shared=False)
    policy = decided(setting, jnp.zeros((len(own.layers), ACTIONS))).policy
    before = dict(jpq_jax.leaves_with_paths(net.params))
    left = dict(jpq_jax.leaves_with_paths(without_dead(own, net.params, alive(own, policy))))
    for path in ("first/kernel", "norm0/scale"):
        np.testing.assert_array_equal(left[path], before[path])
    assert (np.asarray(left["conv1/kernel"]) == 0).any()


def test_shared_slots_stay_if_told_so():
    net, network = residual()
    importance = importance_of(network, net.params)
    setting = setting_of(network, importance, "macs", 1e9, shared=False)
    policy = decided(setting, jnp.zeros((len(network.layers), ACTIONS))).policy
    bits = by_path(network, policy)
    assert {path for path in bits if (np.asarray(bits[path]) == 0).any()} == {"conv1/kernel"}
    assert set(np.unique(policy)) == {0, 8}  # bits cost nothing


def test_bad_criteria():
    net, network = residual()
    with pytest.raises(ValueError, match="got 'size'"):
        importance_of(network, net.params, "size")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="needs the gradients"):
        importance_of(network, net.params, "taylor")
    wrong = jax.tree.map(lambda w: w * jnp.nan, net.params)
    with pytest.raises(ValueError, match="leaf 'first/kernel': got .* NaN"):
        importance_of(network, net.params, "taylor", wrong)
    wrong = jax.tree.map(lambda w: w[..., None], net.params)
    with pytest.raises(ValueError, match="leaf 'first/kernel': got a gradient of shape"):
        importance_of(network, net.params, "taylor", wrong)
    toy = Toy()
    with pytest.raises(ValueError, match="no leaf called scale"):
        importance_of(toy.network, toy.params, "norm")


class Toy:
    """Two layers, small enough to try every policy; "accuracy" is what is left of the outputs' energy."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        first = rng.normal(size=(6, 4)) * np.array([1, 0.5, 0.3, 0.1])
        self.params = {
            "a": {"kernel": jnp.asarray(first, jnp.float32), "bias": jnp.zeros(4)},
            "b": {"kernel": jnp.asarray(rng.normal(size=(4, 2)), jnp.float32)},
        }
        self.x = jnp.asarray(rng.normal(size=(64, 6)), jnp.float32)
        self.y = self.apply(self.params, self.x)
        self.network = network_of(self.apply, self.params, self.x[:1])
        self.tables = tables_of(self.network, self.params)
        self.accuracies = accuracies(self.network, self.params, self.tables, self.right)

    @staticmethod
    def apply(params: Any, x: jax.Array) -> jax.Array:
        hidden = jnp.tanh(x @ params["a"]["kernel"] + params["a"]["bias"])
        return hidden @ params["b"]["kernel"]

    def right(self, params: Any) -> jax.Array:
        return 1 - jnp.mean((self.apply(params, self.x) - self.y) ** 2) / jnp.mean(self.y**2)

    def setting(self, limit: float) -> Setting:
        return setting_of(self.network, importance_of(self.network, self.params), "bits", limit)

    def best(self, setting: Setting) -> float:
        """Over all 9^6 policies."""
        policies = jnp.asarray(list(itertools.product(range(9), repeat=6)), jnp.int32)
        spent = jax.jit(jax.vmap(lambda one: cost_of(setting, one)))(policies)
        policies = policies[np.asarray(spent <= setting.limit)]
        under = jax.vmap(
            lambda one: self.right(under_policy(self.network, self.params, self.tables, one))
        )
        return float(jax.jit(under)(policies).max())


def test_dead_slots_take_their_biases_and_norms_with_them():
    net, network = residual()
    living = jnp.ones(network.slots + 1, bool).at[jnp.array([0, 9])].set(False)
    params = dict(jpq_jax.leaves_with_paths(without_dead(network, net.params, living)))
    before = dict(jpq_jax.leaves_with_paths(net.params))
    gone = {path for path in before if not np.array_equal(params[path], before[path])}
    assert {"norm0/scale", "first/kernel", "conv2/kernel"} <= gone
    assert sum(np.asarray(params["norm0/scale"]) == 0) == 1


@pytest.mark.parametrize(
    "name", ["resnet20_cifar10_ajpq", "lenet5_mnist_ajpq", "mobilenetv1_imagenet"]
)
def test_what_the_configs_ask_for_can_be_had(name: str):
    presets = list(configuration.presets(name).values())
    assert len({(settings.model, settings.dataset) for settings in presets}) == 1
    net = model.build(presets[0].model, seed=0)
    side = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3), "imagenet": (224, 224, 3)}
    example = jax.ShapeDtypeStruct((1, *side[presets[0].dataset]), jnp.float32)
    network = network_of(net.logits, net.variables, example)
    importance = importance_of(network, net.variables)
    whole = costs(network, jnp.full(len(network.slot_of), 8, jnp.int32))
    for multiple, empty, macs in {(one.multiple, one.empty, one.macs or 1) for one in presets}:
        limit = macs * float(whole.macs)
        options = {"shared": False, "multiple": multiple, "empty": empty}
        setting_of(network, importance, "macs", limit, **options)
