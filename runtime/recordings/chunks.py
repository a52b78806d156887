"""Recorded chunks of a robot's actions, with what it saw before them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from runtime.errors import DataError
from runtime.model.latents import unpatchify
from runtime.model.uva_config import CHUNK, FRAMES, GRID, LATENT_CHANNELS, STATE_STEPS, UvaConfig
from runtime.recordings.recorded_arrays import ArraySpec, RecordedArrays

_OBSERVED = ("latents", "text", "state")


class Chunks(RecordedArrays):
    """Chunks of 16 actions and what was observed before them, in an `.npz` file.

    `latents` [n, 4, 16, 16, 16] are those of the frames, `actions` [n, 16, A] are in the units of the robot. `text`
    [n, d] and `state` [n, 4 or 16, s] make a model that reads them. All are floating point.
    """

    ARRAYS: ClassVar[Mapping[str, ArraySpec]] = {
        "latents": ArraySpec("f", (FRAMES, LATENT_CHANNELS, GRID, GRID)),
        "actions": ArraySpec("f", (CHUNK, None)),
        "text": ArraySpec("f", (None,), required=False),
        "state": ArraySpec("f", (None, None), required=False),
    }
    NOUN = "chunk"

    def _check(self) -> None:
        steps = self.arrays["state"].shape[1] if "state" in self.arrays else FRAMES
        if steps not in STATE_STEPS:
            raise DataError(
                f"{self._path}: state must have {' or '.join(map(str, STATE_STEPS))} steps a chunk, found {steps}"
            )

    def sizes(self, config: Any) -> dict[str, Any]:
        """Return the sizes of actions, texts and states."""
        sizes = {"action_dim": self.arrays["actions"].shape[-1], "text_dim": 0, "state_steps": 0, "state_dim": 0}
        if "text" in self.arrays:
            sizes["text_dim"] = self.arrays["text"].shape[-1]
        if "state" in self.arrays:
            sizes["state_steps"], sizes["state_dim"] = self.arrays["state"].shape[1:]
        return sizes

    def fitted(self) -> dict[str, Any]:
        """Return the normalization that brings every value of the actions to -1..1, as published; a constant to 0."""
        actions = self.arrays["actions"].astype(np.float64)
        low, high = actions.min(axis=(0, 1)), actions.max(axis=(0, 1))
        varies = high > low
        scale = np.where(varies, 2 / np.where(varies, high - low, 1), 1).astype(np.float32)
        offset = -scale * (low + high) / 2
        return {"action_scale": tuple(scale.tolist()), "action_offset": tuple(offset.astype(np.float32).tolist())}

    def request(self, examples: Sequence[int]) -> dict[str, Any]:
        """Return `observation`."""
        return {"observation": {n: self.arrays[n][list(examples)] for n in _OBSERVED if n in self.arrays}}

    def recorded(self, examples: Sequence[int], config: Any) -> NDArray[np.float32]:
        """Return the normalized actions as latents [B, A, 16, 1]."""
        return unpatchify(self.normalized(examples, config), config.grid_shape, config.patch_size)

    def normalized(self, examples: Sequence[int], config: UvaConfig) -> NDArray[np.float32]:
        """Return the actions of some chunks by the normalization of a model, float32 [B, 16, A]."""
        scale, offset = (np.array(values, np.float32) for values in (config.action_scale, config.action_offset))
        actions: NDArray[np.float32] = self.arrays["actions"][list(examples)]
        return actions * scale + offset
