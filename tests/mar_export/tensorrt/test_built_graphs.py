"""Engines that TensorRT-RTX builds from real graphs, which needs no GPU."""

from __future__ import annotations

import importlib
import pathlib
import platform
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from mar_export.tensorrt.artifact_builds import plans_to_build
from mar_export.tensorrt.engine_builder import BuilderFlags, TensorRTBuilder
from mar_export.tensorrt.optimization_profiles import axis_ranges, input_shapes
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import FLOAT_PRECISIONS, FileEntry
from runtime.errors import BackendError
from runtime.model.config import ModelConfig
from runtime.model.engine_spec import (
    BACKBONE,
    CONDITIONING,
    DECODER,
    DENOISE,
    ENCODER,
    ENGINES,
    tokenizer_specs,
)
from runtime.model.families import engine_specs, optional_specs
from runtime.model.family_config import FamilyConfig
from runtime.sampling.plan import build_plan
from runtime.sampling.settings import Sampling
from runtime.storage.files import sha256
from tests.helpers.golden_cases import GOLDEN
from tests.helpers.tensorrt_builds import (
    BATCH,
    RTX_GPUS,
    TINY_KL,
    build_with,
    manifest_of,
    plan_files,
    write_artifact,
)

if not (sys.platform == "linux" and platform.machine() == "x86_64"):
    pytest.importorskip("tensorrt_rtx")


@pytest.mark.parametrize("model", ["small", "patch2"])
def test_every_graph_of_a_golden_model_builds_and_is_listed_with_hash_and_profile(
    rtx_artifacts: dict[str, pathlib.Path], model: str
) -> None:
    path = rtx_artifacts[model]
    artifact = Artifact(path)
    artifact.verify(builds=True)
    manifest = artifact.manifest
    assert [build.engine for build in manifest.builds] == list(ENGINES)
    ranges = axis_ranges(plans_to_build(artifact, {}), BATCH)
    for build in manifest.builds:
        assert (build.target, build.architectures, build.precision) == ("tensorrt-rtx", RTX_GPUS, "fp32")
        assert build.library == importlib.import_module("tensorrt_rtx").__version__
        assert build.flags == {}
        assert build.graph_sha256 == manifest.graph_sha256(build.engine)
        assert build.profile == input_shapes(manifest.specs[build.engine], ranges, BATCH)
        content = path / build.file
        assert manifest.files[build.file] == FileEntry(content.stat().st_size, sha256(content))
        assert content.stat().st_size > 100_000
    assert {build.file for build in manifest.builds} == plan_files(path)
    assert len(plan_files(path)) == len(ENGINES)


# Tracing takes seconds, so here is each engine once in one lower precision, and behind `slow` are all.
LOWERED = ((BACKBONE, "fp16"), (CONDITIONING, "fp16"), (DENOISE, "bf16"), (DECODER, "bf16"))


@pytest.mark.parametrize(("engine", "precision"), LOWERED)
def test_graph_in_lower_precision_builds(engine: str, precision: str, tmp_path: pathlib.Path) -> None:
    export_tiny_kl(tmp_path, precision, [engine])
    spec = {**engine_specs(TINY_KL), **tokenizer_specs(TINY_KL)}[engine]
    ranges = axis_ranges([build_plan(TINY_KL.tokens, Sampling(cfg_scale=2.0))], BATCH)
    builder = TensorRTBuilder("tensorrt-rtx", RTX_GPUS)
    plan = builder.build(
        tmp_path / f"{engine}.onnx", input_shapes(spec, ranges, BATCH), BuilderFlags(), timing_cache=None, progress=None
    )
    assert len(bytes(plan)) > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("precision", FLOAT_PRECISIONS)
@pytest.mark.parametrize("model", ["small", "patch2", "kl"])
def test_every_graph_of_every_model_in_every_precision_builds(
    model: str, precision: str, tmp_path: pathlib.Path
) -> None:
    if model == "kl":
        config = TINY_KL
        export_tiny_kl(tmp_path, precision, [*ENGINES, DECODER, ENCODER])
    else:
        config = export_golden(tmp_path, model, precision)
    path = write_artifact(tmp_path, config, "kl" if model == "kl" else "none", precision)
    build_with(TensorRTBuilder("tensorrt-rtx", RTX_GPUS), path)
    Artifact(path).verify(builds=True)
    builds = manifest_of(path).builds
    assert [build.engine for build in builds] == [*ENGINES, *([DECODER, ENCODER] if model == "kl" else [])]
    assert {build.precision for build in builds} == {precision}


def export_tiny_kl(folder: pathlib.Path, precision: str, engines: Sequence[str]) -> None:
    import torch

    from mar_export.graphs.engine_modules import graph_modules
    from training.models.autoencoder import AutoencoderKL, VAEConfig
    from training.models.mar import MAR

    torch.manual_seed(0)
    autoencoder = VAEConfig(width=32, multipliers=(1, 1), latent_channels=4, attention_levels=())
    modules = graph_modules(MAR(**TINY_KL.to_dict()), AutoencoderKL(autoencoder), encoder=True)
    export_modules(folder, TINY_KL, precision, {name: modules[name] for name in engines})


def export_golden(folder: pathlib.Path, model: str, precision: str) -> ModelConfig:
    from mar_export.graphs.engine_modules import graph_modules
    from training.checkpoints.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(GOLDEN / model / "checkpoint-last.pth", GOLDEN / model / "meta.json")
    export_modules(folder, checkpoint.model.config, precision, graph_modules(checkpoint.model, None, encoder=False))
    return checkpoint.model.config


def export_modules(folder: pathlib.Path, config: FamilyConfig, precision: str, modules: Mapping[str, Any]) -> None:
    from mar_export.onnx_export.exporter import export_graph
    from mar_export.onnx_export.mixed_precision import DTYPES, to_precision

    specs = {**engine_specs(config), **optional_specs(config), **tokenizer_specs(config)}
    for name, module in modules.items():
        part = module if precision == "fp32" else to_precision(module, DTYPES[precision])
        export_graph(part, specs[name], config, folder / f"{name}.onnx")


def test_real_library_reports_its_progress(golden_artifacts: dict[str, pathlib.Path]) -> None:
    seen: list[tuple[str, int, int]] = []
    artifact = Artifact(golden_artifacts["small"])
    sizes = input_shapes(artifact.manifest.specs[DENOISE], axis_ranges(plans_to_build(artifact, {}), BATCH), BATCH)
    TensorRTBuilder("tensorrt-rtx", ["sm_89"]).build(
        artifact.engine_file(DENOISE), sizes, BuilderFlags(), None, lambda *step: seen.append(step)
    )
    assert seen
    assert all(0 <= done <= of for _, done, of in seen)
    for phase in {phase for phase, _, _ in seen}:
        assert next(done for name, done, _ in seen if name == phase) == 0


def test_failure_of_the_real_library_is_one_line_with_its_log(
    golden_artifacts: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    artifact = Artifact(golden_artifacts["small"])
    sizes = input_shapes(artifact.manifest.specs[DENOISE], axis_ranges(plans_to_build(artifact, {}), BATCH), BATCH)
    graph = tmp_path / "denoise.onnx"
    graph.write_bytes(artifact.engine_file(DENOISE).read_bytes()[:1000])
    with pytest.raises(BackendError) as caught:
        TensorRTBuilder("tensorrt-rtx", ["sm_89"]).build(graph, sizes, BuilderFlags(), None, lambda *step: None)
    message = str(caught.value)
    assert message.startswith("tensorrt-rtx 1.")
    assert "denoise.onnx" in message
    assert " | " in message  # what the library logged
    assert "\n" not in message
