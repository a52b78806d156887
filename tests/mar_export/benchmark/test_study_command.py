"""The table, the chart and the command of the study of quality against time."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import types
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from mar_export.benchmark import study
from mar_export.benchmark.study_chart import save_study_chart
from mar_export.benchmark.study_settings import Setting, Study, preset_settings, sampler_settings
from mar_export.benchmark.study_table import study_rows
from mar_export.cli import study as study_cli
from runtime.errors import MarError
from runtime.sampling.presets import PRESETS
from tests.helpers.studies import Drawn, TinyStudy, metrics, report_row
from tests.helpers.tiny_runs import one_thread


def report_of(rows: Sequence[Any]) -> dict[str, Any]:
    training = metrics(0.0)["real_training"]
    real = {
        "inception": {"real_training": {**training, "top1_accuracy": None}},
        "classifier": {"real_training": training},
    }
    return {"images": 10, "seeds": 2, "doubts": [], "real": real, "settings": rows}


def test_the_table_has_the_mean_and_the_range_of_all_seeds(tiny_study: TinyStudy) -> None:
    artifact = tiny_study.quick.artifact
    exact, fast = (Setting(f"games {name}", artifact, {"preset": name}) for name in ("exact", "fast"))
    rows = [report_row(exact, [3.0, 5.0], 200), report_row(fast, [5.0], 20), report_row(tiny_study.other, [9.0], 9)]
    of_two_seeds = "4.000 (3.000 to 5.000)"
    header, *found = study_rows(report_of(rows))
    assert header[:4] == ["", "top-1 accuracy", "Fréchet distance, inception", "Fréchet distance, classifier"]
    assert header[4:] == ["against exact", "head evaluations", "ms an image"]
    assert found == [
        ["games exact", "50.0% (50.0% to 50.0%)", of_two_seeds, of_two_seeds, "+0.0%", "160", "200"],
        ["games fast", "50.0%", "5.000", "5.000", "+25.0%", "160", "20"],
        ["dpm++2m 4", "50.0%", "9.000", "9.000", "", "160", "9"],
        ["real training images", "90.0%", "0.100", "0.100", "", "", ""],
    ]


def test_the_chart_shows_every_sampler_and_every_preset(tiny_study: TinyStudy, tmp_path: pathlib.Path) -> None:
    artifact = tiny_study.quick.artifact
    presets, samplers = preset_settings([artifact]), sampler_settings(artifact)
    rows = [
        report_row(setting, [10.0 / (1 + number % 7), 12.0 / (1 + number % 7)], 10.0 * (1 + number))
        for number, setting in enumerate(presets + samplers)
    ]
    counts = []
    for shown in (rows, [row for row in rows if row["sampler"] not in ("dpm++2m", "dpm++2m-sde")]):
        save_study_chart(report_of(shown), tmp_path / "chart.png")
        with Image.open(tmp_path / "chart.png") as image:
            assert image.format == "PNG"
            pixels = np.asarray(image.convert("RGB")).astype(int)
        counts.append(
            [int((half.max(axis=-1) - half.min(axis=-1) > 60).sum()) for half in np.array_split(pixels, 2, 1)]
        )
    assert counts[0][0] > 1.3 * counts[1][0] > 1000
    assert min(right for _, right in counts) > 200
    save_study_chart(report_of(rows[: len(presets)]), tmp_path / "presets.png")
    with Image.open(tmp_path / "presets.png") as alone, Image.open(tmp_path / "chart.png") as both:
        assert alone.width < both.width


@pytest.fixture
def command(tiny_study: TinyStudy, drawn: Drawn, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The options that are needed; drawn and timed at once."""

    def timed(inputs: Study, settings: list[Setting], threads: int, repeats: int) -> dict[str, list[float]]:
        return {setting.name: [0.1 * (1 + number)] * repeats for number, setting in enumerate(settings)}

    monkeypatch.setattr(study_cli, "time_settings", timed)
    options = {
        "--data": tiny_study.inputs.data,
        "--classifier": tiny_study.inputs.classifier,
        "--out": tmp_path / "out",
        "--count": 10,
        "--threads": 1,
    }
    return [str(tiny_study.quick.artifact), *(str(part) for option in options.items() for part in option)]


