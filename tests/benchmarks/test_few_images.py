"""The summary of short training runs: their table and their sheet of samples."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from benchmarks.few_images import few_images
from benchmarks.render_pages import few_images_table
from runtime.errors import RequestError
from training.config import TrainConfig

_LOSSES = [*[9.0] * 50, *[4.0] * 50, *[2.0] * 50, *[1.0] * 50]


def _write_run(run: pathlib.Path, rate: float) -> pathlib.Path:
    """The files of a run that the summary reads; its samples are an image of noise."""
    run.mkdir()
    training = {**vars(TrainConfig(steps=200, learning_rate=rate)), "warmup_steps": 20}
    (run / "config.json").write_text(json.dumps({"data": "/x/pets", "model": {"img_size": 32}, "training": training}))
    (run / "environment.json").write_text(
        json.dumps([{"device": "a CPU", "python": "3.11", "packages": {"torch": "2"}, "commit": "unknown"}])
    )
    entries = [{"step": step + 1, "loss": loss} for step, loss in enumerate(_LOSSES)]
    (run / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    (run / "samples").mkdir()
    pixels = np.random.default_rng(int(rate * 1e6)).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(run / "samples" / "step-000200.png")
    return run


def _summarize(tmp_path: pathlib.Path, *runs: pathlib.Path) -> None:
    files = ["--report", str(tmp_path / "few.json"), "--chart", str(tmp_path / "few.png"), "--commit", "abc"]
    CliRunner().invoke(few_images, [*map(str, runs), *files], catch_exceptions=False, standalone_mode=False)


def test_runs_become_a_table_and_a_sheet_of_their_last_samples(tmp_path: pathlib.Path) -> None:
    runs = [_write_run(tmp_path / name, rate) for name, rate in (("fast", 2e-3), ("slow", 1e-4))]
    _summarize(tmp_path, *runs)
    assert few_images_table(json.loads((tmp_path / "few.json").read_text())).splitlines() == [
        "a CPU, Python 3.11, torch 2, commit abc. Loss: the mean over 50 steps.",
        "",
        "| data | learning rate | warm-up | steps | images a step | loss at half | loss at the end |",
        "|---|---|---|---|---|---|---|",
        "| pets, 32x32 | 0.0001 | 20 | 200 | 64 | 4.000 | 1.000 |",
        "| pets, 32x32 | 0.002 | 20 | 200 | 64 | 4.000 | 1.000 |",
    ]
    with Image.open(tmp_path / "few.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    for top, run in zip((8 + 18, 8 + 18 + 20 + 8 + 18), runs, strict=True):
        with Image.open(run / "samples" / "step-000200.png") as samples:
            assert np.array_equal(pixels[top : top + 20, 8:38], np.asarray(samples))


def test_a_run_without_samples_is_one_line(tmp_path: pathlib.Path) -> None:
    run = _write_run(tmp_path / "run", 1e-3)
    (run / "samples" / "step-000200.png").unlink()
    with pytest.raises(RequestError, match="no sample images; train the run to its end"):
        _summarize(tmp_path, run)
