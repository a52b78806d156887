#!/usr/bin/env bash
# MNN 3.6.1. Seen on 2026-11-30, x86-64 with AVX-512, CPU.
#
# Guess: Gelu without approximation is x times the normal distribution function, by erf, to float32's rounding: 1e-7.
# Seen: MNN computes one function for it, for approximate="tanh", and for an Erf that is written out in the graph, also with
#   its highest precision: 4.7e-4 from the exact values at the most, and 1.8e-4 from those of tanh. So a transformer
#   in float32 has errors like those of fp16.
#
# Exits with 0 if this is seen again, with 1 if something else is.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --target "$work/packages" \
    numpy==2.4.6 onnx==1.23.2 protobuf==7.36.2 ml_dtypes==0.6.0 typing_extensions==4.16.0 MNN==3.6.1
cd "$work"
PYTHONPATH=packages python3 - << 'PYTHON'
import math
import sys

import _tools
import MNN
import numpy as np
import onnx

HEADER = '<ir_version: 10, opset_import: ["" : 21]>'
GRAPHS = {
    "exact": "y = Gelu (x)",
    "tanh": 'y = Gelu <approximate = "tanh"> (x)',
    "written out": """
        root = Constant <value = float {1.4142135}> ()  half = Constant <value = float {0.5}> ()
        one = Constant <value = float {1.0}> ()
        a = Div (x, root)  b = Erf (a)  c = Add (b, one)  d = Mul (x, c)  y = Mul (d, half)
    """,
}


def mnn_of(name, x):
    onnx.save(
        onnx.parser.parse_model(f"{HEADER} g (float[1,{x.size}] x) => (float[1,{x.size}] y) {{ {GRAPHS[name]} }}"),
        "graph.onnx",
    )
    _tools.mnnconvert(["mnnconvert", "-f", "ONNX", "--modelFile", "graph.onnx", "--MNNModel", "graph.mnn", "--bizCode", "x"])
    module = MNN.nn.load_module_from_file(
        "graph.mnn", ["x"], ["y"], precision_mode=MNN.expr.PrecisionMode.High, thread_num=1
    )
    (y,) = module.forward([MNN.expr.const(x, [1, x.size], MNN.expr.NCHW, MNN.expr.float)])
    return y.read().reshape(x.shape).astype(np.float64)


x = np.linspace(-5, 5, 1001, dtype=np.float32)
wide = x.astype(np.float64)
exact = wide / 2 * (1 + np.array([math.erf(each / math.sqrt(2)) for each in wide]))
tanh = wide / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)))
found = {name: mnn_of(name, x) for name in GRAPHS}
for name, y in found.items():
    print(f"{name}: at most {abs(y - exact).max():.1e} from erf, {abs(y - tanh).max():.1e} from tanh")
same = all((y == found["exact"]).all() for y in found.values())
seen = same and 3e-4 < abs(found["exact"] - exact).max() < 6e-4 and 1e-4 < abs(found["tanh"] - tanh).max() < 3e-4
sys.exit(0 if seen else "changed")
PYTHON
