#!/usr/bin/env bash
# safetensors 0.8.0: what safetensors.numpy writes of ml_dtypes' floats, it reads by one of its
# functions or by none.
#
# Input:    {"w": ones(2)} in bfloat16 and in float8_e4m3fn, as JAX's arrays are on the host.
# Expected: load(save(tensors)) and load_file() after save_file() give the tensors back, or save()
#           refuses the dtype.
# Seen:     both are written. bfloat16: load_file() reads it, load() raises KeyError('BF16').
#           float8_e4m3fn: load() raises KeyError('F8_E4M3'), load_file() AttributeError: numpy has
#           no such attribute.
# Exits with 0 while this is so, otherwise with 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "safetensors==0.8.0" "numpy==2.4.6" "ml_dtypes==0.5.4"
"$folder/venv/bin/python" - "$folder/model.safetensors" <<'PYTHON'
import sys

import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import load, load_file, save, save_file


def outcome(read, *args):
    try:
        return f"reads {read(*args)['w'].dtype}"
    except Exception as error:
        return type(error).__name__


print("safetensors", safetensors.__version__, "numpy", np.__version__)
seen = []
for dtype in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn):
    tensors = {"w": np.ones(2, dtype)}
    save_file(tensors, sys.argv[1])
    seen += [outcome(load, save(tensors)), outcome(load_file, sys.argv[1])]
print("expected:", ["reads bfloat16"] * 2 + ["reads float8_e4m3fn"] * 2)
print("seen:    ", seen)
sys.exit(0 if seen == ["KeyError", "reads bfloat16", "KeyError", "AttributeError"] else 1)
PYTHON
