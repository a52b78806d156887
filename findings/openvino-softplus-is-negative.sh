#!/usr/bin/env bash
# OpenVINO 2026.4.1. Seen on 2026-11-29, x86-64 with AVX-512, CPU.
#
# Guess: Softplus(x) = log(1 + e^x) is positive, or 0 where e^x is too small: Softplus(-20) is 2.06e-9.
# Seen: Softplus(-18) and Softplus(-20) are -1.9e-6, so a variance or a rate that is kept positive by Softplus
#   becomes negative.
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


x = np.array([-30, -20, -18, -10, 0, 10], np.float32)
(found,) = openvino_of("g (float[N] x) => (float[N] y) { y = Softplus (x) }", x=x)
print(
    "x", x.tolist(), "Softplus", found.tolist(), "expected", np.log1p(np.exp(x.astype(np.float64))).tolist(), sep="\n"
)
sys.exit(0 if (found[1:3] < 0).all() and np.allclose(found[3:], np.logaddexp(0, x[3:]), atol=1e-5) else "changed")
PYTHON
