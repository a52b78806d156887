"""Charts of losses: what is visible in them, for short and long runs."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt
import pytest

from runtime.storage.schema import parse_object
from training.reporting import loss_curve
from training.reporting.run_log import LogEntry


@pytest.fixture
def drawn_axes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The axes of the charts, which are not written to files."""
    all_axes: list[Any] = []
    monkeypatch.setattr(loss_curve, "_save", lambda figure, axes, out: all_axes.append(axes))
    yield all_axes
    plt.close("all")


def _entries(steps: int) -> list[dict[str, float]]:
    """Log entries of losses that fall from 3 to 0.1."""
    return [{"step": step, "loss": 0.1 + 2.9 / step} for step in range(1, steps + 1)]


def _visible_points(axes: Any) -> list[int]:
    """The number of visible points of each line: those within the axes, and a single point only if it is a dot."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    within = [sum(left <= x <= right and bottom <= y <= top for x, y in line.get_xydata()) for line in axes.get_lines()]
    dotted = [line.get_marker() == "." for line in axes.get_lines()]
    return [count if count > 1 or dot else 0 for count, dot in zip(within, dotted, strict=True)]


@pytest.mark.parametrize(("steps", "of_mean"), [(1, []), (2, []), (12, [11]), (200, [181]), (900, [811])])
def test_the_curve_of_a_short_run_shows_every_step_and_a_mean(
    drawn_axes: list[Any], tmp_path: pathlib.Path, steps: int, of_mean: list[int]
) -> None:
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, _entries(steps))))
    loss_curve.save_loss_curve(tmp_path / "log.jsonl", tmp_path / "loss.png")
    assert _visible_points(drawn_axes[0]) == [steps, *of_mean]


def test_the_curve_of_a_long_run_shows_the_range_of_later_losses(drawn_axes: list[Any], tmp_path: pathlib.Path) -> None:
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, _entries(5000))))
    loss_curve.save_loss_curve(tmp_path / "log.jsonl", tmp_path / "loss.png")
    assert drawn_axes[0].get_ylim()[1] < 0.3
    assert min(_visible_points(drawn_axes[0])) > 4000


def test_a_comparison_shows_short_runs(drawn_axes: list[Any], tmp_path: pathlib.Path) -> None:
    runs = {str(steps): [parse_object(LogEntry, entry, "entry") for entry in _entries(steps)] for steps in (1, 12, 200)}
    loss_curve.save_comparison(runs, tmp_path / "runs.png")
    assert _visible_points(drawn_axes[0]) == [1, 11, 181]
