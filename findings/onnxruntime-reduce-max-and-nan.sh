#!/usr/bin/env bash
# ONNX Runtime 1.31.1. Seen on 2026-11-29, x86-64 with AVX-512, CPU.
#
# Guess: ReduceMax either gives NaN for every row with a NaN, as numpy does, or ignores it in every row, as fmax
#   does.
# Seen: NaN is found only where it is the first number of its row. So whether a check by ReduceMax sees a NaN
#   depends on its place.
#
# Exits with 0 if this is seen again, with 1 if something else is.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export ORT_DISABLE_TELEMETRY=1
python3 -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --target "$work/packages" \
    numpy==2.4.6 onnx==1.23.2 protobuf==7.36.2 ml_dtypes==0.6.0 typing_extensions==4.16.0 onnxruntime==1.31.1
cd "$work"
PYTHONPATH=packages python3 - << 'PYTHON'
import sys

import numpy as np
import onnx
import onnxruntime

HEADER = '<ir_version: 10, opset_import: ["" : 21]>'


def onnxruntime_of(text, **inputs):
    model = onnx.parser.parse_model(HEADER + text)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


x = np.array([[np.nan, 2, 3], [1, np.nan, 3], [1, 2, np.nan]], np.float32)
text = "g (float[N,M] x, int64[1] axes) => (float[N] y) { y = ReduceMax <keepdims = 0> (x, axes) }"
(found,) = onnxruntime_of(text, x=x, axes=np.array([1]))
print(x, found, sep="\n")
sys.exit(0 if np.array_equal(found, [np.nan, 3, 2], equal_nan=True) else "changed")
PYTHON
