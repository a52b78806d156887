"""The scale and shift of an autoencoder's latents, wherever its files name them.

Latents of a model are (latent - shift) * scale. A scale and a shift for each channel cannot be applied.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from runtime.errors import CheckpointError, ConfigError
from training.models.autoencoder import LATENT_SCALE

SCALE_KEY, SHIFT_KEY, SOURCE_KEY = "latent_scale", "latent_shift", "latent_scale_source"
"""The keys in the header of an autoencoder that this project has written."""

_SCALE_KEYS = (SCALE_KEY, "scaling_factor", "scale_factor")
_SHIFT_KEYS = (SHIFT_KEY, "shift_factor")
_EACH_CHANNEL = ("latents_mean", "latents_std")
_DIFFUSERS_CLASS, _DIFFUSERS_SCALE = "AutoencoderKL", 0.18215  # what diffusers takes where the config has none


@dataclasses.dataclass(frozen=True)
class LatentScale:
    """How the latents of a model follow from those of its autoencoder.

    Attributes:
        scale: The factor; None where only a shift is named.
        shift: What is subtracted before.
        source: Where the two come from, for people.
    """

    scale: float | None = LATENT_SCALE
    shift: float = 0.0
    source: str = "the published KL-16"

    def replaced(self, scale: float | None, shift: float | None) -> LatentScale:
        """Return this with the values of --latent-scale and --latent-shift, where they are given.

        Raises:
            ConfigError: One is no number, or the scale is not positive.
        """
        given = {"--latent-scale": scale, "--latent-shift": shift}
        for option, value in given.items():
            if value is not None and not (math.isfinite(value) and (value > 0 or option == "--latent-shift")):
                raise ConfigError(
                    f"{option} must be a {'positive ' * (option == '--latent-scale')}number, found {value}"
                )
        names = " and ".join(option for option, value in given.items() if value is not None)
        return LatentScale(
            self.scale if scale is None else scale, self.shift if shift is None else shift, names or self.source
        )

    def values(self, path: pathlib.Path) -> tuple[float, float]:
        """Return the scale and the shift of the autoencoder at `path`.

        Raises:
            CheckpointError: Only a shift is named.
        """
        if self.scale is None:
            raise CheckpointError(
                f"{path}: a shift of {self.shift} is named ({self.source}), but no scale; give it with --latent-scale"
            )
        return self.scale, self.shift


def scale_of_header(header: Mapping[str, str], path: pathlib.Path) -> LatentScale | None:
    """Return the scale in the header of a safetensors file; None where it has none. Raises `CheckpointError`."""
    values: dict[str, Any] = {}
    for key in (*_SCALE_KEYS, *_SHIFT_KEYS, *_EACH_CHANNEL):
        if key in header:
            try:
                values[key] = float(header[key])
            except ValueError:
                values[key] = header[key]
    found = _scale_of(values, path, f"the header of {path.name}")
    source = header.get(SOURCE_KEY)
    return found if found is None or source is None else dataclasses.replace(found, source=source)


def scale_of_config(config: Mapping[str, Any], path: pathlib.Path) -> LatentScale | None:
    """Return the scale in the config of a component of diffusers, or the default of its class; None without either.

    Raises:
        CheckpointError: A value is no number, or there is one for each channel.
    """
    place = f"{path.parent.name}/{path.name}"
    if (found := _scale_of(config, path, place)) is not None:
        return found
    is_diffusers = config.get("_class_name") == _DIFFUSERS_CLASS
    source = f"the default of diffusers, because {place} names none"
    return LatentScale(_DIFFUSERS_SCALE, source=source) if is_diffusers else None


def scale_of_pickle(content: Any, path: pathlib.Path) -> LatentScale | None:
    """Return the scale that a training code stored with an autoencoder; None where there is none.

    Raises:
        CheckpointError: It is no number.
    """
    for place, values in _mappings(content):
        if (found := _scale_of(values, path, f"{place}{path.name}")) is not None:
            return found
    return None


def _mappings(content: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Give what may hold a scale: the file itself, its weights, and the arguments of its training."""
    if isinstance(content, Mapping):
        yield "", content
        for key in ("state_dict", "model", "hyper_parameters", "config", "args"):
            value = content.get(key)
            values = value if isinstance(value, Mapping) else getattr(value, "__dict__", None)
            if isinstance(values, Mapping):
                yield f"{key} in ", values


def _scale_of(values: Mapping[str, Any], path: pathlib.Path, place: str) -> LatentScale | None:
    for key in _EACH_CHANNEL:
        if values.get(key) is not None:
            raise CheckpointError(
                f"{path}: {key} has a value for each channel, which the engines cannot apply; expected one "
                "scaling_factor and one shift_factor"
            )
    scale_key = next((key for key in _SCALE_KEYS if values.get(key) is not None), None)
    shift_key = next((key for key in _SHIFT_KEYS if values.get(key) is not None), None)
    shift = 0.0 if shift_key is None else _number(values[shift_key], shift_key, path)
    if scale_key is None:
        return LatentScale(None, shift, f"{shift_key} in {place}") if shift else None
    scale = _number(values[scale_key], scale_key, path)
    if scale <= 0:
        raise CheckpointError(f"{path}: {scale_key} must be a positive number, found {scale}")
    return LatentScale(scale, shift, f"{scale_key} in {place}")


def _number(value: object, key: str, path: pathlib.Path) -> float:
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_meta:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        found = f"{value!r}" if isinstance(value, (int, float, str)) else type(value).__name__
        raise CheckpointError(f"{path}: {key} must be a number, found {found}")
    return float(value)
