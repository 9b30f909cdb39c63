"""Checkpoints of every kind, read into trees of arrays; and trees written as safetensors."""

from jpq_jax.checkpoint.reading import find_checkpoint as find_checkpoint
from jpq_jax.checkpoint.reading import read_checkpoint as read_checkpoint
from jpq_jax.checkpoint.safetensors import StoredLeaf as StoredLeaf
from jpq_jax.checkpoint.safetensors import write_safetensors as write_safetensors

__all__ = ["StoredLeaf", "find_checkpoint", "read_checkpoint", "write_safetensors"]
