#!/usr/bin/env bash
# ONNX Runtime 1.31.1 and OpenVINO 2026.4.1. Seen on 2026-11-29, x86-64 with AVX-512, CPU.
#
# Guess: the mean of no numbers is 0/0, NaN, as in numpy, in PyTorch and in ONNX's reference implementation; the
#   largest of no numbers is minus infinity.
# Seen: both libraries give 0 for the mean, so an empty batch looks like one of zeros. OpenVINO gives -3.4e38, the
#   least finite number, for the maximum, where ONNX Runtime gives minus infinity.
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


x, axes = np.zeros((2, 0), np.float32), np.array([1])
text = "g (float[N,M] x, int64[1] axes) => (float[N] y) {{ y = {} <keepdims = 0> (x, axes) }}"
fixed = "g (float[N,M] x) => (float[N] y) {{ a = Constant <value_ints = [1]> ()  y = {} <keepdims = 0> (x, a) }}"
means = onnxruntime_of(text.format("ReduceMean"), x=x, axes=axes)[0], openvino_of(fixed.format("ReduceMean"), x=x)[0]
largest = onnxruntime_of(text.format("ReduceMax"), x=x, axes=axes)[0], openvino_of(fixed.format("ReduceMax"), x=x)[0]
print("mean, ONNX Runtime and OpenVINO:", *means, "largest:", *largest)
same = (means[0] == 0).all() and (means[1] == 0).all() and np.isneginf(largest[0]).all()
sys.exit(0 if same and (largest[1] == np.finfo(np.float32).min).all() else "changed")
PYTHON
