#!/usr/bin/env bash
# OpenVINO 2026.4.1. Seen on 2026-11-29, x86-64 with AVX-512, CPU.
#
# Guess: Exp of NaN is NaN.
# Seen: it is infinity, while Tanh, Sigmoid and Erf of NaN are NaN. A later division by it makes 0 of what was not a
#   number.
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


x = np.full(17, np.nan, np.float32)
found = openvino_of(
    "g (float[N] x) => (float[N] a, float[N] b, float[N] c, float[N] d)"
    "{ a = Exp (x)  b = Tanh (x)  c = Sigmoid (x)  d = Reciprocal (a) }",
    x=x,
)
print(
    *(f"{name} of NaN: {values[0]}" for name, values in zip(("Exp", "Tanh", "Sigmoid", "1 / Exp"), found)), sep="\n"
)
exp, tanh, sigmoid, reciprocal = found
sys.exit(
    0
    if np.isposinf(exp).all() and np.isnan(tanh).all() and np.isnan(sigmoid).all() and (reciprocal == 0).all()
    else "changed"
)
PYTHON
