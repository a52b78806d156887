"""What a run writes for TensorBoard."""

from __future__ import annotations

import pathlib

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from runtime.progress import Progress
from tests.helpers.tiny_runs import logged
from training.config import TrainConfig
from training.reporting.reporter import Reporter


def test_tensorboard_has_the_scalars_and_the_images_of_a_run(two_runs: pathlib.Path) -> None:
    board = EventAccumulator(str(two_runs / "fast" / "tensorboard"))
    board.Reload()
    for name in ("loss", "gradient_norm"):
        found = {event.step: event.value for event in board.Scalars(name)}
        assert found == pytest.approx(logged(two_runs / "fast", name), rel=1e-6)
    assert {"images_per_second", "learning_rate"} <= set(board.Tags()["scalars"])
    [grid] = board.Images("samples")
    with Image.open(two_runs / "fast" / "samples" / "step-000004.png") as image:
        assert (grid.step, grid.width, grid.height) == (4, *image.size)


def test_the_loss_that_is_shown_is_that_of_the_last_steps(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    monkeypatch.setattr(Progress, "update", lambda self, *done, note="": notes.append(note))
    with Reporter(tmp_path, TrainConfig(steps=21), 0) as reporter:
        for step in range(1, 22):
            reporter.step(step, 9.0 if step < 20 else step - 19.0, 1.0, 1e-3)
    assert notes[0].startswith("loss 9.0000 ")
    assert notes[-1].startswith("loss 4.0000 ")  # the mean of three steps of 21, as in the curve: 9, 1, 2
