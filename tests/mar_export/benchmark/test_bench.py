"""The command `mar bench` with real runners, which all generate the same image."""

from __future__ import annotations

import itertools
import json
import pathlib
import shlex
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from mar_export.benchmark.naive_onnx import NaiveEngines
from mar_export.benchmark.runners import RUNNERS
from mar_export.cli import bench as bench_cli
from runtime.artifact.artifact_folder import Artifact
from runtime.generator import Generator
from runtime.result import Result
from runtime.sampling.presets import PRESETS
from tests.helpers.benchmarks import (
    BACKBONE_COLOUR,
    DENOISE_COLOUR,
    STARTUP,
    WEIGHTS,
    assert_table_agrees,
    colours,
    runner_inputs,
    without_machine,
)
from tests.helpers.distance import relative_l2
from tests.helpers.golden_cases import GOLDEN_TOLERANCE
from training.models import reference_loop as published

pytestmark = pytest.mark.usefixtures("no_leftover_processes")


ON_A_GPU = ("onnxruntime-cuda", "tensorrt-cuda", "tensorrt-rtx-cuda")


class Ran(NamedTuple):
    output: str
    value: dict[str, Any]
    folder: pathlib.Path  # work/, bench.json and bench.png


@pytest.fixture(scope="module")
def ran(small_artifact: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("bench")
    # All but two that take minutes, and those that need a GPU.
    names = ["runtime", "runtime-openvino-cpu", "naive-onnx", "eager", "eager-optimized"]
    assert {*RUNNERS} - {*names} == {"compile", "aot-inductor", *(f"runtime-{name}" for name in ON_A_GPU)}
    options = [
        *itertools.chain.from_iterable(("--runner", name) for name in names),
        *("--preset", "own", "--preset", "turbo", "--class", 2, "--batch-size", 2, "--repeats", 2, "--threads", 1),
        *("--iterations", 4, "--diffusion-steps", 5, "--cfg-scale", 2),
        *("--work", folder / "work", "--report", folder / "bench.json", "--chart", folder / "bench.png"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        without_machine(patch)
        line = [str(small_artifact), *shlex.split(WEIGHTS), *map(str, options)]
        result = CliRunner().invoke(bench_cli.bench, line, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return Ran(result.output, json.loads((folder / "bench.json").read_text()), folder)


def test_runtimes_are_timed_with_every_preset_and_other_runners_with_the_first(ran: Ran) -> None:
    assert [(case["runner"], case["preset"]) for case in ran.value["cases"]] == [
        ("runtime", "own"),
        ("runtime", "turbo"),
        ("runtime-openvino-cpu", "own"),
        ("runtime-openvino-cpu", "turbo"),
        ("naive-onnx", "own"),
        ("eager", "own"),
        ("eager-optimized", "own"),
    ]
    assert ran.value["baseline"]["runner"] == "eager"
    own, turbo = ran.value["plans"]["own"], ran.value["plans"]["turbo"]
    assert own["sampling"]["sampler"] == "ddpm"
    assert turbo["sampling"]["sampler"] == PRESETS["turbo"]["sampler"] != "ddpm"
    for plan in (own, turbo):
        assert (plan["tokens"], plan["iterations"], plan["head_evaluations"]) == (16, 4, 20)
        assert plan["largest_guidance_scale"] == 1.9375
    assert (ran.value["batch"], ran.value["repeats"], ran.value["threads"]) == (2, 2, 1)
    assert ran.value["startup_seconds"] == STARTUP


def test_output_agrees_with_the_json_file(ran: Ran) -> None:
    assert_table_agrees(ran.output, ran.value)
    assert "first call of the backbone 0.75 s" in ran.output
    assert f"written to {ran.folder / 'bench.json'}" in ran.output
    assert f"chart written to {ran.folder / 'bench.png'}" in ran.output
    for case in ran.value["cases"]:
        times = case["seconds"]
        assert 0 < times["p10"] <= times["median"] <= times["p90"]
        stages = sum(seconds["mean"] for seconds in case["stage_seconds"].values())
        assert stages == pytest.approx(times["mean"])


def test_chart_shows_every_stage(ran: Ran) -> None:
    area = colours(ran.folder / "bench.png")
    assert area[(255, 255, 255)] < 0.95 * sum(area.values())
    assert min(area[BACKBONE_COLOUR], area[DENOISE_COLOUR]) > 100


def test_peak_memory_is_that_of_each_process(ran: Ran) -> None:
    """This process has PyTorch loaded, and so has eager's; the runtime's has not."""
    peaks = {name: one["peak_memory_bytes"] for name, one in ran.value["runners"].items()}
    assert peaks["eager"] > 150 * 2**20
    assert 20 * 2**20 < peaks["runtime"] < 0.6 * peaks["eager"]


def test_every_runner_reports_its_library(ran: Ran, small_artifact: pathlib.Path) -> None:
    runs_on = {name: runner["runs_on"] for name, runner in ran.value["runners"].items()}
    assert list(runs_on) == ["runtime", "runtime-openvino-cpu", "naive-onnx", "eager", "eager-optimized"]
    assert runs_on["runtime-openvino-cpu"].startswith("openvino ")
    for name, library in {"runtime": "onnxruntime", "naive-onnx": "onnxruntime", "eager": "torch"}.items():
        assert runs_on[name].startswith(f"{library} {ran.value['versions'][library]}")
    manifest = Artifact(small_artifact).manifest
    assert ran.value["engine_bytes"] == sum((small_artifact / name).stat().st_size for name in manifest.files)
    assert ran.value["provenance"] == manifest.provenance


def test_all_runners_generate_the_same_image(
    ran: Ran, small_artifact: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What each of them is timed on, here in this process."""
    generated: list[NDArray[Any]] = []
    stages = {
        "runtime": {"backbone", "conditioning", "denoise"},
        "runtime-openvino-cpu": {"backbone", "conditioning", "denoise"},
        "eager-optimized": {"backbone", "conditioning", "denoise"},
        "naive-onnx": {"backbone", "head"},
        "eager": {"backbone", "head"},
    }
    generate, sample, sample_naive = Generator.generate, published.sample, NaiveEngines.sample

    def spy(call: Callable[..., Any], image: Callable[[Any], NDArray[Any]]) -> Callable[..., Any]:
        def spied(*arguments: Any, **named: Any) -> Any:
            result = call(*arguments, **named)
            generated.append(image(result))
            return result

        return spied

    def raster(latents: NDArray[Any]) -> NDArray[Any]:
        return latents.transpose(0, 2, 3, 1).reshape(2, 16, 8)  # patches of one latent

    def of_result(result: Result) -> NDArray[Any]:
        return raster(result.latents)

    monkeypatch.setattr(Generator, "generate", spy(generate, of_result))
    monkeypatch.setattr(published, "sample", spy(sample, raster))
    monkeypatch.setattr(NaiveEngines, "sample", spy(sample_naive, lambda tokens: tokens))
    settings: dict[str, Any] = {
        "iterations": 4,
        "diffusion_steps": 5,
        "cfg_scale": 2.0,
        "start_timestep": 900,
        "preset": "balanced",
    }
    settings["token_order"] = "checkerboard"
    inputs = runner_inputs(small_artifact, naive=next(ran.folder.rglob("naive-head.onnx")).parent)
    for name, expected in stages.items():
        _, generate_batch = RUNNERS[name](inputs)
        assert generate_batch(settings).keys() == expected
    assert len(generated) == 5
    for other in generated[1:]:
        assert relative_l2(other, generated[0]) <= GOLDEN_TOLERANCE
    with Generator.load(small_artifact, threads=1) as generator:
        expected_result = generate(generator, [2, 0], **settings)
    assert relative_l2(generated[0], of_result(expected_result)) <= 1e-6