def run(line: list[str]) -> str:
    with one_thread():
        result = CliRunner().invoke(study_cli.study, line, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_prints_a_row_for_every_setting_and_writes_the_same(
    command: list[str], drawn: Drawn, tmp_path: pathlib.Path
) -> None:
    json_file, chart = tmp_path / "new" / "study.json", tmp_path / "study.png"
    output = run([*command, "--presets-only", "--report", str(json_file), "--chart", str(chart)])
    value = json.loads(json_file.read_text())
    assert drawn == [(name, 0, 10) for name in PRESETS]
    assert [setting["name"] for setting in value["settings"]] == list(PRESETS)
    table = [line.split() for line in output.splitlines()[-len(PRESETS) - 1 : -1]]
    assert [row[:3] for row in table] == [[name, "50.0%", f"{1.0 + number:.3f}"] for number, name in enumerate(PRESETS)]
    assert [row[-1] for row in table] == [f"{100 * (1 + number)}" for number in range(len(PRESETS))]
    with Image.open(chart) as image:
        assert image.convert("L").getextrema()[0] < 50
    assert "10 images are few" in output
    run([*command, "--presets-only"])
    assert len(drawn) == len(PRESETS)
    with pytest.raises(MarError, match=r"json is the result of another model, of other settings, of another number"):
        run([*command, "--presets-only", "--count", "11"])
    run([*command, "--presets-only", "--count", "11", "--force"])
    assert len(drawn) == 2 * len(PRESETS)


def test_networks_have_the_threads_of_the_command(
    command: list[str], drawn: Drawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare, seen = study.compare_job, []

    def recording(*inputs: Any) -> Any:
        seen.append(torch.get_num_threads())
        return compare(*inputs)

    monkeypatch.setattr(study, "compare_job", recording)
    run([*command, "--preset", "turbo", "--threads", "3"])
    assert seen == [3]


def test_images_of_the_dataset_that_cannot_be_read_are_told(
    command: list[str], drawn: Drawn, tiny_study: TinyStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    train: Any = types.SimpleNamespace(warnings=["2 images cannot be read"], notes=())
    judges = tiny_study.judges._replace(real=dataclasses.replace(tiny_study.judges.real, train=train))
    monkeypatch.setattr(study_cli, "open_judges", lambda *inputs: judges)
    assert "2 images cannot be read" in run([*command, "--preset", "turbo"])


def test_the_command_evaluates_samplers_too(command: list[str], drawn: Drawn, tiny_study: TinyStudy) -> None:
    run(command)
    artifact = tiny_study.quick.artifact
    assert len(drawn) == len(preset_settings([artifact]) + sampler_settings(artifact))


def test_chosen_presets_are_evaluated_alone_with_every_seed(command: list[str], drawn: Drawn) -> None:
    run([*command, "--preset", "turbo", "--preset", "exact", "--seeds", "2"])
    assert drawn == [("exact", 0, 10), ("exact", 1, 10), ("turbo", 0, 10), ("turbo", 1, 10)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--count", "1"], "--count must be at least 2, found 1"),
        (["--preset", "best"], "no artifact has a preset 'best'"),
        (["--report", "{folder}"], "it is a folder"),
        (["--chart", "{folder}"], "it is a folder"),
    ],
)
def test_wrong_use_is_refused_before_anything_is_drawn(
    command: list[str], drawn: Drawn, tmp_path: pathlib.Path, line: list[str], message: str
) -> None:
    with pytest.raises(MarError, match=message):
        run([*command, *(part.format(folder=tmp_path) for part in line)])
    assert drawn == []
    assert list(tmp_path.iterdir()) == []
