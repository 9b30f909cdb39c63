"""Every supported JAX gives the same codes: their hashes are stored in tests/golden/codes.json.

The last digits of codebooks, steps and biases may differ between versions of XLA, so that integers
alone are hashed. A change to the numerics changes the codes: look at what changed, then write anew

    python tests/test_same_codes.py

with the oldest JAX that is supported, and run the tests with the newest.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jpq_jax
from jpq_jax import Budget, Codes, artifact, leaves_with_paths

STORED = Path(__file__).parent / "golden" / "codes.json"
STEPS = 20

Hashes = dict[str, dict[str, Any]]

pytestmark = pytest.mark.newest


def integers(code: Any) -> np.ndarray:
    """For all machines in the same bytes."""
    return np.asarray(code).astype("<i4")


def drawn(seed: int, *shape: int) -> np.ndarray:
    """float32 with heavy tails, by additions and products alone: the same on every machine.

    Of a bit generator's raw numbers, which NumPy keeps as they are; distributions it may change.
    """
    raw = np.random.PCG64(seed).random_raw(np.prod(shape)).view(np.uint16).reshape(*shape, 4)
    near_normal = raw.sum(-1, dtype=np.int64).astype(np.float32) / np.float32(2**16) - 2
    return near_normal * (1 + near_normal * near_normal)


def params() -> dict[str, Any]:
    return {
        "conv": {"kernel": drawn(0, 3, 3, 4, 8), "bias": drawn(1, 8)},
        "dense": {"kernel": drawn(2, 32, 24) / 4, "bias": drawn(3, 24)},
    }


def loss(weights: Any, inputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Two layers: a convolution over 3 x 3 images, which is a product, and a dense one."""
    kernel = weights["conv"]["kernel"].reshape(36, 8)
    hidden = jnp.tile(jax.nn.relu(inputs @ kernel + weights["conv"]["bias"][None]), (1, 4))
    outputs = hidden @ weights["dense"]["kernel"] + weights["dense"]["bias"][None]
    return jnp.mean((outputs - targets) ** 2)


def trained(budget: Budget) -> Any:
    optimizer = jpq_jax.latent(optax.adam(0.02), jpq_jax.joint(budget))
    inputs, targets = drawn(4, 16, 36), drawn(5, 16, 24)

    @jax.jit
    def step(weights: Any, state: Any) -> tuple[Any, Any]:
        gradients = jax.grad(loss)(weights, inputs, targets)
        updates, state = optimizer.update(gradients, state, weights)
        return optax.apply_updates(weights, updates), state

    weights = jax.tree.map(jnp.asarray, params())
    state = optimizer.init(weights)
    with jax.numpy_dtype_promotion("standard"):  # which Adam's schedules need
        for _ in range(STEPS):
            weights, state = step(weights, state)
    return jpq_jax.finalize(weights, state)


def read_back(codes: Any) -> Any:
    return artifact.decode(artifact.encode(codes)).codes


CASES: dict[str, Callable[[], Any]] = {
    "project, a twentieth": lambda: jpq_jax.project(params(), Budget(ratio=20)),
    "project, a fifth": lambda: jpq_jax.project(params(), Budget(ratio=5)),
    "compress, 300 bytes": lambda: read_back(jpq_jax.compress(params(), Budget(nbytes=300))),
    "compress, 900 bytes": lambda: read_back(jpq_jax.compress(params(), Budget(nbytes=900))),
    "latent joint, a tenth": lambda: trained(Budget(ratio=10)),
    "latent joint, 500 bytes": lambda: read_back(trained(Budget(nbytes=500))),
}


def hashes(codes: Any) -> Hashes:
    """Of the integers of each compressed leaf, with how many are not zero, to see a change by."""
    return {
        path: {
            "nonzeros": int(np.count_nonzero(leaf.code)),
            "sha256": hashlib.sha256(integers(leaf.code).tobytes()).hexdigest(),
        }
        for path, leaf in leaves_with_paths(codes)
        if isinstance(leaf, Codes)
    }


@pytest.mark.parametrize("case", CASES)
def test_the_codes_are_those_of_every_jax(case: str) -> None:
    found = hashes(CASES[case]())
    assert set(found) == {"conv/kernel", "dense/kernel"}
    assert found == json.loads(STORED.read_text())[case]


def test_every_stored_case_is_tried() -> None:
    assert set(json.loads(STORED.read_text())) == set(CASES)


if __name__ == "__main__":
    content = {case: hashes(make()) for case, make in CASES.items()}
    STORED.write_text(json.dumps(content, indent=1) + "\n")
