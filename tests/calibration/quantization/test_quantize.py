"""Quantized artifacts: their images, their manifests, and the layers that stay in float32."""

from __future__ import annotations

import json
import pathlib
import platform
import shutil
from collections.abc import Sequence

import onnx_ir as ir
import pytest
from click.testing import CliRunner

from calibration.quantization.quantizable_layers import quantizable_layers
from calibration.quantization.quantize import quantize
from calibration.quantization.statistics import ActivationStatistics
from mar_export.tensorrt.artifact_builds import BuildOptions, build_engines, plans_to_build
from mar_export.tensorrt.engine_builder import TensorRTBuilder
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import MANIFEST, QUANTIZED_PRECISIONS
from runtime.cli.inspect import inspect
from runtime.errors import CalibrationError, RequestError
from runtime.generator import Generator
from runtime.model.engine_spec import BACKBONE, CONDITIONING, DENOISE, ENGINES
from runtime.sampling.settings import Sampling
from tests.helpers.distance import relative_l2
from tests.helpers.quantized_artifacts import FLOAT32_LAYERS, REQUEST, SAMPLING, quantization_config


def distance_from_float32(small: Artifact, low: pathlib.Path, backend: str) -> float:
    """The distance of the latents of four images."""
    with (
        Generator.load(small.path, threads=1) as exact,
        Generator.load(low, backend=backend, threads=1) as quantized,
    ):
        expected = exact.generate([0, 1, 2, 3], **REQUEST).latents
        return relative_l2(quantized.generate([0, 1, 2, 3], **REQUEST).latents, expected)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_images_are_close_to_those_in_float32_and_the_manifest_stores_the_distance(
    small: Artifact, quantized_artifacts: dict[str, pathlib.Path], precision: str
) -> None:
    distance = distance_from_float32(small, quantized_artifacts[precision], "onnxruntime")
    assert 1e-4 < distance < 0.2
    manifest = Artifact(quantized_artifacts[precision]).manifest
    assert manifest.precision == precision
    assert manifest.provenance["calibration_images"] == 10
    assert manifest.calibration_note(SAMPLING) is None
    assert "calibrated for iterations 4," in (manifest.calibration_note(Sampling()) or "")
    report = manifest.parity["generation"]
    assert report["relative_l2"] == pytest.approx(distance, rel=1.0)
    assert report["relative_l2"] <= report["tolerance"]


@pytest.mark.parametrize(("precision", "most"), [("int8", 0.2), ("fp8", 0.2), ("w8", 0.05), ("w4", 0.5)])
def test_images_by_openvino_are_as_close(
    small: Artifact, quantized_artifacts: dict[str, pathlib.Path], precision: str, most: float
) -> None:
    assert 1e-4 < distance_from_float32(small, quantized_artifacts[precision], "openvino") < most


@pytest.mark.parametrize("engines", [ENGINES, [BACKBONE]], ids=["all", "one"])
def test_inspect_prints_what_was_compared_and_a_tolerance_only_if_one_applies(
    small: Artifact, statistics: ActivationStatistics, tmp_path: pathlib.Path, engines: Sequence[str]
) -> None:
    def inspected() -> str:
        return CliRunner().invoke(inspect, str(path.parent), catch_exceptions=False).output

    config = quantization_config(engines=engines, target_sqnr=10, eval_images=2)
    quantize(small, statistics, tmp_path / "out", config, lambda _: None)
    path = tmp_path / "out" / MANIFEST
    printed = inspected()
    manifest = json.loads(path.read_text())
    parity = manifest["parity"]
    assert {name for name, report in parity.items() if "tolerance" not in report} == set(engines)
    found = {name: f"{report['relative_l2']:.1e} ({report['sqnr_db']:.0f} dB)" for name, report in parity.items()}
    lines = [line.strip() for line in printed.splitlines() if "relative L2" in line]
    assert lines == [
        f"relative L2 of latents from those in float32 {found[name]}"
        if name in engines
        else f"relative L2 from eager PyTorch {found[name]}, allowed 1e-05"
        for name in ENGINES
    ] + [f"complete generation: relative L2 of latents from those in float32 {found['generation']}, allowed 3.2e-01"]
    for name in engines:  # as in manifests of an earlier format
        parity[name]["tolerance"] = 1.0
    path.write_text(json.dumps(manifest))
    assert inspected() == printed


