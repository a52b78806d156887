#!/usr/bin/env bash
# OpenVINO 2026.4.1 and ONNX Runtime 1.31.1. Seen on 2026-11-29, x86-64 with AVX-512, CPU.
#
# Guess: Resize with antialias = 1 widens the filter where an image shrinks, so one white column in eight is still
#   seen at a quarter of the size; a library that cannot do it refuses the graph.
# Seen: ONNX Runtime shows the columns, as gray of up to 40 of 255. OpenVINO gives black everywhere, as without
#   antialias, and no error. Features of shrunk images then belong to other images.
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


x = np.zeros((1, 1, 8, 64), np.float32)
x[..., ::8] = 255
text = (
    "g (float[1,1,H,W] x) => (float[1,1,h,w] y) {{ s = Constant <value_ints = [1, 1, 8, 16]> () "
    'y = Resize <mode = "linear", antialias = {}> (x, , , s) }}'
)
by_onnxruntime = onnxruntime_of(text.format(1), x=x)[0]
by_openvino, without = openvino_of(text.format(1), x=x)[0], openvino_of(text.format(0), x=x)[0]
print(
    "onnxruntime",
    by_onnxruntime[0, 0, 0, 4:8].tolist(),
    "openvino",
    by_openvino[0, 0, 0, 4:8].tolist(),
    "openvino without antialias",
    without[0, 0, 0, 4:8].tolist(),
    sep="\n",
)
black = (by_openvino == 0).all() and (without == 0).all()
sys.exit(0 if black and by_onnxruntime.max() > 20 else "changed")
PYTHON
