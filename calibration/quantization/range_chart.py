"""Ranges of activations as an image: every layer over the iterations, and over the timesteps of a chain."""

from __future__ import annotations

import pathlib

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from calibration.quantization.statistics import Statistics
from runtime.files import replacing

_TICKS = 10  # at the most


def save_report(statistics: Statistics, path: pathlib.Path) -> None:
    """Draw the largest magnitude that passes into each layer as two heat maps, a PNG at `path`."""
    names = list(statistics.layers)
    steps = [name for name in names if statistics.layers[name].timestep_max.any()]
    over_iterations = np.stack([statistics.layers[name].iteration_max for name in names])  # [layers, iterations]
    over_timesteps = np.stack([statistics.layers[name].timestep_max for name in steps])  # [layers, timesteps]
    seen = np.concatenate([over_iterations[over_iterations > 0], over_timesteps[over_timesteps > 0]])
    norm = LogNorm(float(seen.min()), float(seen.max()))
    figure = Figure(figsize=(16, 2 + 0.16 * len(names)), layout="constrained")
    grid = figure.add_gridspec(1, 2)
    left, right = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
    shown = _heat_map(left, over_iterations, names, norm)
    left.set_xlabel("iteration")
    left.set_xticks(_ticks(over_iterations.shape[1]), [str(1 + at) for at in _ticks(over_iterations.shape[1])])
    _heat_map(right, over_timesteps, steps, norm)
    right.set_xlabel("timestep of the diffusion chain, noisy to clean")
    at = _ticks(over_timesteps.shape[1])
    right.set_xticks(at, [f"{statistics.timesteps[tick]:.0f}" for tick in at])
    figure.colorbar(shown, ax=[left, right], label="largest magnitude (white: nothing but zeros)", fraction=0.03)
    figure.suptitle(f"What passes into each layer, over {statistics.images} images")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _heat_map(axes: Axes, values: NDArray[np.float32], names: list[str], norm: LogNorm) -> plt.cm.ScalarMappable:
    shown = axes.imshow(np.where(values > 0, values, np.nan), aspect="auto", norm=norm, interpolation="nearest")
    axes.set_yticks(range(len(names)), names, fontsize=6)
    return shown


def _ticks(length: int) -> list[int]:
    return list(range(0, length, -(-length // _TICKS)))
