#!/usr/bin/env bash
# OpenVINO 2026.4.1. Seen on 2026-12-01, x86-64 with AVX2, CPU.
#
# Guess: a mean over the columns of an image and then over its rows, two ReduceMean, is computed in two steps, so each
#   sum is short and keeps its digits.
# Seen: both become one mean over rows and columns, if both keep their dimensions (keepdims=1). If the first drops its
#   dimension, two means stay. How much the one loses depends on the lanes of the processor: on an EPYC with AVX2 the
#   means of a million pixels were 20 times as far from float64.
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

CORE = openvino.Core()
# The mean of each channel of images x, [B, 3, H, W]: over columns, then over rows.
GRAPH = """<ir_version: 10, opset_import: ["" : 20]>
g (float[B, 3, H, W] x) => (float[B, C] y)
<int64[1] columns = {{3}}, int64[1] rows = {{2}}, int64[2] shape = {{0, 3}}> {{
  a = ReduceMean <keepdims = {first}> (x, columns)
  b = ReduceMean <keepdims = 1> (a, rows)
  y = Reshape (b, shape)
}}"""


def means(first, x):
    model = onnx.parser.parse_model(GRAPH.format(first=first))
    onnx.checker.check_model(model)
    compiled = CORE.compile_model(
        CORE.read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    kinds = [node.get_rt_info()["layerType"] for node in compiled.get_runtime_model().get_ops()]
    result = compiled.create_infer_request().infer([x])
    return sum(kind == "Reduce" for kind in kinds), result[0].copy()


x = (np.random.default_rng(1).standard_normal((1, 3, 1180, 900)) + 3).astype(np.float32)
exact = x.astype(np.float64).mean(axis=(2, 3))
found = {}
for first, name in ((1, "both keep their dimensions"), (0, "the first drops its dimension")):
    reductions, mean = means(first, x)
    found[first] = reductions
    print(f"{name}: {reductions} reductions, largest error {np.abs(mean - exact).max():.1e}")
sys.exit(0 if found == {1: 1, 0: 2} else "changed")
PYTHON
