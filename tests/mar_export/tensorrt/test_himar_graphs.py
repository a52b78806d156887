"""The graphs of a Hi-MAR as engines of TensorRT-RTX, which builds without a GPU."""

from __future__ import annotations

import pathlib
import platform
import sys

import pytest
import torch

from mar_export.graphs.engine_modules import loop_modules
from mar_export.onnx_export.mixed_precision import DTYPES, attention_in_products, to_precision
from mar_export.tensorrt.optimization_profiles import axis_ranges
from runtime.model.families import engine_specs
from runtime.sampling.constraints import default_sampling, plan_for
from tests.helpers.himar_cases import TINY_HIMAR
from tests.helpers.tensorrt_builds import build_graph
from training.models.himar import Himar

if not (sys.platform == "linux" and platform.machine() == "x86_64"):
    pytest.importorskip("tensorrt_rtx")

BATCH = (1, 1, 4)


# Each engine of the full grid, and the other backbone, once; behind `slow` is each in every precision.
@pytest.mark.parametrize(
    ("engine", "precision"),
    [
        ("backbone", "fp32"),
        ("backbone2", "fp16"),
        ("conditioning2", "bf16"),
        ("denoise2", "bf16"),
        *(
            pytest.param(engine, precision, marks=pytest.mark.slow)
            for engine in ("backbone", "backbone2", "conditioning2", "denoise2")
            for precision in DTYPES
        ),
    ],
)
def test_a_graph_builds(engine: str, precision: str, tmp_path: pathlib.Path) -> None:
    torch.manual_seed(0)
    spec, module = engine_specs(TINY_HIMAR)[engine], loop_modules(Himar(**TINY_HIMAR.to_dict()))[engine]
    lowered = attention_in_products(module) if precision == "fp32" else to_precision(module, DTYPES[precision])
    ranges = axis_ranges(
        [plan_for(TINY_HIMAR, default_sampling(TINY_HIMAR).changed({"cfg_scale": 2.0}))], BATCH, spec.phase
    )
    assert build_graph(lowered, spec, TINY_HIMAR, tmp_path / f"{engine}.onnx", ranges, BATCH) > 10_000
