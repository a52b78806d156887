"""Statistics of activations: collected one call at a time in bounded memory, and saved to a file."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.checks import truncate
from runtime.errors import CalibrationError
from runtime.storage.stored_files import load_arrays, save_arrays
from runtime.storage.structured_files import FaultReport, shape_fits

VERSION = 2
BINS = 2048
ROWS = 256
"""The number of activation rows that are kept unchanged, to measure quantization errors on."""

_HISTOGRAM_ROWS_PER_CALL = 64
_FIRST_WIDTH = 1e-4


class LayerStatistics:
    """Statistics of the activation [..., C] of one layer.

    Attributes:
        channel_max: The largest magnitude of each channel, float32 [C].
        iteration_max: The largest magnitude in each iteration, float32 [K].
        timestep_max: The largest magnitude in each diffusion step, float32 [T]. Zeros for layers of the backbone.
        histogram: Counts of magnitudes in `BINS` bins, int64.
        width: The width of a bin. It doubles when a value lies beyond the last bin.
        rows: A random sample of the activation's rows, float32 [`ROWS`, C]; only the first `seen` are filled.
        seen: The number of calls so far. Each call has the same chance to leave a row in `rows`.
    """

    def __init__(self, channels: int, iterations: int, timesteps: int) -> None:
        """Start without any activation, for C `channels`, K `iterations` and T `timesteps`."""
        self.channel_max = np.zeros(channels, np.float32)
        self.iteration_max = np.zeros(iterations, np.float32)
        self.timestep_max = np.zeros(timesteps, np.float32)
        self.histogram = np.zeros(BINS, np.int64)
        self.width = _FIRST_WIDTH
        self.rows = np.zeros((ROWS, channels), np.float32)
        self.seen = 0

    def update(
        self, activation: NDArray[np.float32], iteration: int, steps: range, random: np.random.Generator
    ) -> None:
        """Add one activation.

        Args:
            activation: The values of one call, [..., C].
            iteration: The iteration of the call, from 0.
            steps: The diffusion steps that the rows belong to; empty for the backbone.
            random: Chooses the rows for the histogram and for the sample.
        """
        rows = activation.reshape(-1, activation.shape[-1])
        if not len(rows):
            return
        magnitudes = np.abs(rows)
        channel_max = magnitudes.max(axis=0)
        largest = float(channel_max.max())
        np.maximum(self.channel_max, channel_max, out=self.channel_max)
        self.iteration_max[iteration] = max(self.iteration_max[iteration], largest)
        for step in steps:
            self.timestep_max[step] = max(self.timestep_max[step], largest)
        if len(magnitudes) > _HISTOGRAM_ROWS_PER_CALL:
            magnitudes = magnitudes[random.integers(len(magnitudes), size=_HISTOGRAM_ROWS_PER_CALL)]
        self._count(magnitudes)
        # Reservoir sampling (Vitter's algorithm R): each call is equally likely to have left one of the rows.
        place = self.seen if self.seen < ROWS else int(random.integers(self.seen + 1))
        if place < ROWS:
            self.rows[place] = rows[random.integers(len(rows))]
        self.seen += 1

    @property
    def largest(self) -> float:
        """The largest magnitude of all."""
        return float(self.channel_max.max())

    @property
    def sample(self) -> NDArray[np.float32]:
        """The rows that were kept, float32 [n, C]."""
        return self.rows[: min(self.seen, ROWS)]

    def divided(self, factors: NDArray[np.float32]) -> LayerStatistics:
        """Return the statistics of the activation divided by `factors` [C].

        The histogram is computed again, from the sampled rows alone.
        """
        result = LayerStatistics(len(factors), len(self.iteration_max), len(self.timestep_max))
        result.channel_max = self.channel_max / factors
        result.rows, result.seen = self.rows / factors, self.seen
        result._count(np.abs(result.sample))
        result._widen(result.largest)
        return result

    def _count(self, magnitudes: NDArray[np.float32]) -> None:
        """Add values to the histogram."""
        self._widen(float(magnitudes.max()))
        self.histogram += np.bincount((magnitudes / self.width).astype(np.int64).ravel(), minlength=BINS)

    def _widen(self, largest: float) -> None:
        """Double the width of the bins until `largest` falls into one."""
        while largest >= self.width * BINS:
            self.histogram = np.concatenate([self.histogram.reshape(-1, 2).sum(axis=1), np.zeros(BINS // 2, np.int64)])
            self.width *= 2


@dataclasses.dataclass
class ActivationStatistics:
    """Statistics of every layer of an artifact, collected while it generated images.

    Attributes:
        artifact: Identifies the artifact's graphs; see `calibration.quantization.collect.artifact_identity`.
        sampling: The sampling settings that the images were generated with.
        timesteps: Every timestep of the plan's diffusion chains, noisy to clean.
        layers: The statistics of each layer, by "engine/layer".
        images: The number of images so far.
    """

    artifact: str
    sampling: Mapping[str, Any]
    timesteps: tuple[float, ...]
    layers: dict[str, LayerStatistics] = dataclasses.field(default_factory=dict)
    images: int = 0

    def save(self, path: pathlib.Path) -> None:
        """Write everything to `path`, an .npz file with its hash. An interrupted write leaves the old file."""
        layers = {name: _LayerHeader(layer.width, layer.seen) for name, layer in self.layers.items()}
        arrays = {
            f"{name}:{part}": getattr(layer, part) for name, layer in self.layers.items() for part in _layer_arrays(0)
        }
        header = _Header(VERSION, self.artifact, dict(self.sampling), list(self.timesteps), self.images, layers)
        save_arrays(path, header, arrays)

    @classmethod
    def load(cls, path: pathlib.Path) -> ActivationStatistics:
        """Read a file that `save` wrote. Raises `CalibrationError` if it is damaged, altered or no such file."""
        fault_report = FaultReport(CalibrationError, "remove the file to collect the statistics again")
        header, arrays = load_arrays(path, _Header, fault_report)
        if header.version != VERSION:
            fault_report.raise_(path, f"statistics of version {header.version}, expected {VERSION}")
        result = cls(header.artifact, header.sampling, tuple(header.timesteps), images=header.images)
        for name, fields in header.layers.items():
            parts = {part: arrays.get(f"{name}:{part}") for part in _layer_arrays(0)}
            channels = 0 if parts["channel_max"] is None else parts["channel_max"].size
            for part, (dtype, shape) in _layer_arrays(channels).items():
                array = parts[part]
                if array is None or array.dtype != dtype or not shape_fits(array.shape, shape):
                    fault_report.raise_(path, f"{part} of the layer {truncate(name)} is missing or of another shape")
            layer = LayerStatistics(channels, 0, 0)
            vars(layer).update(parts, width=fields.width, seen=fields.seen)
            result.layers[name] = layer
        return result


@dataclasses.dataclass(frozen=True)
class _LayerHeader:
    """The numbers of a `LayerStatistics` that are no arrays."""

    width: float = dataclasses.field(metadata={"above": 0})
    seen: int = dataclasses.field(metadata={"least": 0})


@dataclasses.dataclass(frozen=True)
class _Header:
    """What a file of statistics holds beside arrays."""

    version: int
    artifact: str
    sampling: dict[str, Any]
    timesteps: list[float]
    images: int = dataclasses.field(metadata={"least": 0})
    layers: dict[str, _LayerHeader]


def _layer_arrays(channels: int) -> dict[str, tuple[type, tuple[int | None, ...]]]:
    """Return the dtype and the shape of each array of a layer of C `channels`, by name; None stands for any size."""
    return {
        "channel_max": (np.float32, (channels,)),
        "iteration_max": (np.float32, (None,)),
        "timestep_max": (np.float32, (None,)),
        "histogram": (np.int64, (BINS,)),
        "rows": (np.float32, (ROWS, channels)),
    }
