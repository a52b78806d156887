"""A chart of activation ranges: every layer over the iterations, and over the timesteps of a diffusion chain."""

from __future__ import annotations

import pathlib

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from calibration.quantization.statistics import ActivationStatistics
from runtime.checks import pluralize
from runtime.storage.files import replacing

_MAX_TICKS = 10


def save_range_chart(statistics: ActivationStatistics, path: pathlib.Path) -> None:
    """Write a PNG with two heat maps of the largest magnitude of each layer's activation."""
    names = list(statistics.layers)
    head_names = [name for name in names if statistics.layers[name].timestep_max.any()]
    over_iterations = np.stack([statistics.layers[name].iteration_max for name in names])  # [layers, iterations]
    over_timesteps = np.stack([statistics.layers[name].timestep_max for name in head_names])  # [layers, timesteps]
    nonzero = np.concatenate([over_iterations[over_iterations > 0], over_timesteps[over_timesteps > 0]])
    norm = LogNorm(float(nonzero.min()), float(nonzero.max()))
    figure = Figure(figsize=(16, 2 + 0.16 * len(names)), layout="constrained")
    grid = figure.add_gridspec(1, 2)
    left, right = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
    heat_map = _heat_map(left, over_iterations, names, norm)
    left.set_xlabel("iteration")
    ticks = _ticks(over_iterations.shape[1])
    left.set_xticks(ticks, [str(1 + tick) for tick in ticks])
    _heat_map(right, over_timesteps, head_names, norm)
    right.set_xlabel("timestep of the diffusion chain, noisy to clean")
    ticks = _ticks(over_timesteps.shape[1])
    right.set_xticks(ticks, [f"{statistics.timesteps[tick]:.0f}" for tick in ticks])
    figure.colorbar(heat_map, ax=[left, right], label="largest magnitude (white: all zero)", fraction=0.03)
    figure.suptitle(f"Activation ranges over {pluralize(statistics.images, 'image')}")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _heat_map(axes: Axes, values: NDArray[np.float32], names: list[str], norm: LogNorm) -> plt.cm.ScalarMappable:
    image = axes.imshow(np.where(values > 0, values, np.nan), aspect="auto", norm=norm, interpolation="nearest")
    axes.set_yticks(range(len(names)), names, fontsize=6)
    return image


def _ticks(length: int) -> list[int]:
    return list(range(0, length, -(-length // _MAX_TICKS)))
