#!/usr/bin/env bash
# safetensors 0.8.0, its numpy side. Seen on 2026-11-29, x86-64 with AVX-512, CPU.
#
# Guess: save_file writes a transposed array or a slice with its values in the order of its shape, or refuses it.
# Seen: it writes the values in the order in which they lie in memory, under the shape of the array, without an
#   error. What is read back is another array. 0.4.5 wrote the right one.
#
# Exits with 0 if this is seen again, with 1 if something else is.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --target "$work/packages" \
    numpy==2.4.6 safetensors==0.8.0
cd "$work"
PYTHONPATH=packages python3 - << 'PYTHON'
import sys

import numpy as np

from safetensors.numpy import load_file, save_file

rows = np.arange(6, dtype=np.float32).reshape(2, 3)
save_file({"transposed": rows.T, "contiguous": np.ascontiguousarray(rows.T)}, "file.safetensors")
found = load_file("file.safetensors")
print(
    "given",
    rows.T.tolist(),
    "read",
    found["transposed"].tolist(),
    "read, made contiguous first",
    found["contiguous"].tolist(),
    sep="\n",
)
same = found["transposed"].tolist() == [[0, 1], [2, 3], [4, 5]] and np.array_equal(found["contiguous"], rows.T)
sys.exit(0 if same else "changed")
PYTHON
