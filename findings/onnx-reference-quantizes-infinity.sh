#!/usr/bin/env bash
# onnx 1.23.2, its reference implementation. Seen on 2026-11-29, x86-64 with AVX-512, CPU.
#
# Guess: QuantizeLinear saturates, as the standard says: 1e10 and infinity become 127 in int8.
# Seen: they become -128, and 0 in uint8, because the number passes through a 32-bit integer before it is clipped.
#   Numbers up to 2^31 are right. A test that takes this implementation as the truth calls right runtimes wrong.
#
# Exits with 0 if this is seen again, with 1 if something else is.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --target "$work/packages" \
    numpy==2.4.6 onnx==1.23.2 protobuf==7.36.2 ml_dtypes==0.6.0 typing_extensions==4.16.0
cd "$work"
PYTHONPATH=packages python3 - << 'PYTHON'
import sys

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

HEADER = '<ir_version: 10, opset_import: ["" : 21]>'

x = np.array([300, 2**30, 1e10, np.inf, -1e10], np.float32)
text = (
    "g (float[N] x) => (float[N] y) <float s = {1.0}> { o = Constant <value = int8 {0}> () "
    "q = QuantizeLinear (x, s, o)  y = DequantizeLinear (q, s, o) }"
)
(found,) = ReferenceEvaluator(onnx.parser.parse_model(HEADER + text)).run(None, {"x": x})
print("x", x.tolist(), "as int8", found.tolist(), sep="\n")
sys.exit(0 if found.tolist() == [127, 127, -128, -128, -128] else "changed")
PYTHON
