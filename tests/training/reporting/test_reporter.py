"""What a run writes for TensorBoard."""

from __future__ import annotations

import pathlib

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers.tiny_runs import logged


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