def test_only_the_requested_engines_are_quantized(
    small: Artifact, statistics: ActivationStatistics, tmp_path: pathlib.Path
) -> None:
    quantize(small, statistics, tmp_path / "out", quantization_config(engines=[BACKBONE]), lambda _: None)
    for engine in ENGINES:
        same = (tmp_path / "out" / f"{engine}.onnx").read_bytes() == small.engine_file(engine).read_bytes()
        assert same is (engine != BACKBONE)


def test_nothing_is_written_if_the_target_cannot_be_reached(
    small: Artifact, statistics: ActivationStatistics, tmp_path: pathlib.Path
) -> None:
    config = quantization_config(target_sqnr=150, eval_images=2)
    message = r"in int8 the SQNR of the latents is \d+\.\d dB, less than --target-sqnr 150\.0; nothing was written"
    with pytest.raises(CalibrationError, match=message):
        quantize(small, statistics, tmp_path / "out", config, lambda _: None)
    assert list(tmp_path.iterdir()) == []


def test_the_most_sensitive_layers_stay_in_float32_until_the_target_is_reached(
    small: Artifact, statistics: ActivationStatistics, tmp_path: pathlib.Path
) -> None:
    log: list[str] = []
    config = quantization_config(engines=[CONDITIONING, DENOISE], eval_images=2, rank=True)
    everything = quantize(small, statistics, tmp_path / "all", config, log.append)
    distances = [each.relative_l2 for each in everything.ranking]
    assert distances == sorted(distances, reverse=True)
    assert {each.layer for each in everything.ranking} == {
        f"{engine}/{layer.name}"
        for engine in (CONDITIONING, DENOISE)
        for layer in quantizable_layers(ir.load(small.engine_file(engine)).graph)
        if layer.name not in FLOAT32_LAYERS[engine]
    }
    target = everything.manifest.parity["generation"]["sqnr_db"] + 3
    config = quantization_config(engines=[CONDITIONING, DENOISE], eval_images=2, target_sqnr=target)
    better = quantize(small, statistics, tmp_path / "better", config, log.append)
    kept = better.manifest.provenance["kept_in_float32"].split(", ")
    assert kept[0] in {each.layer for each in everything.ranking}
    assert everything.ranking[0].layer in kept
    assert len(kept) < len(everything.ranking)
    assert better.manifest.parity["generation"]["sqnr_db"] >= target
    for layer in kept:
        engine, _, name = layer.partition("/")
        assert name in {each.name for each in quantizable_layers(ir.load(tmp_path / "better" / f"{engine}.onnx").graph)}


def test_a_share_of_the_layers_stays_in_float32(
    small: Artifact, statistics: ActivationStatistics, tmp_path: pathlib.Path
) -> None:
    config = quantization_config(engines=[DENOISE], eval_images=1, keep_share=0.3)
    result = quantize(small, statistics, tmp_path / "out", config, lambda _: None)
    count = -(-len(result.ranking) * 3 // 10)
    assert result.manifest.provenance["kept_in_float32"].split(", ") == sorted(
        each.layer for each in result.ranking[:count]
    )


@pytest.mark.skipif(platform.machine() != "x86_64", reason="TensorRT-RTX has a package for x86-64 alone")
@pytest.mark.parametrize("architecture", ["sm_86", "sm_89", "sm_120"])
@pytest.mark.parametrize("precision", QUANTIZED_PRECISIONS)
def test_tensorrt_builds_every_precision_that_the_gpu_supports(
    quantized_artifacts: dict[str, pathlib.Path], tmp_path: pathlib.Path, precision: str, architecture: str
) -> None:
    path = pathlib.Path(shutil.copytree(quantized_artifacts[precision], tmp_path / "artifact"))
    artifact = Artifact(path)
    builder = TensorRTBuilder("tensorrt-rtx", [architecture])
    plans = plans_to_build(artifact, {"iterations": 4, "diffusion_steps": 5, "cfg_scale": 2.0})

    def build() -> None:
        build_engines(artifact, builder, plans, BuildOptions((1, 1, 2)), lambda _: None)

    if (precision, architecture) == ("fp8", "sm_86"):
        with pytest.raises(
            RequestError, match=r"is in fp8, but sm_86 has products in fp32, fp16, int8, bf16, w8, w4 only"
        ):
            build()
        assert not (path / "engines").exists()
    else:
        build()
        assert {build.engine for build in Artifact(path).manifest.builds} == set(ENGINES)
