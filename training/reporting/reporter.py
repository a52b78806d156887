"""What a person sees of a run that is training: progress with the time left, a log, curves, images."""

from __future__ import annotations

import contextlib
import json
import pathlib
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, TextIO

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from runtime.files import replacing
from training.config import StepConfig
from training.reporting.progress import show_progress

LOG_FILE, BOARD_FOLDER = "log.jsonl", "tensorboard"


class Reporter:
    """Writes into the folder `run` and onto standard error, from step `step` of a run on."""

    def __init__(self, run: pathlib.Path, config: StepConfig, step: int) -> None:
        self._batch = config.batch_size
        self._log = open_log(run / LOG_FILE, step)
        self._board = SummaryWriter(str(run / BOARD_FOLDER), purge_step=step)
        self._progress = show_progress(config.steps, self._batch, step)
        self._smoothed: float | None = None
        self._complaints = warnings_in(run / LOG_FILE)  # of the steps before a run was stopped
        self._since = time.perf_counter()

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for part in (self._progress, self._board, self._log):
            part.close()

    def skipped(self, step: int, tells: str, **details: Any) -> None:
        """`step` steps are done, the last one was not taken."""
        self.event(step, tells, skipped=details)
        self._progress.step(step, self._smoothed)
        self._since = time.perf_counter()

    def step(self, step: int, loss: float, gradient_norm: float, learning_rate: float, **parts: float) -> None:
        """`step` steps are done, the last one with this loss, of which `parts` tell more."""
        now = time.perf_counter()
        rate, self._since = self._batch / (now - self._since), now
        self._smoothed = loss if self._smoothed is None else 0.98 * self._smoothed + 0.02 * loss
        scalars = {
            "loss": loss,
            "gradient_norm": gradient_norm,
            "learning_rate": learning_rate,
            "images_per_second": rate,
            **parts,
        }
        self._write({"step": step, **scalars})
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)
        self._progress.step(step, self._smoothed)

    def event(self, step: int, tells: str, **details: Any) -> None:
        """Something that a person should know, and that the log keeps with all its details."""
        self._progress.message(f"step {step}: {tells}")
        self._write({"step": step, "event": tells, **details})

    def bad_data(self, step: int, complaint: str) -> None:
        """Something is wrong with the data: told once, counted, with the count in the log and the board."""
        if complaint not in self._complaints:
            self._complaints.add(complaint)
            self.event(step, complaint, bad_data=len(self._complaints))
            self._board.add_scalar("bad_data", len(self._complaints), step)

    def samples(self, step: int, path: pathlib.Path) -> None:
        with Image.open(path) as image:
            self._board.add_image("samples", np.asarray(image.convert("RGB")), step, dataformats="HWC")
        self._since = time.perf_counter()  # to draw them is no training

    def flush(self) -> None:
        self._log.flush()

    def _write(self, entry: Mapping[str, Any]) -> None:
        self._log.write(json.dumps(entry) + "\n")


def open_log(path: pathlib.Path, step: int) -> TextIO:
    """The log, cut back to the first `step` steps, ready to be appended to."""
    kept: list[str] = []
    if path.exists():
        with contextlib.suppress(ValueError):  # the last line may be torn by a kill
            for line in path.read_text().splitlines():
                if json.loads(line)["step"] <= step:
                    kept.append(line)
    with replacing(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in kept))
    return path.open("a")


def warnings_in(log: pathlib.Path) -> set[str]:
    """What a log tells of bad data."""
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    return {entry["event"] for entry in entries if "bad_data" in entry}


def logged_steps(log: pathlib.Path) -> list[dict[str, Any]]:
    """The entries of a log that tell of a step that was taken."""
    return [entry for line in log.read_text().splitlines() if "loss" in (entry := json.loads(line))]
