"""The loss curves of runs as images."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from runtime.files import replacing
from training.reporting.reporter import logged_steps

_WINDOW = 100  # steps of the running mean, a tenth of a run at most
_FEW = 100  # points, each of which gets a dot


def save_loss_curve(log: pathlib.Path, out: pathlib.Path) -> None:
    """Draw the losses in a run's log: each step faintly, their running mean on top. Nothing for an empty log."""
    entries = logged_steps(log)
    if not entries:
        return
    steps, losses = _losses(entries)
    window = _window(losses)
    at, mean = _running_mean(steps, losses)
    long = window == _WINDOW
    figure, axes = _axes("Training loss")
    faint = {"alpha": 0.2, "linewidth": 0.5} if long else {"alpha": 0.4, "linewidth": 1}
    axes.plot(steps, losses, _form(losses), color="tab:blue", label="each step", **faint)
    if window > 1:
        axes.plot(at, mean, color="tab:blue", label=f"mean of {window} steps")
    if long:  # what it has come to, without the heights that it began from
        axes.set_ylim(mean.min() * 0.9, min(losses.max(), np.quantile(losses, 0.5) * 2.5))
    _save(figure, axes, out)


def save_comparison(logs: Mapping[str, Sequence[Mapping[str, Any]]], out: pathlib.Path) -> None:
    """Draw the running means of several runs, by name and the steps that their logs hold."""
    figure, axes = _axes("Training losses")
    for name, entries in logs.items():
        if entries:
            at, mean = _running_mean(*_losses(entries))
            axes.plot(at, mean, _form(mean), label=name)
    _save(figure, axes, out)


def _losses(entries: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    """Steps and losses, [2, n]."""
    return np.array([[entry["step"], entry["loss"]] for entry in entries], np.float64).T


def _running_mean(steps: NDArray[np.float64], losses: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """The last steps of all windows, and the means over them."""
    window = _window(losses)
    return steps[window - 1 :], np.convolve(losses, np.ones(window) / window, mode="valid")


def _window(losses: NDArray[np.float64]) -> int:
    return min(_WINDOW, math.ceil(len(losses) / 10))


def _form(points: NDArray[np.float64]) -> str:
    """That of a line, with dots where there are few points: one alone makes no line."""
    return ".-" if len(points) <= _FEW else "-"


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
