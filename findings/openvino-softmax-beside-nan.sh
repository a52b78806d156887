#!/usr/bin/env bash
# OpenVINO 2026.4.1. Seen on 2026-11-29, x86-64 with AVX-512, CPU.
#
# Guess: a row of Softmax that holds one NaN is NaN everywhere, because every number is divided by the sum.
# Seen: the other numbers of the row become 0: [1, NaN, 3] gives [0, NaN, 0]. So one infinite logit of attention
#   ends as a row of zeros for all keys but one.
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


x = np.array([[1, np.nan, 3], [np.inf, 1, 2], [1, 2, 3]], np.float32)
(found,) = openvino_of("g (float[N,M] x) => (float[N,M] y) { y = Softmax <axis = 1> (x) }", x=x)
print(x, found, sep="\n")
expected = np.array([[0, np.nan, 0], [np.nan, 0, 0]])
sys.exit(0 if np.array_equal(found[:2], expected, equal_nan=True) and np.isclose(found[2].sum(), 1) else "changed")
PYTHON
