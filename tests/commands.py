"""The `jpq` command called as a function, and what it works on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jpq_jax
from jpq_jax import post_training
from jpq_jax.cli import main


def run(*args: object) -> int:
    return main([str(arg) for arg in args])


def write_checkpoint(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    path = folder / "model.safetensors"
    tensors = {
        "fc1.weight": rng.laplace(size=(60, 50)),
        "fc1.bias": rng.normal(size=60),
        "fc2.weight": rng.laplace(size=(10, 60)),
    }
    save_file({name: tensor.astype(np.float32) for name, tensor in tensors.items()}, path)
    return path


def write_small(checkpoint: Path) -> Path:
    """The checkpoint's arrays as a .jpq file beside it, without a search."""
    path = checkpoint.with_name("small.jpq")
    jpq_jax.artifact.save(path, load_file(checkpoint))
    return path


def compress_at_once(patch: pytest.MonkeyPatch) -> list[int]:
    """Lets `compress` round without a search, for what stands around it; gives the budgets that it is called with."""
    asked: list[int] = []

    def compress(params: Any, budget: jpq_jax.Budget, **_: Any) -> Any:
        assert budget.nbytes is not None
        asked.append(budget.nbytes)
        return {name: np.asarray(leaf).round() for name, leaf in params.items()}

    patch.setattr(post_training, "compress", compress)
    return asked
