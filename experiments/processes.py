"""Runs of several processes, as on a pod: each has the params whole and its share of the images, and the first one writes."""

from __future__ import annotations

from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def join() -> None:
    """Finds the other processes, as `jax.distributed.initialize` does: on Cloud TPU, Slurm, Open MPI and Kubernetes by itself.

    Before anything is computed.
    """
    jax.distributed.initialize()


def is_first() -> bool:
    """Whether this process is the one that writes; alone, it is."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Until every process has come here. what: the same in each."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def images_mesh() -> Mesh:
    """All devices of all processes in a row, for an axis of images."""
    return jax.make_mesh(
        (jax.device_count(),), ("images",), axis_types=(jax.sharding.AxisType.Auto,)
    )


def on_every_device(tree: Any) -> Any:
    """The same arrays, whole on all devices of all processes, in which they are equal."""
    return jax.device_put(tree, NamedSharding(images_mesh(), PartitionSpec()))
