#!/usr/bin/env bash
# ONNX Runtime 1.31.1. Seen on 2026-12-01, x86-64, CPU.
#
# Guess: disabled_optimizers=["ConstantFolding"] leaves a Cast of an fp16 weight in the graph, at every optimization level.
# Seen: it does at the levels EXTENDED and LAYOUT. At ALL, the default, the cast is gone, and the weight lies in the session
#   in float32: twice the memory of the file.
#
# Exits with 0 if this is seen again, with 1 if something else is.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export ORT_DISABLE_TELEMETRY=1
python3 -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --target "$work/packages" \
    numpy==2.4.6 onnx==1.23.2 protobuf==7.36.2 ml_dtypes==0.6.0 typing_extensions==4.16.0 onnxruntime==1.31.1
cd "$work"
PYTHONPATH=packages python3 - << 'PYTHON'
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

graph = helper.make_graph(
    [helper.make_node("Cast", ["w"], ["wide"], to=TensorProto.FLOAT), helper.make_node("MatMul", ["x", "wide"], ["y"])],
    "g",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 64])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 64])],
    [numpy_helper.from_array(np.ones((64, 64), np.float16), "w")],
)
onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)]), "graph.onnx")
casts = {}
for level in ("EXTENDED", "LAYOUT", "ALL"):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.optimized_model_filepath = f"{level}.onnx"
    onnxruntime.InferenceSession(
        "graph.onnx", options, providers=["CPUExecutionProvider"], disabled_optimizers=["ConstantFolding"]
    )
    casts[level] = [node.op_type for node in onnx.load(f"{level}.onnx").graph.node].count("Cast")
    print(f"{level}: {casts[level]} Cast")
sys.exit(0 if casts == {"EXTENDED": 1, "LAYOUT": 1, "ALL": 0} else "changed")
PYTHON
