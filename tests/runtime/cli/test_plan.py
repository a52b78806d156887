"""`mar plan`: the table and the predicted time that it prints."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import pytest
from click.testing import CliRunner

from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import Manifest
from runtime.cli import plan as plan_cli
from runtime.cost.operations import iteration_costs, plan_costs
from runtime.errors import ArtifactError, RequestError
from runtime.generator import Generator
from runtime.model.engine_spec import BACKBONE, CONDITIONING, DENOISE, ENGINES
from runtime.sampling.plan import Plan, build_plan
from runtime.sampling.presets import resolve_sampling
from runtime.sampling.settings import Sampling


@pytest.fixture(scope="module")
def artifact(golden_artifacts: dict[str, pathlib.Path]) -> pathlib.Path:
    """The model of 16 tokens and 6 classes."""
    return golden_artifacts["small"]


@pytest.fixture(scope="module")
def manifest(artifact: pathlib.Path) -> Manifest:
    return Artifact(artifact).manifest


# The table.


def run(artifact: pathlib.Path, line: str) -> str:
    result = CliRunner().invoke(plan_cli.plan, f"{artifact} {line}", catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def rows_of(output: str) -> list[list[str]]:
    """The cells of every iteration's line."""
    header = next(number for number, line in enumerate(output.splitlines()) if line.lstrip().startswith("iteration "))
    cells = [line.split() for line in output.splitlines()[header + 1 :]]
    return cells[: cells.index([])]


def expected_rows(manifest: Manifest, plan: Plan, batch: int) -> list[list[str]]:
    rows, evaluations = [], 0
    for number, iteration in enumerate(plan.iterations, start=1):
        evaluations += iteration.table.steps
        costs = iteration_costs(manifest.model, iteration, batch).values()
        rows.append(
            [
                str(number),
                str(iteration.known),
                str(iteration.count),
                f"{iteration.guidance_scale:.2f}" if iteration.guidance_scale != 1 else "none",
                str(iteration.table.steps),
                str(evaluations),
                f"{sum(calls * cost.operations for calls, cost in costs) / 1e9:.1f}",
            ]
        )
    return rows


# What is asked for, and the same as settings of a request. The batch is large, or all figures would be 0.0.
LINES: list[tuple[str, dict[str, Any]]] = [
    ("", {}),
    ("--preset fast --cfg-scale 3", {"preset": "fast", "cfg_scale": 3.0}),
    ("--preset balanced --iterations 7", {"preset": "balanced", "iterations": 7}),
    (
        "--iterations 5 --mask-schedule linear --cfg-scale 2.5 --cfg-schedule constant --cfg-interval 0.2 0.7 "
        "--sampler ddim --eta 0.5 --diffusion-steps 20 --last-diffusion-steps 4 --step-schedule two-stage "
        "--start-timestep 900 --temperature 0.9 --token-order checkerboard",
        {
            "iterations": 5,
            "mask_schedule": "linear",
            "cfg_scale": 2.5,
            "cfg_schedule": "constant",
            "cfg_interval": (0.2, 0.7),
            "sampler": "ddim",
            "eta": 0.5,
            "diffusion_steps": "20",
            "last_diffusion_steps": 4,
            "step_schedule": "two-stage",
            "start_timestep": 900,
            "temperature": 0.9,
            "token_order": "checkerboard",
        },
    ),
]


@pytest.mark.parametrize(("line", "settings"), LINES, ids=[line[:20] or "own" for line, _ in LINES])
def test_without_time_there_is_a_row_for_each_iteration_and_totals(
    artifact: pathlib.Path, manifest: Manifest, line: str, settings: dict[str, Any]
) -> None:
    sampling = resolve_sampling(manifest.sampling, manifest.model, settings)
    plan = build_plan(16, sampling)
    output = run(artifact, f"{line} --no-time --batch-size 500")
    assert rows_of(output) == expected_rows(manifest, plan, 500)
    total = plan_costs(manifest.model, plan, 500)
    assert {name: f"{cost.operations / 1e12:.3f}" for name, cost in total.items()} != dict.fromkeys(ENGINES, "0.000")
    assert output.splitlines()[-1] == (
        f"500 images: {len(plan.iterations)} backbone passes, {plan.head_evaluations} head evaluations, "
        f"{sum(cost.operations for cost in total.values()) / 1e12:.3f} TFLOP ("
        f"backbone {total[BACKBONE].operations / 1e12:.3f}, conditioning {total[CONDITIONING].operations / 1e12:.3f}, "
        f"denoise {total[DENOISE].operations / 1e12:.3f})"
    )
    settings_line = output.splitlines()[0]
    for name, value in dataclasses.asdict(sampling).items():
        assert (f"{name} {value}" in settings_line) == (value is not None)
    assert " ms" not in output
    assert "predicted time" not in output


def test_without_time_no_engine_is_loaded(artifact: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_cli.Generator, "load", lambda *arguments, **named: pytest.fail("loaded"))
    assert run(artifact, "--no-time").splitlines()[-1].startswith("1 image: 16 backbone passes, 1600 head")


def test_with_time_there_is_a_column_of_milliseconds_and_a_sum(
    artifact: pathlib.Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def predicted(generator: Generator, plan: Plan, batch: int) -> list[dict[str, float]]:
        asked.update(plan=plan, batch=batch, description=generator.description)
        return [{BACKBONE: 0.1 * number, CONDITIONING: 0.02, DENOISE: 0.003} for number in range(len(plan.iterations))]

    monkeypatch.setattr(plan_cli, "predicted_seconds", predicted)
    output = run(artifact, "--iterations 3 --diffusion-steps 4 --batch-size 2 --threads 1")
    plan = build_plan(16, Sampling(iterations=3, diffusion_steps=4))
    assert (asked["batch"], len(asked["plan"].iterations), asked["plan"].diffusion_steps) == (2, 3, 4)
    assert "GFLOP       ms" in output
    times = ["23.0", "123.0", "223.0"]
    assert rows_of(output) == [[*row, time] for row, time in zip(expected_rows(manifest, plan, 2), times, strict=True)]
    assert output.splitlines()[-1] == (
        f"predicted time 0.37 s (backbone 0.30, conditioning 0.06, denoise 0.01) on {asked['description']}"
    )
    assert asked["description"].endswith("1 thread")


def test_the_engines_of_an_artifact_are_timed(artifact: pathlib.Path) -> None:
    output = run(artifact, "--iterations 3 --diffusion-steps 4 --cfg-scale 2 --threads 1")
    assert all(float(row[-1]) >= 0 for row in rows_of(output))
    assert len(rows_of(output)[0]) == 8
    assert "onnxruntime" in output.splitlines()[-1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--iterations 17", "iterations must lie in 1..16"),
        ("--batch-size 0", "the batch size at 100 diffusion steps must be a whole number in 1..4096, found 0"),
        ("--eta 0.5", "eta belongs to the samplers ddim and flow-euler"),
    ],
)
def test_settings_that_are_not_valid_are_refused(artifact: pathlib.Path, line: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        run(artifact, f"{line} --no-time")


def test_a_folder_that_is_not_an_artifact_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ArtifactError, match="not an artifact"):
        run(tmp_path, "--no-time")
