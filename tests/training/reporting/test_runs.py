"""What a person sees of runs: the time left, what a run was made with, and how runs compare."""

from __future__ import annotations

import json
import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from runtime.errors import CheckpointError, RequestError
from tests.helpers.tiny_runs import logged, one_thread, resume, start, write_idx_dataset
from training.cli.runs import runs as command
from training.reporting import loss_curve, progress
from training.reporting.environment import read_sessions
from training.reporting.progress import readable_time, show_progress


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Two runs in a folder, one of them of two sessions. Read only."""
    folder = tmp_path_factory.mktemp("runs")
    data = write_idx_dataset(tmp_path_factory.mktemp("data"))
    with one_thread():
        start(folder / "fast", data, 4, learning_rate=0.01).train()
        start(folder / "slow", data, 2).train()
        resume(folder / "slow", steps=5).train()
    (folder / "notes").mkdir()
    return folder


def _compare(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)


def _rows(text: str) -> dict[str, list[str]]:
    """First word of a line -> the others."""
    return {words[0]: words[1:] for line in text.splitlines() if (words := line.split())}


def test_mar_runs_shows_each_run_and_only_the_settings_that_differ(folder: pathlib.Path) -> None:
    done = _compare(folder)
    assert done.exit_code == 0
    summary, differences = done.output.split("\n\n")
    rows = _rows(summary)
    for name, steps in (("fast", 4), ("slow", 5)):
        losses, rate = logged(folder / name, "loss"), logged(folder / name, "images_per_second")
        step, of, loss, gradient, images, skipped, bad = rows[str(folder / name)][:7]
        assert (step, of, skipped, bad) == (str(steps), str(steps), "0", "0")
        assert float(loss) == pytest.approx(sum(losses.values()) / steps, abs=1e-4)
        assert float(gradient) > 0
        assert min(rate.values()) - 0.1 <= float(images) <= max(rate.values()) + 0.1
    assert _rows(differences) == {
        "setting": [str(folder / "fast"), str(folder / "slow")],
        "training.steps": ["4", "5"],
        "training.learning_rate": ["0.01", "0.001"],
    }


def test_mar_runs_takes_runs_by_name_each_once(folder: pathlib.Path) -> None:
    done = _compare(folder / "slow", folder, folder / "slow")
    assert [line.split()[0] for line in done.output.split("\n\n")[0].splitlines()[1:]] == [
        str(folder / "slow"),
        str(folder / "fast"),
    ]


def test_mar_runs_draws_the_losses(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert _compare(folder, "--chart", tmp_path / "losses.png").exit_code == 0
    with Image.open(tmp_path / "losses.png") as image:
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 10


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The axes of the curves that are drawn, which are not written."""
    seen: list[Any] = []
    monkeypatch.setattr(loss_curve, "_save", lambda figure, axes, out: seen.append(axes))
    yield seen
    plt.close("all")


def _entries(steps: int) -> list[dict[str, float]]:
    """What a log tells of losses that fall from 3 to 0.1."""
    return [{"step": step, "loss": 0.1 + 2.9 / step} for step in range(1, steps + 1)]


