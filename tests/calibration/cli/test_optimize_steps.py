"""The command `mar optimize-steps`."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from calibration.cli import optimize_steps as optimize_steps_module
from calibration.cli.optimize_steps import optimize_steps
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import MANIFEST
from runtime.errors import MarError
from runtime.generator import Generator
from runtime.sampling.presets import PRESETS
from runtime.sampling.settings import Sampling
from runtime.storage.files import write_json
from tests.helpers.step_search import SCHEDULE


@pytest.fixture
def artifact(golden_artifacts: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy that a test can change."""
    return pathlib.Path(shutil.copytree(golden_artifacts["small"], tmp_path / "artifact"))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(optimize_steps, [*map(str, arguments)], standalone_mode=False)


def error_message(result: Result) -> str:
    assert isinstance(result.exception, MarError), result.output
    assert "\n" not in str(result.exception)
    return str(result.exception)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short references of few images: longer ones are tested in tests/calibration/steps."""
    for module in ("steps.error_model", "steps.held_out_evaluation", "cli.optimize_steps"):
        monkeypatch.setattr(f"calibration.{module}.REFERENCE_STEPS", 60)
    for module in ("steps.held_out_evaluation", "cli.optimize_steps"):
        monkeypatch.setattr(f"calibration.{module}.EVAL_COUNT", 1)


OPTIONS = ("--budget-ms", 10_000, "--count", 2, "--iterations", 2, "--cfg-scale", 2, "--threads", 1)


@pytest.mark.usefixtures("quick")
def test_the_new_preset_can_be_used_like_any_other(artifact: pathlib.Path, tmp_path: pathlib.Path) -> None:
    before = Artifact(artifact).manifest
    result = run(artifact, *OPTIONS, "--report", tmp_path / "found.json")
    assert result.exception is None, result.output
    after = Artifact(artifact).manifest
    assert dataclasses.replace(after, presets={}) == before
    found = after.presets["calibrated"]
    assert isinstance(found.diffusion_steps, tuple)
    assert (len(found.diffusion_steps), found.iterations, found.cfg_scale) == (2, 2, 2.0)
    for row in ("calibrated", "uniform-", *PRESETS):
        assert f"\n{row}" in result.output
    assert f"{found.sampler}" in result.output
    assert "steps " + ",".join(map(str, found.diffusion_steps)) in result.output
    results = json.loads((tmp_path / "found.json").read_text())
    assert Sampling(**results["sampling"]) == found
    assert [row["name"] for row in results["evaluations"]][2:] == list(PRESETS)
    assert [row["name"] for row in results["evaluations"] if row["relative_l2"] is None] == ["exact"]
    with Generator.load(artifact, threads=1) as generator:
        assert [iteration.table.steps for iteration in generator.plan(preset="calibrated").iterations] == list(
            found.diffusion_steps
        )
    assert "already has a preset 'calibrated'" in error_message(run(artifact, *OPTIONS))
    again = run(artifact, *OPTIONS, "--force", "--out", tmp_path / "other")
    assert again.exception is None, again.output
    Artifact(tmp_path / "other").verify()
    assert set(Artifact(tmp_path / "other").manifest.presets) == {"calibrated"}
    assert Artifact(artifact).manifest == after


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "give either --budget-ms or --allowed-error, and not both"),
        ("--budget-ms 5 --allowed-error 0.1", "give either --budget-ms or --allowed-error, and not both"),
        ("--budget-ms -5", "--budget-ms must be a number in 0.001..1000000000.0, found -5.0"),
        ("--budget-ms 0", "found 0.0"),
        ("--budget-ms nan", "found nan"),
        ("--allowed-error -0.1", "--allowed-error must be a number in 1e-06..1, found -0.1"),
        ("--allowed-error inf", "found inf"),
        ("--budget-ms 5 --count 0", "--count must be a whole number in 1..10000, found 0"),
        ("--budget-ms 5 --name turbo", "found 'turbo'; choose another"),
        ("--budget-ms 5 --name a/b", "found 'a/b'"),
        ("--budget-ms 5 --preset nope", "preset must be one of exact, balanced, fast, turbo, instant, found 'nope'"),
        ("--budget-ms 5 --iterations 17", "iterations must lie in 1..16"),
        ("--budget-ms 0.01", "--budget-ms 0.01 is less than the fastest plan takes here, "),
        ("--budget-ms 5 --out {folder}", "exists and is no artifact"),
        ("--budget-ms 5 --report {folder}", "it is a folder"),
    ],
)
def test_a_wrong_use_is_refused_in_one_line_and_changes_nothing(
    artifact: pathlib.Path, tmp_path: pathlib.Path, line: str, message: str
) -> None:
    before = (artifact / MANIFEST).read_bytes()
    assert message in error_message(run(artifact, *line.format(folder=tmp_path).split(), "--threads", 1))
    assert (artifact / MANIFEST).read_bytes() == before
    assert list(tmp_path.iterdir()) == [artifact]


@pytest.mark.parametrize("option", ["--sampler ddim", "--diffusion-steps 5", "--eval-count 5", "--precision int8"])
def test_the_settings_that_are_searched_for_are_no_options(artifact: pathlib.Path, option: str) -> None:
    result = run(artifact, "--budget-ms", 5, *option.split())
    assert isinstance(result.exception, click.NoSuchOption)
    assert result.exception.option_name == option.split(maxsplit=1)[0]


@pytest.mark.usefixtures("quick")
def test_changes_of_the_manifest_during_the_search_are_kept(
    artifact: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest is read again before it is written."""
    find_steps = optimize_steps_module.find_steps

    def slow(*arguments: Any) -> Any:
        manifest = Artifact(artifact).manifest
        write_json(artifact / MANIFEST, dataclasses.replace(manifest, presets={"other": SCHEDULE}).to_dict())
        return find_steps(*arguments)

    monkeypatch.setattr(optimize_steps_module, "find_steps", slow)
    assert run(artifact, *OPTIONS).exception is None
    assert set(Artifact(artifact).manifest.presets) == {"other", "calibrated"}


@pytest.mark.usefixtures("quick")
def test_an_allowed_error_that_no_plan_meets_leaves_the_artifact_unchanged(artifact: pathlib.Path) -> None:
    before = (artifact / MANIFEST).read_bytes()
    options = ("--allowed-error", 1e-6, "--count", 2, "--iterations", 2, "--threads", 1)
    assert "no plan keeps the error within 1e-06: the best has " in error_message(run(artifact, *options))
    assert (artifact / MANIFEST).read_bytes() == before
