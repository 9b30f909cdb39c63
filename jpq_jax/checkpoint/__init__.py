"""Models on disk as others keep them, read into trees of arrays; and trees written as safetensors. Also reads our own files."""

from jpq_jax.checkpoint.reading import find_checkpoint as find_checkpoint
from jpq_jax.checkpoint.reading import read_checkpoint as read_checkpoint
from jpq_jax.checkpoint.safetensors import StoredLeaf as StoredLeaf
from jpq_jax.checkpoint.safetensors import write_safetensors as write_safetensors

__all__ = ["StoredLeaf", "find_checkpoint", "read_checkpoint", "write_safetensors"]