def _shown(axes: Any) -> list[int]:
    """How many points of each line can be seen: those within the image, and none of a single one without a dot."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    within = [sum(left <= x <= right and bottom <= y <= top for x, y in line.get_xydata()) for line in axes.get_lines()]
    dotted = [line.get_marker() == "." for line in axes.get_lines()]
    return [count if count > 1 or dot else 0 for count, dot in zip(within, dotted, strict=True)]


@pytest.mark.parametrize(("steps", "of_mean"), [(1, []), (2, []), (12, [11]), (200, [181]), (900, [811])])
def test_the_curve_of_a_short_run_shows_every_step_and_a_mean(
    drawn: list[Any], tmp_path: pathlib.Path, steps: int, of_mean: list[int]
) -> None:
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, _entries(steps))))
    loss_curve.save_loss_curve(tmp_path / "log.jsonl", tmp_path / "loss.png")
    assert _shown(drawn[0]) == [steps, *of_mean]


def test_the_curve_of_a_long_run_shows_what_it_has_come_to(drawn: list[Any], tmp_path: pathlib.Path) -> None:
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, _entries(5000))))
    loss_curve.save_loss_curve(tmp_path / "log.jsonl", tmp_path / "loss.png")
    assert drawn[0].get_ylim()[1] < 0.3
    assert min(_shown(drawn[0])) > 4000


def test_a_comparison_shows_short_runs(drawn: list[Any], tmp_path: pathlib.Path) -> None:
    runs = {str(steps): _entries(steps) for steps in (1, 12, 200)}
    loss_curve.save_comparison(runs, tmp_path / "runs.png")
    assert _shown(drawn[0]) == [1, 11, 181]


def test_mar_runs_reads_a_run_that_is_still_training(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run = pathlib.Path(shutil.copytree(folder / "fast", tmp_path / "run"))
    lines = (run / "log.jsonl").read_text().splitlines()
    skipped = json.dumps({"step": 3, "event": "skipped", "skipped": {}})
    bad = json.dumps({"step": 3, "event": "bad", "bad_data": 1})
    (run / "log.jsonl").write_text("\n".join([*lines[:2], skipped, bad, lines[3][:9]]))
    assert _rows(_compare(run).output)[str(run)][:2] == ["2", "4"]
    assert _rows(_compare(run).output)[str(run)][5:7] == ["1", "1"]
    (run / "log.jsonl").unlink()
    (run / "environment.json").write_text("torn")
    assert _rows(_compare(run).output)[str(run)][:4] == ["0", "4", "-", "-"]


def test_mar_runs_refuses_what_is_no_run(tmp_path: pathlib.Path) -> None:
    with pytest.raises(RequestError, match=str(tmp_path)):
        _compare(tmp_path)
    (tmp_path / "config.json").write_text('{"model": 3}')
    with pytest.raises(CheckpointError, match=r"config\.json: model must be an object"):
        _compare(tmp_path)


def test_a_run_tells_what_it_was_made_with_each_time_it_was_started(folder: pathlib.Path) -> None:
    first, second = read_sessions(folder / "slow")
    assert (first["from_step"], second["from_step"]) == (0, 2)
    assert first["packages"]["torch"]
    assert first["command"] == sys.argv
    assert (first["processes"], first["threads"]) == (1, 1)
    assert first["device"]


def test_tensorboard_has_the_scalars_and_the_images_of_a_run(folder: pathlib.Path) -> None:
    board = EventAccumulator(str(folder / "fast" / "tensorboard"))
    board.Reload()
    for name in ("loss", "gradient_norm"):
        found = {event.step: event.value for event in board.Scalars(name)}
        assert found == pytest.approx(logged(folder / "fast", name), rel=1e-6)
    assert {"images_per_second", "learning_rate"} <= set(board.Tags()["scalars"])
    [grid] = board.Images("samples")
    with Image.open(folder / "fast" / "samples" / "step-000004.png") as image:
        assert (grid.step, grid.width, grid.height) == (4, *image.size)


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_without_a_terminal_progress_is_a_line_a_minute_with_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = _Clock()
    monkeypatch.setattr(progress, "time", clock)
    shown = show_progress(steps=1000, batch=8, step=500)
    for step in range(501, 1001):
        clock.now += 2  # seconds a step
        shown.step(step, 0.5)
    shown.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "step 501 of 1000  loss 0.5000  4.0 img/s  16 min 38 s left"
    assert lines[1] == "step 531 of 1000  loss 0.5000  4.0 img/s  15 min 38 s left"
    assert lines[-1] == "step 1000 of 1000  loss 0.5000  4.0 img/s  0 s left"
    assert len(lines) == 18


def test_on_a_terminal_progress_is_a_bar_with_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    shown = show_progress(steps=4, batch=8, step=1)
    shown.step(2, None)
    shown.step(3, 0.25)
    shown.message("a line")
    shown.close()
    told = capsys.readouterr().err
    assert "a line\n" in told
    assert "24.0/32.0" in told
    assert "loss=0.2500" in told


@given(st.integers(0, 10**7))
def test_durations_are_told_in_their_two_largest_units(seconds: int) -> None:
    units = {"d": 86400, "h": 3600, "min": 60, "s": 1}
    words = readable_time(seconds).split()
    told = sum(int(number) * units[unit] for number, unit in zip(words[::2], words[1::2], strict=True))
    assert told <= seconds < told + units[words[-1]]
    assert len(words) <= 4
