#!/usr/bin/env bash
# OpenVINO 2026.4.1 and ONNX Runtime 1.31.1. Seen on 2026-11-29, x86-64 with AVX-512, CPU.
#
# Guess: attention over no keys is a sum of nothing: zeros, in every call.
# Seen: after a call with keys OpenVINO gives that call's answer again, without an error. ONNX Runtime gives zeros,
#   and so does OpenVINO for a product alone. A loop with a key-value cache that begins empty repeats the image
#   before.
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


text = (
    "g (float[H,A,D] q, float[H,K,D] k) => (float[H,A,D] y) { t = Transpose <perm = [0, 2, 1]> (k)  l = MatMul (q, t) "
    "p = Softmax <axis = -1> (l)  y = MatMul (p, k) }"
)
rng = np.random.default_rng(0)
q, keys, none = (rng.standard_normal((2, rows, 4)).astype(np.float32) for rows in (3, 6, 0))
compiled = CORE.compile_model(
    CORE.read_model(onnx.parser.parse_model(HEADER + text).SerializeToString()),
    "CPU",
    {"INFERENCE_PRECISION_HINT": "f32"},
)
request = compiled.create_infer_request()
with_keys = request.infer([q, keys])[0].copy()
without = request.infer([q, none])[0].copy()
(other,) = onnxruntime_of(text, q=q, k=none)
print(
    "with keys", with_keys[0, 0], "without, OpenVINO", without[0, 0], "without, ONNX Runtime", other[0, 0], sep="\n"
)
sys.exit(0 if np.array_equal(without, with_keys) and (other == 0).all() else "changed")
PYTHON
