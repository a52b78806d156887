#!/usr/bin/env bash
# OpenVINO 2026.4.1. Seen on 2026-11-29, x86-64 with AVX-512, CPU.
#
# Guess: CACHE_DIR treats a graph with external weights alike in both ways of compiling it: either it compares the
#   weights, or it does not.
# Seen: compile_model of a path takes the old compiled model although the file of the weights has changed, without an
#   error. read_model and then compile_model of what was read notices the change. Size and time of the file are the same
#   in both cases.
#
# Exits with 0 if this is seen again, with 1 if something else is.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --target "$work/packages" \
    numpy==2.4.6 onnx==1.23.2 protobuf==7.36.2 ml_dtypes==0.6.0 typing_extensions==4.16.0 openvino==2026.4.1
cd "$work"
PYTHONPATH=packages python3 - << 'PYTHON'
import os
import pathlib
import sys

import numpy as np
import onnx
import openvino


def product(way, folder):
    """Compile the graph in the folder, and multiply a row of ones by its weights."""
    core, graph = openvino.Core(), str(folder / "graph.onnx")
    compiled = core.compile_model(
        graph if way == "path" else core.read_model(graph), "CPU", {"CACHE_DIR": str(folder / "cache")}
    )
    return compiled.create_infer_request().infer([np.ones((1, 256), np.float32)])[0].copy()


def double(file):
    """Double the weights in place, and put the time of the file back."""
    before = file.stat()
    weights = (np.frombuffer(file.read_bytes(), np.float32) * 2).tobytes()
    with file.open("r+b") as opened:
        opened.write(weights)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


found = {}
for way in ("path", "model"):
    folder = pathlib.Path(way)
    folder.mkdir()
    text = '<ir_version: 10, opset_import: ["" : 21]> g (float[N,256] x) => (float[N,256] y) { y = MatMul (x, w) }'
    graph = onnx.parser.parse_model(text)
    weights = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
    graph.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    onnx.save(graph, folder / "graph.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    before = product(way, folder)
    double(folder / "weights")
    found[way] = float((product(way, folder) / before).mean())
print("weights were doubled; outputs are multiplied by:", found)
sys.exit(0 if found == {"path": 1.0, "model": 2.0} else "changed")
PYTHON
