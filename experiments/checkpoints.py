"""Checkpoints of a run, by orbax: written whole or not at all, so that a run can be killed at any moment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp


class Checkpoints:
    """The last two epochs of a run in a folder. Any pytree of arrays is kept as its numbered leaves."""

    def __init__(self, folder: Path):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, create=True, enable_async_checkpointing=False
        )
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def latest(self) -> int:
        """Epochs done at the last checkpoint; 0 if there is none."""
        return self._manager.latest_step() or 0

    def save(self, epochs_done: int, tree: Any, history: list[dict[str, Any]]) -> None:
        numbered = _numbered(jax.tree.leaves(tree))
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(numbered), history=ocp.args.JsonSave({"epochs": history})
        )
        self._manager.save(epochs_done, args=items)

    def restore(self, epochs_done: int, like: Any) -> tuple[Any, list[dict[str, Any]]]:
        """The tree, in the structure of `like`, and the history.

        Raises:
          ValueError: if the checkpoint's arrays are not those of `like`.
        """
        leaves, treedef = jax.tree.flatten(like)
        abstract = {
            name: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=leaf.sharding)
            for name, leaf in _numbered(leaves).items()
        }
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), history=ocp.args.JsonRestore()
        )
        found = self._manager.restore(epochs_done, args=items)
        restored = [found["state"].get(_name(i), leaf) for i, leaf in enumerate(leaves)]
        return jax.tree.unflatten(treedef, restored), found["history"]["epochs"]

    def close(self) -> None:
        self._manager.close()


def _numbered(leaves: Sequence[Any]) -> dict[str, Any]:
    """By their place; without those that have no elements, which orbax does not save."""
    return {_name(i): leaf for i, leaf in enumerate(leaves) if leaf.size}


def _name(i: int) -> str:
    return f"{i:05}"
