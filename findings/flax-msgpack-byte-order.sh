#!/usr/bin/env bash
# flax 0.12.8: a big-endian NumPy array comes back from msgpack_serialize with other values.
#
# Input:    {"w": np.array([1, 2, 3], ">f4")}, as an array read from FITS or IDX may be.
# Expected: msgpack_restore() gives 1, 2, 3, or msgpack_serialize() raises an error.
# Seen:     it gives 4.6e-41, 9.0e-44, 2.3e-41. The array's name of dtype, which has no byte order,
#           is written beside its bytes as they lie (`arr.dtype.name, arr.tobytes('C')`), which are
#           read in the machine's own order.
# Exits with 0 while this is so, otherwise with 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "flax==0.12.8" "jax==0.10.2"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import sys

import flax
import numpy as np
from flax.serialization import msgpack_restore, msgpack_serialize, to_bytes

array = np.array([1, 2, 3], ">f4")
found = [msgpack_restore(write({"w": array}))["w"] for write in (msgpack_serialize, to_bytes)]
print("flax", flax.__version__, "numpy", np.__version__)
print("expected:", array)
print("seen:    ", *found)
swapped = array.view("<f4")
sys.exit(0 if all(np.array_equal(each, swapped) for each in found) else 1)
PYTHON
