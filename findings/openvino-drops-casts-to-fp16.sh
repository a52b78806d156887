#!/usr/bin/env bash
# OpenVINO 2026.4.1. Seen on 2026-11-29, x86-64 with AVX-512, CPU.
#
# Guess: a Cast to float16 and back to float32 rounds: 1e6 becomes infinity and 1e-8 becomes 0. With
#   INFERENCE_PRECISION_HINT f32 at least what the graph says is done.
# Seen: both Casts are removed, and the numbers stay as they were. The same pair with bfloat16 does round. A graph
#   that emulates float16 on this library therefore emulates nothing.
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


x = np.array([1e6, 65520, 1 / 3, 1e-8], np.float32)
pair = "g (float[N] x) => (float[N] y) {{ q = Cast <to = {}> (x)  y = Cast <to = 1> (q) }}"
half, brain = (
    openvino_of(pair.format(kind), x=x)[0] for kind in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
)
print("x", x.tolist(), "float16 and back", half.tolist(), "bfloat16 and back", brain.tolist(), sep="\n")
sys.exit(0 if np.array_equal(half, x) and not np.array_equal(brain, x) else "changed")
PYTHON
