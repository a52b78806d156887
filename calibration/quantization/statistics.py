"""What passes into each quantizable product: streaming, in bounded memory, and saved to be looked at again."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import CalibrationError
from runtime.files import replacing

VERSION = 1
BINS = 2048
ROWS = 256  # of activations that are kept as they are, to measure errors on
_ROWS_OF_A_CALL = 64  # that are counted into the histogram
_FIRST_WIDTH = 1e-4
_MAXIMA = ("channel_max", "iteration_max", "timestep_max")


class LayerStatistics:
    """Of one product's activation: absolute maxima by channel, iteration and timestep, a histogram, some rows."""

    def __init__(self, channels: int, iterations: int, timesteps: int) -> None:
        self.channel_max = np.zeros(channels, np.float32)
        self.iteration_max = np.zeros(iterations, np.float32)
        self.timestep_max = np.zeros(timesteps, np.float32)
        self.histogram = np.zeros(BINS, np.int64)  # of absolute values, in bins of `width`
        self.width = _FIRST_WIDTH
        self.rows = np.zeros((ROWS, channels), np.float32)
        self.seen = 0  # calls, of which each may leave a row

    def update(
        self, activation: NDArray[np.float32], iteration: int, timesteps: range, random: np.random.Generator
    ) -> None:
        """Count activation [..., C] of an iteration, and of diffusion steps where its rows are of such."""
        rows = activation.reshape(-1, activation.shape[-1])
        if not len(rows):
            return
        size = np.abs(rows)
        of_channels = size.max(axis=0)
        largest = float(of_channels.max())
        np.maximum(self.channel_max, of_channels, out=self.channel_max)
        self.iteration_max[iteration] = max(self.iteration_max[iteration], largest)
        for step in timesteps:
            self.timestep_max[step] = max(self.timestep_max[step], largest)
        self._count(size[random.integers(len(size), size=_ROWS_OF_A_CALL)] if len(size) > _ROWS_OF_A_CALL else size)
        # Every call is as likely to have left one of the rows (Vitter's algorithm R).
        place = self.seen if self.seen < ROWS else int(random.integers(self.seen + 1))
        if place < ROWS:
            self.rows[place] = rows[random.integers(len(rows))]
        self.seen += 1

    @property
    def largest(self) -> float:
        return float(self.channel_max.max())

    @property
    def sample(self) -> NDArray[np.float32]:
        """The rows that are kept, [n, C]."""
        return self.rows[: min(self.seen, ROWS)]

    def divided(self, factors: NDArray[np.float32]) -> LayerStatistics:
        """Of the same activation divided by `factors` [C]: all that depends on single values by the rows alone."""
        found = LayerStatistics(len(factors), len(self.iteration_max), len(self.timestep_max))
        found.channel_max = self.channel_max / factors
        found.rows, found.seen = self.rows / factors, self.seen
        found._count(np.abs(found.sample))
        found._widen(found.largest)
        return found

    def _count(self, size: NDArray[np.float32]) -> None:
        self._widen(float(size.max()))
        self.histogram += np.bincount((size / self.width).astype(np.int64).ravel(), minlength=BINS)

    def _widen(self, largest: float) -> None:
        """Make bins so wide that `largest` falls into one."""
        while largest >= self.width * BINS:
            self.histogram = np.concatenate([self.histogram.reshape(-1, 2).sum(axis=1), np.zeros(BINS // 2, np.int64)])
            self.width *= 2


@dataclasses.dataclass
class Statistics:
    """Of every product of an artifact, by engine and layer, over `images` drawn with `sampling`."""

    artifact: str  # what identifies its graphs
    sampling: Mapping[str, Any]
    timesteps: tuple[float, ...]  # every timestep of the plan's chains, noisy to clean
    layers: dict[str, LayerStatistics] = dataclasses.field(default_factory=dict)  # by "engine/layer"
    images: int = 0

    def save(self, path: pathlib.Path) -> None:
        """Write everything to `path`, an .npz, all or nothing."""
        arrays: dict[str, Any] = {}
        about: dict[str, Any] = {
            "version": VERSION,
            "artifact": self.artifact,
            "sampling": dict(self.sampling),
            "timesteps": list(self.timesteps),
            "images": self.images,
            "layers": {},
        }
        for name, layer in self.layers.items():
            about["layers"][name] = {"width": layer.width, "seen": layer.seen}
            for part in (*_MAXIMA, "histogram", "rows"):
                arrays[f"{name}:{part}"] = getattr(layer, part)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, about=np.array(json.dumps(about)), **arrays)

    @classmethod
    def load(cls, path: pathlib.Path) -> Statistics:
        """What `save` wrote. Raises `CalibrationError`."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                about = json.loads(str(arrays["about"]))
                if about["version"] != VERSION:
                    raise CalibrationError(f"{path}: statistics of version {about['version']}, this reads {VERSION}")
                found = cls(about["artifact"], about["sampling"], tuple(about["timesteps"]), images=about["images"])
                for name, told in about["layers"].items():
                    parts = {part: arrays[f"{name}:{part}"] for part in _MAXIMA}
                    layer = LayerStatistics(*(len(part) for part in parts.values()))
                    vars(layer).update(parts, **told)
                    layer.histogram, layer.rows = arrays[f"{name}:histogram"], arrays[f"{name}:rows"]
                    found.layers[name] = layer
        except OSError as error:
            raise CalibrationError(f"{path}: cannot be read ({error.strerror or error}); calibrate again") from None
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise CalibrationError(f"{path}: not a statistics file ({error}); calibrate again") from None
        return found
