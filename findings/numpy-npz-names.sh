#!/usr/bin/env bash
# NumPy 2.4.6: of the names "a" and "a.npy" in an .npz file, load() returns the array "a" for both.
#
# Input:    np.savez(file, **{"a": ones(2), "a.npy": zeros(3)}).
# Expected: load(file)["a.npy"] is zeros(3), as the file holds both arrays, or savez() refuses the
#           names.
# Seen:     `files` lists both names, and load(file)["a.npy"] is ones(2): names of entries in the
#           archive, "a.npy" and "a.npy.npy", are looked up before names of arrays.
# Exits with 0 while this is so, otherwise with 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "numpy==2.4.6"
"$folder/venv/bin/python" - "$folder/arrays.npz" <<'PYTHON'
import sys
import zipfile

import numpy as np

saved = {"a": np.ones(2), "a.npy": np.zeros(3)}
np.savez(sys.argv[1], **saved)
with np.load(sys.argv[1]) as file:
    names, loaded = file.files, {name: file[name] for name in file.files}
print("numpy", np.__version__, "archive:", zipfile.ZipFile(sys.argv[1]).namelist())
print("expected:", saved)
print("seen:    ", loaded)
same = np.array_equal(loaded["a.npy"], saved["a"]) and np.array_equal(loaded["a"], saved["a"])
sys.exit(0 if names == ["a", "a.npy"] and same else 1)
PYTHON
