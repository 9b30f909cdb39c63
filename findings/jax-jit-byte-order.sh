#!/usr/bin/env bash
# jax 0.10.2 and 0.12.0.1: a compiled function that has run on native floats reads big-endian ones as
# native, silently; as its first argument they are refused.
#
# Input:    a jitted function, called with a NumPy array of dtype "<f4" and then with the same numbers
#           as ">f4", as arrays from FITS, HDF5 or old NumPy files may be.
# Expected: TypeError at the second call, as where ">f4" is the first argument, or the same numbers.
# Seen:     the bytes are taken as they lie: [1, 2] becomes [4.6e-41, 9.0e-44], without an error.
# Exits with 0 while this is so, otherwise with 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "jax==0.10.2" "numpy==2.4.6"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import sys

import jax
import numpy as np


def same(x):
    return 1 * x


def also_the_same(x):
    return 1 * x


native, swapped = np.array([1, 2], "<f4"), np.array([1, 2], ">f4")
try:
    jax.jit(also_the_same)(swapped)
    first = "taken"
except TypeError:
    first = "TypeError"
compiled = jax.jit(same)
compiled(native)
try:
    then = np.asarray(compiled(swapped)).tolist()
except TypeError:
    then = "TypeError"
print("jax", jax.__version__)
print("expected: TypeError, or", native.tolist(), "in both cases")
print("seen:     as first argument:", first, "; after a native one:", then)
sys.exit(0 if first == "TypeError" and then not in ("TypeError", native.tolist()) else 1)
PYTHON
