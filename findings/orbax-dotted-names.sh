#!/usr/bin/env bash
# orbax-checkpoint 0.12.8: of two leaves whose keys joined by "." are equal, one is lost silently.
#
# Input:    {"a.b": zeros(3), "a": {"b": twos(3)}}, as a tree has it that mixes flat PyTorch names
#           and nested modules.
# Expected: save() keeps both leaves, or raises an error that names them. (Of different shapes it
#           raises one, of TensorStore.)
# Seen:     save() succeeds, the metadata lists both leaves, and restore() returns the values of one
#           for both. Both arrays are stored under the name "a.b", one over the other.
# Exits with 0 while this is so, otherwise with 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "orbax-checkpoint==0.12.8" "jax==0.10.2"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - "$folder/checkpoint" <<'PYTHON'
import importlib.metadata
import sys

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

saved = {"a.b": jnp.zeros(3), "a": {"b": jnp.full(3, 2.0)}}
with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(sys.argv[1], saved)
with ocp.StandardCheckpointer() as checkpointer:
    restored = checkpointer.restore(sys.argv[1])
print("orbax-checkpoint", importlib.metadata.version("orbax-checkpoint"), "jax", jax.__version__)
print("expected:", saved)
print("seen:    ", restored)
both = [restored["a.b"].tolist(), restored["a"]["b"].tolist()]
sys.exit(0 if both in ([[0.0] * 3] * 2, [[2.0] * 3] * 2) else 1)
PYTHON
