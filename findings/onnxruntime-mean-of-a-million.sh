#!/usr/bin/env bash
# ONNX Runtime 1.31.1 and OpenVINO 2026.4.1. Seen on 2026-11-29, x86-64 with AVX-512, CPU.
#
# Guess: sums of a long axis are made in parts or with wider numbers, so the mean of 2^20 times 0.1 is right to
#   1e-6, as in numpy.
# Seen: ReduceMean of ONNX Runtime is 0.0999, wrong by 1e-3, and of OpenVINO 0.10006, wrong by 6e-4. CumSum is wrong
#   by 1e-2 in both. Statistics of whole images do not belong into a graph.
#
# Exits with 0 if this is seen again, with 1 if something else is.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export ORT_DISABLE_TELEMETRY=1
python3 -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --target "$work/packages" \
    numpy==2.4.6 onnx==1.23.2 protobuf==7.36.2 ml_dtypes==0.6.0 typing_extensions==4.16.0 onnxruntime==1.31.1 \
    openvino==2026.4.1
cd "$work"
PYTHONPATH=packages python3 - << 'PYTHON'
import sys

import numpy as np
import onnx
import onnxruntime
import openvino

HEADER = '<ir_version: 10, opset_import: ["" : 21]>'
CORE = openvino.Core()


def onnxruntime_of(text, **inputs):
    model = onnx.parser.parse_model(HEADER + text)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def openvino_of(text, **inputs):
    model = onnx.parser.parse_model(HEADER + text)
    compiled = CORE.compile_model(
        CORE.read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    result = compiled.create_infer_request().infer(list(inputs.values()))
    return [result[number].copy() for number in range(len(compiled.outputs))]


x = np.full((1, 2**20), 0.1, np.float32)
text = (
    "g (float[1,N] x) => (float[1] y, float[1,N] z) { a = Constant <value_ints = [1]> () "
    "y = ReduceMean <keepdims = 0> (x, a)  i = Constant <value_int = 1> ()  z = CumSum (x, i) }"
)
errors = []
for name, (mean, sums) in (("onnxruntime", onnxruntime_of(text, x=x)), ("openvino", openvino_of(text, x=x))):
    errors.append((abs(mean[0] / 0.1 - 1), abs(sums[0, -1] / (0.1 * 2**20) - 1)))
    print(f"{name}: mean {mean[0]:.7f}, error {errors[-1][0]:.1e}")
    print(f"  last of CumSum {sums[0, -1]:.1f}, error {errors[-1][1]:.1e}")
print(f"numpy: mean {x.mean():.7f}")
sys.exit(0 if all(mean > 1e-4 and last > 1e-3 for mean, last in errors) else "changed")
PYTHON
