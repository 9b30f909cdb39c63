"""A file whose leaves are decoded one by one, for models of which a part is wanted, or that are too large to hold twice."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jpq_jax.artifact.file import unpack
from jpq_jax.artifact.record import Extras, path_name
from jpq_jax.vocabulary import validate


class LazyArtifact(Mapping[str, Any]):
    """The leaves of a file by path, keys joined by "/": each is decoded when it is asked for, and not kept.

    Small leaves that are coded together are decoded together; of those the last are kept.

    Attributes:
      shapes: path to `jax.ShapeDtypeStruct`, without decoding.
      extras: the metadata it was saved with.
      nbytes: of the file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Reads the file and checks it as `load` does, but for what is in the leaves.

        Raises:
          ValueError: naming the file and what is wrong with it; also later, when a leaf is decoded.
          OSError: if it cannot be read.
        """
        self._source = os.fspath(path)
        data = Path(path).read_bytes()
        try:
            self._contents = unpack(data)
        except ValueError as error:
            raise ValueError(f"{self._source}: {error}") from error
        self.nbytes = len(data)
        self.extras: Extras = self._contents.extras
        records = self._contents.records
        names = [path_name(record.path) for record in records]
        for name, count in Counter(names).items():
            if count > 1:
                raise ValueError(f"{self._source}: leaf {name!r}: two leaves are called so")
        self.shapes = {
            name: jax.ShapeDtypeStruct(record.shape, np.dtype(record.dtype))
            for name, record in zip(names, records, strict=True)
        }
        self._block_of = {
            name: block
            for block, leaves in enumerate(self._contents.blocks)
            for name in names[slice(*leaves)]
        }
        self._names = names
        self._decoded: tuple[int, dict[str, Any]] = (-1, {})

    def __getitem__(self, path: str) -> Any:
        """`Codes`, or an array. Raises KeyError if there is no such leaf."""
        block = self._block_of[path]
        if self._decoded[0] != block:
            self._decoded = block, self._leaves_of(block)
        return self._decoded[1][path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _leaves_of(self, block: int) -> dict[str, Any]:
        names = self._names[slice(*self._contents.blocks[block])]
        try:
            leaves = dict(zip(names, self._contents.read(block), strict=True))
            validate(leaves)
        except ValueError as error:
            raise ValueError(f"{self._source}: {error}") from error
        return leaves
