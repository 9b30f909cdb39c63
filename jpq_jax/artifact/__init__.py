"""The file a compressed tree is kept in: small, exact, versioned, safe to read from anyone.

    nbytes = save("lenet5.jpq", codes, {"config": "lenet5_mnist"})
    codes, extras, nbytes = load("lenet5.jpq", like=params)
    kernel = LazyArtifact("lenet5.jpq")["conv1/kernel"]

Host code, in NumPy: never call it inside `jit`. `docs/format.md` has the file byte by byte.
"""

from jpq_jax.artifact.file import Artifact as Artifact
from jpq_jax.artifact.file import Sizes as Sizes
from jpq_jax.artifact.file import decode as decode
from jpq_jax.artifact.file import encode as encode
from jpq_jax.artifact.file import file_bytes as file_bytes
from jpq_jax.artifact.file import leaf_bytes as leaf_bytes
from jpq_jax.artifact.file import load as load
from jpq_jax.artifact.file import save as save
from jpq_jax.artifact.lazy import LazyArtifact as LazyArtifact

__all__ = [
    "Artifact",
    "LazyArtifact",
    "Sizes",
    "decode",
    "encode",
    "file_bytes",
    "leaf_bytes",
    "load",
    "save",
]
