"""The graphs of a NOVA as engines of TensorRT-RTX, which builds without a GPU."""

from __future__ import annotations

import pathlib
import platform
import sys

import pytest
import torch

from mar_export.graphs.engine_modules import loop_modules
from mar_export.onnx_export.mixed_precision import DTYPES, to_precision
from mar_export.tensorrt.optimization_profiles import axis_ranges, prompt_ranges
from runtime.model.engine_spec import BACKBONE, CONDITION, CONDITIONING, DENOISE, TEXT_ENCODER
from runtime.model.families import engine_specs, optional_specs
from runtime.model.nova_config import FLOW, NovaConfig, NovaScheduler
from runtime.sampling.constraints import default_sampling, plan_for
from tests.helpers.nova_artifacts import write_text_encoder
from tests.helpers.tensorrt_builds import BATCH, build_graph
from training.checkpoints.text_encoder import load_text_encoder
from training.models.nova import Nova

if not (sys.platform == "linux" and platform.machine() == "x86_64"):
    pytest.importorskip("tensorrt_rtx")

TABLES, ROTARY = "tables", "rotary"
"""How a model knows positions."""


def tiny(positions: str) -> NovaConfig:
    """A model with every kind of block once: of the condition and of each half of the backbone, the last one apart."""
    return NovaConfig(
        image_height=128,
        image_width=64,
        image_stride=8,
        image_dim=4,
        text_token_dim=24,
        text_token_len=16,
        width=64,
        heads=2,
        condition_depth=2,
        image_depth=3,
        head_width=40,
        head_depth=1,
        rotary=positions == ROTARY,
        scheduler=NovaScheduler(FLOW),
    )


# Tracing takes seconds, so here is each engine once, and behind `slow` are all.
@pytest.mark.parametrize(
    ("positions", "engine", "precision"),
    [
        (ROTARY, CONDITION, "fp16"),
        (ROTARY, BACKBONE, "bf16"),
        (TABLES, CONDITIONING, "bf16"),
        (TABLES, DENOISE, "fp16"),
        (TABLES, TEXT_ENCODER, "fp16"),
        *(
            pytest.param(positions, engine, precision, marks=pytest.mark.slow)
            for positions in (TABLES, ROTARY)
            for engine in (CONDITION, BACKBONE, CONDITIONING, DENOISE, TEXT_ENCODER)
            for precision in ("fp16", "bf16")
        ),
    ],
)
def test_a_graph_builds(positions: str, engine: str, precision: str, tmp_path: pathlib.Path) -> None:
    config = tiny(positions)
    if engine == TEXT_ENCODER:
        pytest.importorskip("transformers")
        write_text_encoder(tmp_path / "text_encoder", config.text_token_dim)
        spec = optional_specs(config)[engine]
        module = load_text_encoder(tmp_path / "text_encoder", config).module
    else:
        torch.manual_seed(0)
        spec, module = engine_specs(config)[engine], loop_modules(Nova(**config.to_dict()))[engine]
    ranges = axis_ranges([plan_for(config, default_sampling(config))], BATCH) | prompt_ranges(config)
    lowered = to_precision(module, DTYPES[precision])
    assert build_graph(lowered, spec, config, tmp_path / f"{engine}.onnx", ranges) > 10_000
