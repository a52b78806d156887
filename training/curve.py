"""The loss curve of a run as a picture."""

from __future__ import annotations

import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from runtime.files import replacing
from training.report import logged_steps

_WINDOW = 100  # steps of the running mean


def save_loss_curve(log: pathlib.Path, out: pathlib.Path) -> None:
    """Draw the losses in a run's log: each step faintly, their running mean on top. Nothing for an empty log."""
    entries = logged_steps(log)
    if not entries:
        return
    steps, losses = np.array([[entry["step"], entry["loss"]] for entry in entries]).T
    window = min(_WINDOW, len(losses))
    mean = np.convolve(losses, np.ones(window) / window, mode="valid")
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot(steps, losses, color="tab:blue", alpha=0.2, linewidth=0.5, label="each step")
    axes.plot(steps[window - 1 :], mean, color="tab:blue", label=f"mean of {window} steps")
    axes.set(xlabel="step", ylabel="loss: epsilon MSE + variational bound", title="Training loss")
    axes.set_ylim(mean.min() * 0.9, min(losses.max(), np.quantile(losses, 0.5) * 2.5))
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(out) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)
