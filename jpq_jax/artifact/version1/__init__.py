"""Reads files of format version 1, which nothing writes any more. `docs/format1.md` has it byte by byte."""

from __future__ import annotations

from jpq_jax.artifact.record import Contents, Form, Record
from jpq_jax.artifact.version1 import container, leaf


def unpack(data: bytes) -> Contents:
    """As `artifact.container.unpack`."""
    stated, payloads, extras = container.unpack(data)
    records = [
        Record(one.path, one.shape, one.dtype, Form(one.bits is not None), one.scale)
        for one in stated
    ]
    blocks = [(i, i + 1) for i in range(len(records))]
    return Contents(records, extras, blocks, lambda i: iter([leaf.unpack(stated[i], payloads[i])]))
