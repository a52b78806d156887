"""The settings, times, chart and command of the study of quality against time."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from mar_export.benchmark import study
from mar_export.benchmark.study import (
    Setting,
    Study,
    preset_settings,
    run_study,
    sampler_settings,
    summarize_study,
    time_settings,
)
from mar_export.benchmark.study_chart import save_study_chart
from mar_export.cli import study as study_cli
from runtime.errors import MarError
from runtime.generator import Generator
from runtime.sampling.presets import PRESETS
from runtime.sampling.samplers import DIFFUSION_SAMPLERS
from runtime.storage.stored_files import HASH_KEY
from runtime.workers.worker_group import Workers
from tests.helpers.studies import OTHER, QUICK, EvaluatedSettings, figures, ignore
from training.models.model_sizes import model_config

pytestmark = pytest.mark.usefixtures("study_is_not_kept")


def test_samplers_are_compared_at_the_same_numbers_of_steps_without_guidance(tiny_study: Study) -> None:
    settings = sampler_settings(model_config("pixel_small"))
    assert len({setting.name for setting in settings}) == len(settings) == len(DIFFUSION_SAMPLERS) * len(study.STEPS)
    with Generator.load(tiny_study.artifact, threads=1) as generator:
        for setting in settings:
            sampler, steps = setting.name.split()
            overrides = {**setting.sampling, "iterations": 4}  # of the four tokens that these images have
            sampling = generator.sampling(**overrides)
            assert (sampling.sampler, sampling.diffusion_steps, sampling.start_timestep) == (sampler, int(steps), None)
            plan = generator.plan(**overrides)
            assert not any(iteration.guided for iteration in plan.iterations)
            assert plan.head_evaluations == 4 * int(steps)


def test_presets_are_compared_under_their_own_names() -> None:
    settings = preset_settings(())
    assert [setting.name for setting in settings] == list(PRESETS)
    assert [dict(setting.sampling) for setting in settings] == [{"preset": name} for name in PRESETS]


def test_file_names_of_all_settings_differ(tmp_path: pathlib.Path) -> None:
    settings = preset_settings(()) + sampler_settings(model_config("pixel_small"))
    files = {study._file(tmp_path, setting).name for setting in settings}
    assert len(files) == len(settings)
    assert all(name.removesuffix(".json").replace("-", "").isalnum() for name in files)


def test_settings_are_timed_in_turn_with_one_image_after_a_warm_up(
    tiny_study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    now = [0.0]

    def generate(self: Generator, labels: list[int], **settings: Any) -> None:
        drawn.append((labels, settings))
        now[0] += len(drawn)

    monkeypatch.setattr(Generator, "generate", generate)
    monkeypatch.setattr(study.time, "perf_counter", lambda: now[0])
    found = time_settings(tiny_study, [QUICK, OTHER], threads=1, repeats=3)
    assert drawn == [([0], QUICK.sampling), ([0], OTHER.sampling)] * 4
    assert found == {"quick": [3.0, 5.0, 7.0], "dpm++2m 4": [4.0, 6.0, 8.0]}


def test_report_has_the_figures_and_times_of_evaluated_settings(
    tiny_study: Study, evaluated: EvaluatedSettings, tmp_path: pathlib.Path
) -> None:
    run_study(tiny_study, [QUICK], tmp_path, Workers(), ignore)
    seconds = {"quick": [float(number) for number in range(1, 12)], "dpm++2m 4": [1.0]}
    found = summarize_study(tiny_study, [OTHER, QUICK], tmp_path, seconds)
    assert found["images"] == 10
    (only,) = found["settings"]
    assert only["milliseconds"] == pytest.approx({"median": 6000.0, "p10": 2000.0, "p90": 10000.0})
    saved = json.loads((tmp_path / "quick.json").read_text())
    del saved[HASH_KEY]
    assert {**saved, "milliseconds": only["milliseconds"]} == only
    assert summarize_study(dataclasses.replace(tiny_study, count=11), [QUICK], tmp_path, seconds)["settings"] == []


def test_chart_shows_every_sampler_and_every_preset(tmp_path: pathlib.Path) -> None:
    settings = []
    for number, setting in enumerate(preset_settings(()) + sampler_settings(model_config("pixel_small"))):
        steps = setting.sampling.get("diffusion_steps", 100)
        one = figures(setting.name, {"diffusion_steps": steps}, 10, frechet=10.0 / (1 + number % 7))
        settings.append({**one, "milliseconds": {"median": 10.0 * steps, "p10": 1.0, "p90": 1e4}})
    counts = []
    for shown in (
        settings,
        [setting for setting in settings if not setting["name"].startswith("dpm")],
        settings[: len(PRESETS)],
    ):
        save_study_chart({"images": 10, "settings": shown}, tmp_path / "chart.png")
        with Image.open(tmp_path / "chart.png") as image:
            assert image.format == "PNG"
            pixels = np.asarray(image.convert("RGB")).astype(int)
        left, right = np.array_split(pixels, 2, axis=1)
        colorful = [int((half.max(axis=-1) - half.min(axis=-1) > 60).sum()) for half in (left, right)]
        counts.append(colorful)
    assert counts[0][0] > 1.3 * counts[1][0] > 1000
    assert counts[2][0] == 0
    assert min(right for _, right in counts) > 200


@pytest.fixture
def command(
    tiny_study: Study, evaluated: EvaluatedSettings, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """The options that are needed; evaluated and timed at once."""

    def timed(inputs: Study, settings: list[Setting], threads: int, repeats: int) -> dict[str, list[float]]:
        return {setting.name: [0.1 * (1 + number)] * repeats for number, setting in enumerate(settings)}

    monkeypatch.setattr(study_cli, "time_settings", timed)
    monkeypatch.setattr(study_cli, "study_doubts", lambda inputs: ["10 images are few"])  # without the classifier
    options = {
        "--checkpoint": tiny_study.checkpoint,
        "--data": tiny_study.data,
        "--classifier": tiny_study.classifier,
        "--out": tmp_path / "out",
        "--count": 10,
        "--threads": 1,
    }
    return [str(tiny_study.artifact), *(str(part) for option in options.items() for part in option)]


def run(line: list[str]) -> str:
    result = CliRunner().invoke(study_cli.study, line, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_command_prints_a_row_for_every_setting_and_writes_the_same(
    command: list[str], evaluated: EvaluatedSettings, tmp_path: pathlib.Path
) -> None:
    json_file, chart = tmp_path / "new" / "study.json", tmp_path / "study.png"
    output = run([*command, "--presets-only", "--report", str(json_file), "--chart", str(chart)])
    value = json.loads(json_file.read_text())
    assert sorted(evaluated) == sorted((name, 10) for name in PRESETS)
    assert [setting["name"] for setting in value["settings"]] == list(PRESETS)
    rows = [line.split() for line in output.splitlines()[-len(PRESETS) :]]
    assert rows == [
        [name, "160", f"{100 * (1 + number)}", "50.0%", f"{setting['frechet']:.3f}"]
        for number, (name, setting) in enumerate(zip(PRESETS, value["settings"], strict=True))
    ]
    with Image.open(chart) as image:
        assert image.convert("L").getextrema()[0] < 50
    assert "10 images are few" in output
    run([*command, "--presets-only"])
    assert len(evaluated) == len(PRESETS)
    with pytest.raises(MarError, match=r"json is the result of another model, of other settings or of another number"):
        run([*command, "--presets-only", "--count", "11"])
    run([*command, "--presets-only", "--count", "11", "--force"])
    assert len(evaluated) == 2 * len(PRESETS)


def test_command_evaluates_samplers_too(command: list[str], evaluated: EvaluatedSettings) -> None:
    """At fewer iterations than usual: these images have four tokens only."""
    run(command)
    assert sorted(name for name, _ in evaluated) == sorted(
        setting.name for setting in preset_settings(()) + sampler_settings(model_config("pixel_small", img_size=8))
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--count", "1"], "--count must be at least 2, found 1"),
        (["--report", "{folder}"], "it is a folder"),
        (["--chart", "{folder}"], "it is a folder"),
    ],
)
def test_wrong_use_is_refused_before_anything_is_evaluated(
    command: list[str], evaluated: EvaluatedSettings, tmp_path: pathlib.Path, line: list[str], message: str
) -> None:
    with pytest.raises(MarError, match=message):
        run([*command, *(part.format(folder=tmp_path) for part in line)])
    assert evaluated == []
    assert list(tmp_path.iterdir()) == []
