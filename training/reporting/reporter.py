"""Reports of a running training: progress on standard error, a log of JSON lines, and TensorBoard."""

from __future__ import annotations

import collections
import json
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TextIO

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from runtime.log import LOG
from runtime.progress import Progress
from runtime.storage.files import replacing
from training.config import StepConfig
from training.reporting.estimate import Estimate
from training.reporting.run_log import LOG_FILE, MAX_WINDOW, logged_warnings, mean_window, read_log

BOARD_FOLDER = "tensorboard"


class Reporter:
    """Reports the steps of a run. It is a context manager, which closes the files at the end.

    Args:
        run: The run folder, which gets `log.jsonl` and `tensorboard/`.
        config: The settings of the training.
        step: The number of steps that are done; later entries of an older log are removed.
    """

    def __init__(self, run: pathlib.Path, config: StepConfig, step: int) -> None:
        self._batch, self._unit = config.batch_size, config.unit
        self._log = open_log(run / LOG_FILE, step)
        self._board = SummaryWriter(str(run / BOARD_FOLDER), purge_step=step)
        self._progress = Progress(config.steps, "training", unit="steps", done=step)
        self._losses: collections.deque[float] = collections.deque(maxlen=MAX_WINDOW)  # of the last steps
        self._validation = ""
        self._steps, self._estimate = config.steps, Estimate()
        self._warnings = logged_warnings(run / LOG_FILE)  # of earlier sessions
        self._step_started = time.perf_counter()

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for part in (self._progress, self._board, self._log):
            part.close()

    def skipped(self, step: int, message: str, **details: Any) -> None:
        """Report that step number `step` was skipped: `message` says why, `details` go to the log."""
        self.event(step, message, LOG.warning, skipped=details)
        self._progress.update()
        self.start_clock()

    def start_clock(self) -> None:
        """Begin to measure the time of the next step, after work that is not part of it."""
        self._step_started = time.perf_counter()

    def validation(self, step: int, loss: float) -> None:
        """Report the loss on held-out images after step number `step`; the progress shows it from the next step on."""
        self._validation = f", {loss:.4f} on held-out images"
        self._write({"step": step, "validation_loss": loss})
        self._board.add_scalar("validation_loss", loss, step)
        self.start_clock()

    def step(self, step: int, loss: float, gradient_norm: float, learning_rate: float, **parts: float) -> None:
        """Report step number `step`; `parts` are further scalars, such as the terms of the loss."""
        now = time.perf_counter()
        seconds, self._step_started = now - self._step_started, now
        rate = self._batch / seconds
        self._losses.append(loss)
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
        self._progress.update(note=f"loss {self._mean_loss(step):.4f}{self._validation}  {rate:.1f} {self._unit}/s")
        if (estimate := self._estimate.add(seconds, self._steps - step)) is not None:
            self.event(step, estimate)

    def _mean_loss(self, step: int) -> float:
        """Return what the loss curve shows at a step, as far as its steps are of this session."""
        return statistics.fmean(list(self._losses)[-mean_window(step) :])

    def event(self, step: int, message: str, tell: Callable[[str], None] = LOG.info, **details: Any) -> None:
        """Report `message` by `tell`, and write it to the log of the run with `details`."""
        self._progress.message(f"step {step}: {message}", tell)
        self._write({"step": step, "event": message, **details})

    def bad_data(self, step: int, warning: str) -> None:
        """Report a warning about the data, each different warning once, with the number of warnings so far."""
        if warning not in self._warnings:
            self._warnings.add(warning)
            self.event(step, warning, LOG.warning, bad_data=len(self._warnings))
            self._board.add_scalar("bad_data", len(self._warnings), step)

    def samples(self, step: int, path: pathlib.Path) -> None:
        """Show the image file at `path` in TensorBoard."""
        with Image.open(path) as image:
            self._board.add_image("samples", np.asarray(image.convert("RGB")), step, dataformats="HWC")
        self.start_clock()

    def flush(self) -> None:
        """Write all entries of the log to the file."""
        self._log.flush()

    def _write(self, entry: Mapping[str, Any]) -> None:
        self._log.write(json.dumps(entry) + "\n")


def open_log(path: pathlib.Path, step: int) -> TextIO:
    """Open a log for appending, after removing its entries beyond the first `step` steps.

    Raises:
        CheckpointError: The log is damaged.
    """
    entries = read_log(path)
    lines = path.read_bytes().split(b"\n") if entries else []
    kept = [line + b"\n" for line, entry in zip(lines, entries, strict=False) if entry.step <= step]
    with replacing(path) as temporary:
        temporary.write_bytes(b"".join(kept))
    return path.open("a", encoding="utf-8")
