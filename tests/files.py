"""What the tests put into files: codes, compared to the bit, and weights in PyTorch's names and layouts."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jpq_jax import artifact
from jpq_jax.vocabulary import LEVELS, Codes, is_codes, leaves_with_paths


def make_codes(code: Any, values: Any = (-0.5, 0.25, 1.5), bits: int = 2, dtype: str = "float32"):
    codebook = np.zeros(LEVELS, np.float32)
    codebook[1 : 1 + len(values)] = values
    return Codes(
        code=jnp.asarray(np.asarray(code, np.int16)),
        codebook=jnp.asarray(codebook),
        bits=jnp.asarray(bits, jnp.int32),
        dtype=dtype,
    )


def random_codes(shape: tuple[int, ...], bits: int = 2, density: float = 0.3, seed: int = 0):
    rng = np.random.default_rng(seed)
    code = np.where(rng.random(shape) < density, rng.integers(1, 2**bits, shape, endpoint=True), 0)
    return make_codes(code, np.linspace(-1, 1.1, 2**bits), bits)


def bits_of(leaf: Any) -> Any:
    """All there is to a leaf, for comparisons to the bit."""
    if is_codes(leaf):
        return "codes", leaf.dtype, [bits_of(x) for x in (leaf.code, leaf.codebook, leaf.bits)]
    array = np.asarray(leaf)
    return array.dtype.name, array.shape, array.tobytes()


def assert_same(got: Any, expected: Any) -> None:
    """The same structure, and leaves the same to the bit."""
    assert jax.tree.structure(got, is_leaf=is_codes) == jax.tree.structure(
        expected, is_leaf=is_codes
    )
    for (path, a), (_, b) in zip(leaves_with_paths(got), leaves_with_paths(expected), strict=True):
        assert bits_of(a) == bits_of(b), path


def torch_layout(draw: np.random.Generator) -> dict[str, np.ndarray]:
    shapes = {
        "features.0": (20, 1, 5, 5),
        "features.2": (50, 20, 5, 5),
        "classifier.0": (500, 800),
        "classifier.2": (10, 500),
    }
    tensors = {}
    for name, shape in shapes.items():
        tensors[f"{name}.weight"] = draw.normal(size=shape).astype(np.float32) / math.sqrt(
            math.prod(shape[1:])
        )
        tensors[f"{name}.bias"] = draw.normal(size=shape[0]).astype(np.float32)
    return tensors


def golden_tree() -> Any:
    nan = np.array([0x7FC00001, 0x3F800000], np.uint32).view(np.float32)
    return {
        "conv": {
            "kernel": make_codes([[[0, 1], [3, 0]], [[0, 0], [2, 3]]]),
            "bias": jnp.asarray(nan),
        },
        "layers": [
            {"scale": jnp.asarray([1.5, -2.0], jnp.bfloat16)},
            None,
            {"steps": np.array([2**53 + 1], np.int64), "on": jnp.asarray(True)},
        ],
        "blocks": {
            7: make_codes(np.zeros((40, 50)), [0.125], bits=1, dtype="bfloat16"),
            12: make_codes(np.full((2, 0, 3), 0)),
        },
        "dense": make_codes(
            np.where(np.arange(300) % 37 == 5, 30, np.arange(300) % 2), np.arange(1, 31) / 8, 5
        ),
    }


GOLDEN_EXTRAS = {
    "config": "lenet5_mnist",
    "baseline_accuracy": 0.9919,
    "note": "é",
    "list": [1, None],
}


def decode_or_refuse(data: bytes) -> bool:
    """Whether a file is taken. Anything but a ValueError that names it fails the test."""
    try:
        artifact.decode(data)
    except ValueError as error:
        if not str(error).startswith("<bytes>: "):
            raise
        return False
    return True
