"""Data parallel training as `shard_map` and `pmap` do it: every device does what one alone would."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiled import THOROUGH
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jpq_jax

BUDGET = jpq_jax.Budget(ratio=8)
SGD = optax.sgd(0.125)


def with_sgd(*last: Any) -> optax.GradientTransformationExtraArgs:
    return optax.chain(SGD, *last)


OPTIMIZERS = {
    "latent, in bits": lambda: jpq_jax.latent(SGD, jpq_jax.joint(BUDGET), every=2),
    "latent, in bytes": lambda: jpq_jax.latent(
        SGD, jpq_jax.joint(jpq_jax.Budget(nbytes=150)), every=2
    ),
    "latent, channels": lambda: jpq_jax.latent(
        SGD, jpq_jax.channelwise({"kernel": [0, 1, 2, 3] * 2}), every=2
    ),
    "project_params, pruning": lambda: with_sgd(jpq_jax.project_params(jpq_jax.pruning(0.25))),
    "project_params, clustering": lambda: with_sgd(jpq_jax.project_params(jpq_jax.clustering(2))),
    "admm": lambda: with_sgd(jpq_jax.admm(BUDGET, rho=0.5, every=2, learning_rate=0.125)),
    "admm_to, clustering": lambda: optax.chain(
        jpq_jax.admm_to(jpq_jax.clustering(2, zero=False), rho=0.5, every=2), SGD
    ),
    "freeze_shares": lambda: with_sgd(jpq_jax.freeze_shares(jpq_jax.clustering(2), 0.5, every=2)),
    "mask_updates": lambda: with_sgd(jpq_jax.mask_updates()),
    "cluster_updates": lambda: with_sgd(jpq_jax.cluster_updates()),
}
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
DEVICES = 8


def make_params() -> dict[str, Any]:
    """Numbers of few digits, so that sums are exact in any order."""
    rng = np.random.default_rng(0)
    return {
        "kernel": jnp.asarray(rng.integers(-99, 100, size=(16, 8)) / 64, jnp.float32),
        "bias": jnp.asarray(rng.integers(-9, 10, size=8) / 8, jnp.float32),
    }


def batches() -> dict[str, Any]:
    """What each device's part of the data pulls to."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda p: jnp.asarray(rng.integers(-64, 65, size=(DEVICES, *p.shape)) / 64, jnp.float32),
        make_params(),
    )


def stepped(optimizer: Any, params: Any, state: Any, gradients: Any) -> tuple[Any, Any]:
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state


@functools.cache
def alone(name: str) -> tuple[Any, Any]:
    optimizer, params = OPTIMIZERS[name](), make_params()
    gradients = jax.tree.map(lambda b: jnp.mean(b, axis=0), batches())
    state, step = optimizer.init(params), jax.jit(functools.partial(stepped, optimizer))
    for _ in range(3):
        params, state = step(params, state, gradients)
    return params, state


def assert_as_alone(name: str, params: Any, state: Any) -> None:
    # From the host, so that one program codes them all.
    params, state, expected, expected_state = jax.device_get((params, state, *alone(name)))
    for got, wanted in zip(
        jax.tree.leaves((params, state)), jax.tree.leaves((expected, expected_state)), strict=True
    ):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    if name != "mask_updates":
        codes = jpq_jax.dequantize(jpq_jax.finalize(params, state))
        wanted = jpq_jax.dequantize(jpq_jax.finalize(expected, expected_state))
        np.testing.assert_allclose(codes["kernel"], wanted["kernel"], rtol=1e-5, atol=1e-6)


