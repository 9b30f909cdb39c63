"""Reads files of format version 1, which nothing writes any more. `docs/format1.md` has it byte by byte."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jpq_jax.artifact.record import Extras, Form, Record
from jpq_jax.artifact.version1 import container, leaf


def unpack(data: bytes) -> tuple[list[Record], Extras, Iterator[Any]]:
    """As `artifact.container.unpack`."""
    stated, payloads, extras = container.unpack(data)
    records = [
        Record(one.path, one.shape, one.dtype, Form(one.bits is not None), one.scale)
        for one in stated
    ]
    return records, extras, map(leaf.unpack, stated, payloads)
