"""Batches of the training of a UVA: recorded chunks with what was observed."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from runtime.model.uva_config import CHUNK
from runtime.sampling.noise_schedule import TRAIN_STEPS
from training.data.draws import example_stream
from training.data.loader import StepParts

_REPEATS = 16  # timesteps of each action in a step: 16 rows of the head cost little beside 1,024 of the transformers


class ChunkBatch(NamedTuple):
    """The arguments of `Uva.forward`, in its order."""

    latents: Tensor
    """Float32 [B, 4, 16, 16, 16]."""
    text: Tensor | None
    """Float32 [B, text_dim]."""
    state: Tensor | None
    """Float32 [B, 4 or 16, state_dim]."""
    actions: Tensor
    """Normalized, float32 [B, 16, A]."""
    timesteps: Tensor
    """Int64 [Q * B * 16]."""
    noise: Tensor
    """Float32 [Q * B * 16, A]."""

    def to(self, device: torch.device) -> ChunkBatch:
        """Return a copy on `device`."""

        def moved(part: Tensor) -> Tensor:
            return part.to(device, non_blocking=True)

        text, state = (None if part is None else moved(part) for part in (self.text, self.state))
        latents, actions, timesteps, noise = map(moved, (self.latents, self.actions, self.timesteps, self.noise))
        return ChunkBatch(latents, text, state, actions, timesteps, noise)


@dataclasses.dataclass(frozen=True)
class ChunkBatches(StepParts):
    """The micro-batches of the training of a UVA; `model` is its `UvaConfig`, `dataset` a file of chunks."""

    def _collate(self, step: int, places: range, examples: list[int]) -> ChunkBatch:
        chunks: Any = self.dataset
        streams = [example_stream(self.training.seed, step, place) for place in places]
        rows = (_REPEATS, CHUNK)
        timesteps = [stream.integers(0, TRAIN_STEPS, rows) for stream in streams]
        noise = [stream.standard_normal((*rows, self.model.action_dim), np.float32) for stream in streams]
        observed = chunks.request(examples)["observation"]
        text, state = (torch.from_numpy(observed[name]) if name in observed else None for name in ("text", "state"))
        return ChunkBatch(
            torch.from_numpy(observed["latents"]),
            text,
            state,
            torch.from_numpy(chunks.normalized(examples, self.model)),
            torch.from_numpy(np.stack(timesteps, axis=1)).flatten(),
            torch.from_numpy(np.stack(noise, axis=1)).flatten(0, 2),
        )
