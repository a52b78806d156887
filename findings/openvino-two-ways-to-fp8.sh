#!/usr/bin/env bash
# OpenVINO 2026.4.1. Seen on 2026-11-29, x86-64 with AVX-512, CPU.
#
# Guess: float8 e4m3fn has one conversion: 500 becomes 448, because ONNX saturates by default, and NaN, which the
#   format has, stays NaN, by Cast and by QuantizeLinear.
# Seen: Cast makes NaN of 500 as if saturate were 0, and keeps NaN; QuantizeLinear makes 448 of 500, and -448 of
#   NaN.
#
# Exits with 0 if this is seen again, with 1 if something else is.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --target "$work/packages" \
    numpy==2.4.6 onnx==1.23.2 protobuf==7.36.2 ml_dtypes==0.6.0 typing_extensions==4.16.0 openvino==2026.4.1
cd "$work"
PYTHONPATH=packages python3 - << 'PYTHON'
import sys

import numpy as np
import onnx
import openvino

HEADER = '<ir_version: 10, opset_import: ["" : 21]>'
CORE = openvino.Core()


def openvino_of(text, **inputs):
    model = onnx.parser.parse_model(HEADER + text)
    compiled = CORE.compile_model(
        CORE.read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    result = compiled.create_infer_request().infer(list(inputs.values()))
    return [result[number].copy() for number in range(len(compiled.outputs))]


x = np.array([500, -500, np.nan, 1], np.float32)
(cast,) = openvino_of("g (float[N] x) => (float[N] y) { q = Cast <to = 17> (x)  y = Cast <to = 1> (q) }", x=x)
(pair,) = openvino_of(
    "g (float[N] x) => (float[N] y) <float s = {1.0}>"
    "{ o = Constant <value = float8e4m3fn {0}> () "
    "q = QuantizeLinear (x, s, o)  y = DequantizeLinear (q, s, o) }",
    x=x,
)
print("x", x.tolist(), "Cast", cast.tolist(), "QuantizeLinear", pair.tolist(), sep="\n")
same = np.array_equal(cast, [np.nan, np.nan, np.nan, 1], equal_nan=True) and np.array_equal(
    pair, [448, -448, -448, 1]
)
sys.exit(0 if same else "changed")
PYTHON
