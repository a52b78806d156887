"""`mar runs`: the progress of each run, the settings that differ, and a chart of the losses."""

from __future__ import annotations

import json
import pathlib
import shutil

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from runtime.errors import CheckpointError
from tests.helpers.json_documents import read_document
from tests.helpers.tiny_runs import logged
from training.cli.runs import runs as command


def _compare(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)


def _rows(text: str) -> dict[str, list[str]]:
    """The words of each line, by its first word."""
    return {words[0]: words[1:] for line in text.splitlines() if (words := line.split())}


def test_mar_runs_shows_each_run_and_only_the_settings_that_differ(two_runs: pathlib.Path) -> None:
    done = _compare(two_runs)
    assert done.exit_code == 0
    summary, differences = done.output.split("\n\n")
    rows = _rows(summary)
    for name, steps in (("fast", 4), ("slow", 5)):
        losses, rate = logged(two_runs / name, "loss"), logged(two_runs / name, "images_per_second")
        step, of, loss, gradient, images, skipped, bad = rows[str(two_runs / name)][:7]
        assert (step, of, skipped, bad) == (str(steps), str(steps), "0", "0")
        assert float(loss) == pytest.approx(sum(losses.values()) / steps, abs=1e-4)
        assert float(gradient) > 0
        assert min(rate.values()) - 0.1 <= float(images) <= max(rate.values()) + 0.1
    assert _rows(differences) == {
        "setting": [str(two_runs / "fast"), str(two_runs / "slow")],
        "training.steps": ["4", "5"],
        "training.learning_rate": ["0.01", "0.001"],
    }


def test_json_has_the_same_figures_and_all_settings(two_runs: pathlib.Path) -> None:
    document = read_document(_compare(two_runs, "--json").stdout)
    fast, slow = document["runs"]
    assert (fast["run"], fast["step"], fast["steps"], slow["step"]) == (str(two_runs / "fast"), 4, 4, 5)
    assert fast["loss"] == pytest.approx(sum(logged(two_runs / "fast", "loss").values()) / 4)
    assert document["different_settings"] == ["training.steps", "training.learning_rate"]
    assert (fast["settings"]["training.learning_rate"], slow["settings"]["training.learning_rate"]) == (0.01, 0.001)


def test_mar_runs_lists_each_run_once_in_the_order_of_its_paths(two_runs: pathlib.Path) -> None:
    done = _compare(two_runs / "slow", two_runs, two_runs / "slow")
    assert [line.split()[0] for line in done.output.split("\n\n")[0].splitlines()[1:]] == [
        str(two_runs / "slow"),
        str(two_runs / "fast"),
    ]


def test_mar_runs_writes_a_chart_of_the_losses(two_runs: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert _compare(two_runs, "--chart", tmp_path / "losses.png").exit_code == 0
    with Image.open(tmp_path / "losses.png") as image:
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 10


def test_mar_runs_reads_a_run_that_is_still_training(two_runs: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run = pathlib.Path(shutil.copytree(two_runs / "fast", tmp_path / "run"))
    lines = (run / "log.jsonl").read_text().splitlines()
    skipped = json.dumps({"step": 3, "event": "skipped", "skipped": {}})
    bad = json.dumps({"step": 3, "event": "bad", "bad_data": 1})
    (run / "log.jsonl").write_text("\n".join([*lines[:2], skipped, bad, lines[3][:9]]))
    assert _rows(_compare(run).output)[str(run)][:2] == ["2", "4"]
    assert _rows(_compare(run).output)[str(run)][5:7] == ["1", "1"]
    (run / "log.jsonl").unlink()
    (run / "environment.json").unlink()
    assert _rows(_compare(run).output)[str(run)][:4] == ["0", "4", "-", "-"]


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("log.jsonl", b'{"step": 1, "loss": "low"}\n{"step": 2}\n', "line 1: no entry of this log .*loss must be"),
        ("log.jsonl", b'{"step": 1, "loss": 1e300}\n\n', "line 1: .*a finite number of at least"),
        ("log.jsonl", b"[]\n[]\n", "line 1: .*expected an object"),
        ("log.jsonl", b"\xff\n{}\n", "line 1: .*not UTF-8"),
        ("log.jsonl", b"[" * 5000 + b"\n{}\n", "line 1: .*nested"),
        ("config.json", b'{"training": []}', "training must be an object"),
        ("config.json", b'{"data": 5}', "data must be a text"),
        ("config.json", b'{"data": "x", "data": "y"}', "there twice"),
        ("environment.json", b"torn", "not readable JSON"),
        ("environment.json", b"[3]", "expected a list of objects"),
        ("environment.json", b'[{"processes": "two"}]', "processes must be a whole number"),
    ],
)
def test_mar_runs_refuses_a_damaged_run_in_one_line(
    two_runs: pathlib.Path, tmp_path: pathlib.Path, file: str, content: bytes, reason: str
) -> None:
    run = pathlib.Path(shutil.copytree(two_runs / "fast", tmp_path / "run"))
    (run / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{file}.*{reason}") as caught:
        _compare(run)
    assert "\n" not in str(caught.value)


def test_mar_runs_refuses_a_folder_without_runs(tmp_path: pathlib.Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(CheckpointError, match=f"{path} is neither a run folder"):
            _compare(path)
    (tmp_path / "config.json").write_text('{"model": 3}')
    with pytest.raises(CheckpointError, match=r"config\.json: model must be an object"):
        _compare(tmp_path)
