"""Charts of the losses of training runs, as PNG files."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from runtime.storage.files import replacing
from training.reporting.run_log import MAX_WINDOW, LogEntry, mean_window, read_log

_MAX_DOTS = 100  # a line of so many points or fewer shows each of them as a dot


def save_loss_curve(log: pathlib.Path, out: pathlib.Path) -> None:
    """Draw the losses of a run: a thin line for each step, and their running mean.

    Args:
        log: The log of the run. If it has no steps, nothing is written.
        out: The PNG file.
    """
    read = read_log(log)
    entries = [entry for entry in read if entry.loss is not None]
    if not entries:
        return
    validation = np.array([(entry.step, entry.validation_loss) for entry in read if entry.validation_loss is not None])
    steps, losses = _losses(entries)
    window = mean_window(len(losses))
    mean_steps, mean = _running_mean(steps, losses)
    long = window == MAX_WINDOW
    figure, axes = _axes("Training loss")
    thin = {"alpha": 0.2, "linewidth": 0.5} if long else {"alpha": 0.4, "linewidth": 1}
    axes.plot(steps, losses, _line_style(losses), color="tab:blue", label="each step", **thin)
    if window > 1:
        axes.plot(mean_steps, mean, color="tab:blue", label=f"mean of {window} steps")
    if len(validation):
        axes.plot(*validation.T, ".-", color="tab:orange", label="held-out images, averaged weights")
    if long:  # show the range of later losses; the first ones are much higher
        axes.set_ylim(mean.min() * 0.9, min(losses.max(), np.quantile(losses, 0.5) * 2.5))
    _save(figure, axes, out)


def save_comparison(logs: Mapping[str, Sequence[LogEntry]], out: pathlib.Path) -> None:
    """Draw the running means of the losses of several runs.

    Args:
        logs: For the name of each run, the log's entries of its steps.
        out: The PNG file.
    """
    figure, axes = _axes("Training losses")
    for name, entries in logs.items():
        if entries:
            steps, mean = _running_mean(*_losses(entries))
            axes.plot(steps, mean, _line_style(mean), label=name)
    _save(figure, axes, out)


def _losses(entries: Sequence[LogEntry]) -> NDArray[np.float64]:
    """Return the steps and their losses, [2, n]."""
    return np.array([[entry.step, entry.loss] for entry in entries], np.float64).T


def _running_mean(steps: NDArray[np.float64], losses: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Return the last step of each window [m], and the mean loss of the window [m]."""
    window = mean_window(len(losses))
    return steps[window - 1 :], np.convolve(losses, np.ones(window) / window, mode="valid")


def _line_style(points: NDArray[np.float64]) -> str:
    """Show few points as dots too, because one point alone makes no line."""
    return ".-" if len(points) <= _MAX_DOTS else "-"


def _axes(title: str) -> tuple[Any, Any]:
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axes.set(xlabel="step", ylabel="loss", title=title)
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Any, axes: Any, out: pathlib.Path) -> None:
    axes.legend()
    with replacing(out) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)
