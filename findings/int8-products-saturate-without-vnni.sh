#!/usr/bin/env bash
# ONNX Runtime 1.31.1 and OpenVINO 2026.4.1. Seen on 2026-11-29, AMD EPYC with AVX2 and without VNNI, CPU.
#
# Guess: an int8 product (Q/DQ around a MatMul) sums in int32, so whole numbers come out exactly on every processor.
#   A processor without VNNI is slower.
# Seen: without VNNI both libraries add pairs of products in 16 bits, and sums beyond 32,767 are cut. With weights of
#   the full range two thirds of the results are wrong, and the relative error is 17%. With weights of 7 bits
#   (-63 to 63) all results are exact. With VNNI they are exact for weights of 8 bits too.
#
# Exits with 0 if this is seen again, with 1 if something else is: on a processor with VNNI, everything is exact.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
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
from onnx import numpy_helper

TEXT = (
    '<ir_version: 10, opset_import: ["" : 21]> g (float[N, 64] x) => (float[N, 32] y) <float s = {1.0}, int8 z = {0}> '
    "{ q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)  e = DequantizeLinear (w, s, z)  "
    "y = MatMul (d, e) }"
)
random, wrong = np.random.default_rng(0), {}
for largest in (127, 63):
    weights = random.integers(-largest, largest + 1, (64, 32)).astype(np.int8)
    x = random.integers(-127, 128, (16, 64)).astype(np.float32)
    model = onnx.parser.parse_model(TEXT)
    model.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(content), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = {"onnxruntime": session.run(None, {"x": x})[0], "openvino": compiled.create_infer_request().infer([x])[0]}
    exact = x @ weights.astype(np.float32)
    for library, result in found.items():
        wrong[largest, library] = (result != exact).mean()
        error = np.linalg.norm(result - exact) / np.linalg.norm(exact)
        print(f"weights to {largest}, {library}: {wrong[largest, library]:.0%} of the results are wrong, error {error:.1%}")
flags = next(line for line in open("/proc/cpuinfo") if line.startswith("flags")).split()
print("VNNI:", any("vnni" in flag for flag in flags))
seen = all((share > 0.5) == (largest == 127) for (largest, _), share in wrong.items())
sys.exit(0 if seen else "changed")
PYTHON