def in_shard_map(name: str, kind: AxisType, manual: tuple[str, ...], checked: bool) -> Any:
    """checked: whether JAX keeps track of what differs between devices."""
    optimizer = OPTIMIZERS[name]()
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)

    def mapped(function: Any, *specs: Any) -> Any:
        return jax.jit(
            jax.shard_map(
                function,
                in_specs=specs,
                out_specs=P(),
                axis_names=set(manual),
                check_vma=checked,
            )
        )

    def step(params: Any, state: Any, data: Any) -> tuple[Any, Any]:
        gradients = jax.tree.map(lambda b: jax.lax.pmean(jnp.mean(b, axis=0), manual), data)
        return stepped(optimizer, params, state, gradients)

    with jax.set_mesh(mesh):
        params = jax.device_put(make_params(), NamedSharding(mesh, P()))
        data = jax.device_put(batches(), NamedSharding(mesh, P(manual)))
        state, update = mapped(optimizer.init, P())(params), mapped(step, P(), P(), P(manual))
        for _ in range(3):
            params, state = update(params, state, data)
    return params, state


@every_optimizer
def test_replicated_in_shard_map(name: str) -> None:
    assert_as_alone(name, *in_shard_map(name, AxisType.Auto, ("x", "y"), checked=True))


KINDS = [
    (kind, manual, checked)
    for kind in (AxisType.Auto, AxisType.Explicit)
    for manual in (("x", "y"), ("x",))
    for checked in (True, False)
]


@pytest.mark.parametrize(("kind", "manual", "checked"), KINDS)
@pytest.mark.parametrize("name", OPTIMIZERS if THOROUGH else ["project_params, clustering"])
def test_every_kind_of_mesh(
    name: str, kind: AxisType, manual: tuple[str, ...], checked: bool
) -> None:
    """Of which all axes are manual, or some only; the others are explicit, or left to the compiler."""
    assert_as_alone(name, *in_shard_map(name, kind, manual, checked))


@every_optimizer
def test_replicated_in_pmap(name: str) -> None:
    optimizer = OPTIMIZERS[name]()

    def step(params: Any, state: Any, data: Any) -> tuple[Any, Any]:
        return stepped(optimizer, params, state, jax.lax.pmean(data, "devices"))

    params = jax.tree.map(lambda p: jnp.stack([p] * DEVICES), make_params())
    state, update = jax.pmap(optimizer.init)(params), jax.pmap(step, axis_name="devices")
    for _ in range(3):
        params, state = update(params, state, batches())
    for device in (0, 5):
        assert_as_alone(name, *jax.tree.map(lambda x, i=device: x[i], (params, state)))


DECIDING = [name for name in OPTIMIZERS if name != "mask_updates"]


@pytest.mark.parametrize("name", DECIDING)
@pytest.mark.parametrize("what", ["params", "gradients"])
def test_what_differs_between_devices_is_an_error(name: str, what: str) -> None:
    """Each would decide by itself: parts of a sharded leaf, or gradients that nobody averaged."""
    optimizer = OPTIMIZERS[name]()
    mesh = jax.make_mesh((DEVICES,), ("x",), axis_types=(AxisType.Auto,))

    def update(params: Any, gradients: Any) -> Any:
        return optimizer.update(gradients, optimizer.init(params), params)[0]

    whole = make_params()
    sharded = what == "params"
    gradients = whole if sharded else jax.tree.map(lambda p: jnp.stack([p] * DEVICES), whole)

    def of_device(params: Any, gradients: Any) -> Any:
        mine = gradients if sharded else jax.tree.map(lambda g: g[0], gradients)
        return update(params, mine)

    mapped = jax.shard_map(
        of_device,
        mesh=mesh,
        in_specs=(P("x") if sharded else P(), P("x")),
        out_specs=P("x"),
    )
    with pytest.raises(
        ValueError, match=r"leaf '(kernel|bias)'.*vary over the manual axes \['x'\].*pmean"
    ):
        jax.eval_shape(mapped, whole, gradients)


def test_a_mask_is_the_same_for_each_part() -> None:
    """What decides nothing works on parts of a leaf, too."""
    mesh = jax.make_mesh((DEVICES,), ("x",), axis_types=(AxisType.Auto,))
    optimizer, params = jpq_jax.mask_updates(), make_params()

    def update(params: Any) -> Any:
        return optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)[0]  # fmt: skip

    updates = jax.shard_map(update, mesh=mesh, in_specs=P("x"), out_specs=P("x"))(params)
    np.testing.assert_array_equal(updates["kernel"] != 0, params["kernel"] != 0)
