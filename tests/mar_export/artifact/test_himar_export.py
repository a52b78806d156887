"""A Hi-MAR as an artifact: its engines draw what the published code drew, on both backends of a processor."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import shutil
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from calibration.quantization.collect import collect
from calibration.quantization.quantize import QuantizationConfig, quantize
from mar_export.artifact.export import export_artifact
from mar_export.tensorrt.artifact_builds import BuildOptions, build_engines
from mar_export.tensorrt.engine_builder import BuilderFlags, TensorRTBuilder
from mar_export.tensorrt.optimization_profiles import axis_ranges, input_shapes
from runtime.artifact.artifact_folder import Artifact
from runtime.generator import Generator
from runtime.loops.himar_loop import run_himar_plan
from runtime.model.latents import patchify
from runtime.sampling.constraints import plan_for
from tests.fakes.tensorrt.script import TensorRTScript
from tests.helpers.artifacts import made_once
from tests.helpers.distance import relative_l2
from tests.helpers.golden_cases import GOLDEN_TOLERANCE
from tests.helpers.himar_cases import CASES, himar_case, himar_checkpoint
from tests.helpers.simulated_gpu import PlanWriter


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The golden model, exported."""

    def export(folder: pathlib.Path) -> None:
        export_artifact(himar_checkpoint(), folder / "artifact", lambda line: None)

    return made_once(tmp_path_factory, "himar-artifact", export) / "artifact"


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("file", CASES)
def test_small_tokens_z_and_latents_are_the_published_ones(artifact: pathlib.Path, file: str, backend: str) -> None:
    case = himar_case(file)
    arrays, order, count = case.arrays, case.order, 16
    after: list[NDArray[np.float32]] = []
    with Generator.load(artifact, backend=backend, threads=1) as generator:

        def keep(done: int, total: int) -> None:
            unfinished = generator._unfinished
            assert unfinished is not None
            after.append(unfinished.tokens().swapaxes(0, 1).copy())

        engines, inner = generator.engines, generator.engines.backbone2
        assert inner is not None
        seen: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []

        def watched(**inputs: NDArray[np.generic]) -> tuple[NDArray[np.generic], ...]:
            outputs = inner(**inputs)
            seen.append((np.array(inputs["small_z"]), outputs[0]))
            return outputs

        watching = dataclasses.replace(engines, backbone2=watched)
        generator.loop = functools.partial(run_himar_plan, watching, himar_checkpoint().model.config)
        result = generator.generate(arrays["labels"], order=order, noise=case.noise, progress=keep, **case.settings)
    for tokens, expected in zip(after, arrays["tokens_small_after"], strict=False):
        known = order[:, :count, None]
        drawn = np.take_along_axis(expected, known, 1)
        assert relative_l2(tokens[:, :count] * (drawn != 0), drawn) <= GOLDEN_TOLERANCE
    small_z = np.take_along_axis(arrays["small_z"], order[:, :count, None], 1)
    assert relative_l2(seen[0][0].swapaxes(0, 1), small_z) <= GOLDEN_TOLERANCE
    for number, expected in zip(arrays["z_big_steps"], arrays["z_big"], strict=True):
        places = np.tile(arrays["generation_order_big"], (len(expected) // len(order), 1))[..., None]
        z = seen[number][1].swapaxes(0, 1)
        assert relative_l2(z, np.take_along_axis(expected, places, 1)) <= GOLDEN_TOLERANCE
    assert relative_l2(result.latents, arrays["latents_float64"]) <= GOLDEN_TOLERANCE
    assert patchify(result.latents, 1).shape == (2, 256, 8)


def test_the_manifest_names_the_family_and_its_engines(artifact: pathlib.Path) -> None:
    manifest = Artifact(artifact).manifest
    assert manifest.model == himar_checkpoint().model.config
    assert manifest.to_dict()["model"]["family"] == "himar"
    assert [*manifest.engines] == ["backbone", "conditioning", "denoise", "backbone2", "conditioning2", "denoise2"]


@pytest.mark.parametrize("cuda_graphs", [True, False], ids=["graphs", "calls"])
@pytest.mark.parametrize("sampler", ["ddpm", "dpm++2m"])
def test_a_simulated_gpu_draws_what_the_host_draws(
    artifact: pathlib.Path, tensorrt: TensorRTScript, tmp_path: pathlib.Path, cuda_graphs: bool, sampler: str
) -> None:
    copy = pathlib.Path(shutil.copytree(artifact, tmp_path / "artifact"))
    settings: dict[str, Any] = {
        "iterations": 3,
        "diffusion_steps": 5,
        "cfg_scale": 2.0,
        "sampler": sampler,
        "low_res_iterations": 4,
        "low_res_diffusion_steps": 4,
    }
    opened = Artifact(copy)
    plans = [plan_for(opened.manifest.model, opened.manifest.resolve_sampling(settings))]
    builder: Any = PlanWriter()
    build_engines(opened, builder, plans, BuildOptions((1, 2, 2), force=True), lambda text: None)
    request: dict[str, Any] = {"labels": [3, 0], "seed": 5, **settings}
    with Generator.load(copy, threads=1) as host:
        expected = host.generate(**request).latents
    with Generator.load(copy, backend="tensorrt", cuda_graphs=cuda_graphs) as gpu:
        for _ in range(2):
            assert relative_l2(gpu.generate(**request).latents, expected) <= GOLDEN_TOLERANCE


def test_the_dit_in_int8_draws_nearly_the_same_and_builds(artifact: pathlib.Path, tmp_path: pathlib.Path) -> None:
    source, out = Artifact(artifact), tmp_path / "int8"
    sampling = source.manifest.resolve_sampling(
        {
            "iterations": 2,
            "diffusion_steps": 4,
            "start_timestep": 900,
            "low_res_iterations": 2,
            "low_res_diffusion_steps": 2,
        }
    )
    statistics = collect(source, 1, tmp_path / "statistics.npz", sampling, 1, lambda images: None)
    config = QuantizationConfig("int8", ["denoise2"], sampling, target_sqnr=10, eval_images=1, images=1)
    manifest = quantize(source, statistics, out, config, lambda line: None).manifest
    assert manifest.precision == "int8"
    assert manifest.parity["denoise2"]["sqnr_db"] > 10
    graph = out / "denoise2.onnx"
    assert "QuantizeLinear" in {node.op_type for node in ir.load(graph).graph}
    spec = manifest.specs["denoise2"]
    shapes = input_shapes(spec, axis_ranges([plan_for(manifest.model, sampling)], (1, 1, 2), spec.phase), (1, 1, 2))
    plan = TensorRTBuilder("tensorrt-rtx", ["sm_89"]).build(graph, shapes, BuilderFlags(), None, None)
    assert len(bytes(plan)) > 10_000
