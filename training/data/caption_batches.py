"""Batches of the training of a NOVA: captions with their images."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.model.nova_config import FLOW, NovaConfig, NovaScheduler
from runtime.sampling.noise_schedule import TRAIN_STEPS
from runtime.sampling.nova_sampling import shifted
from training.data.draws import draw_timesteps, example_stream, step_stream
from training.data.loader import StepParts

_DROPPED = 0.1  # the share of examples with the empty prompt, which guidance needs (arXiv 2207.12598, section 3.2)
_REPEATS = 4  # timesteps of each masked token in a step, as of MAR: the head costs little beside the transformers


class CaptionBatch(NamedTuple):
    """The arguments of `Nova.forward`, in its order."""

    latents: Tensor
    """Float32 [B, c, h, w]."""
    text: Tensor
    """Rows of the captions, float32 [B, S, d]."""
    lengths: Tensor
    """How many of them each caption has, int64 [B]; 0 where the caption was dropped."""
    order: Tensor
    """A permutation of the positions, int64 [B, L]."""
    timesteps: Tensor
    """Float32 for a flow, int64 for DDPM, [Q, B, K]."""
    noise: Tensor
    """Float32 [Q, B, K, D]."""

    def to(self, device: torch.device) -> CaptionBatch:
        """Return a copy on `device`."""
        return CaptionBatch(*(tensor.to(device, non_blocking=True) for tensor in self))


@dataclasses.dataclass(frozen=True)
class CaptionBatches(StepParts):
    """The micro-batches of the training of a NOVA; `model` is its `NovaConfig`, `dataset` a file of captions.

    The share of masked tokens is cos(pi/2 u) for a uniform u, so it is distributed as in generation (MaskGIT, arXiv
    2202.04200, section 3.3).
    """

    def _collate(self, step: int, places: range, examples: list[int]) -> CaptionBatch:
        config: NovaConfig = self.model
        captions: Any = self.dataset
        ratio = math.cos(math.pi / 2 * step_stream(self.training.seed, step).random())
        rows = (_REPEATS, min(config.tokens, max(1, math.ceil(config.tokens * ratio))))
        lengths, columns = captions.arrays["lengths"][examples].astype(np.int64), []
        for number, place in enumerate(places):
            stream = example_stream(self.training.seed, step, place)
            if stream.random() < _DROPPED:
                lengths[number] = 0
            columns.append(
                (
                    stream.permutation(config.tokens),
                    _timesteps(config.scheduler, rows, stream),
                    stream.standard_normal((*rows, config.token_channels), np.float32),
                )
            )
        orders, timesteps, noise = zip(*columns, strict=True)
        return CaptionBatch(
            torch.from_numpy(captions.latents(examples)),
            torch.from_numpy(captions.arrays["prompt_embeds"][examples]),
            torch.from_numpy(lengths),
            torch.from_numpy(np.stack(orders)),
            torch.from_numpy(np.stack(timesteps, axis=1)),
            torch.from_numpy(np.stack(noise, axis=1)),
        )


def _timesteps(
    scheduler: NovaScheduler, shape: tuple[int, ...], stream: np.random.Generator
) -> NDArray[np.int64] | NDArray[np.float32]:
    """Draw timesteps, those of a flow with the shift of the model.

    The more values a token has, the later noise hides which token it is, and the closer to 1 are the noise levels at
    which the head needs the caption (arXiv 2403.03206, equation 23 and the text around it).
    """
    if scheduler.kind != FLOW:
        return draw_timesteps("diffusion", shape, stream)
    levels = draw_timesteps("flow", shape, stream) / TRAIN_STEPS
    return (TRAIN_STEPS * shifted(levels, scheduler.shift)).astype(np.float32)
