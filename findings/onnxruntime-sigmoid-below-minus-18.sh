#!/usr/bin/env bash
# ONNX Runtime 1.31.1. Seen on 2026-11-29, x86-64 with AVX-512, CPU.
#
# Guess: Sigmoid is exact to a few units in the last place of float32 for every input, as its Exp is: Sigmoid(-20)
#   is 2.06e-9.
# Seen: it is exactly 0 for -18 and below, and twice too large at -17, though float32 has numbers down to 1e-38 and
#   Exp of the same numbers is right. So a logarithm of it is minus infinity from -18 on, and a gate that should be
#   small is closed.
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


x = np.array([-17, -18, -20, -30, -80], np.float32)
(found,) = onnxruntime_of("g (float[N] x) => (float[N] y) { y = Sigmoid (x) }", x=x)
(exp,) = onnxruntime_of("g (float[N] x) => (float[N] y) { y = Exp (x) }", x=x)
expected = 1 / (1 + np.exp(-x.astype(np.float64)))
print("x", x.tolist(), "Sigmoid", found.tolist(), "expected", expected.tolist(), sep="\n")
same = np.allclose(exp, np.exp(x.astype(np.float64)), rtol=1e-5, atol=0) and 1.5 < found[0] / expected[0] < 3
sys.exit(0 if same and (found[1:] == 0).all() else "changed")
PYTHON
