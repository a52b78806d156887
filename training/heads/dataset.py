"""What a frozen backbone says of masked tokens: all that a head needs to be trained apart from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data.draws import batch_examples, example_stream
from training.data.latent_dataset import LatentDataset, readable_latent
from training.models.mar import MAR

_BATCH = 64
_TOKENS_A_IMAGE = 16


@dataclasses.dataclass(frozen=True)
class HeadDataset:
    """Masked tokens of real images, float32.

    `target` [n, D] are the tokens themselves, `z` [n, C] and `no_class_z` [n, C] what the backbone says of
    them when it knows the class and when it does not, `known` [n, 1] the share of tokens that it saw.
    """

    target: Tensor
    z: Tensor
    no_class_z: Tensor
    known: Tensor

    def __len__(self) -> int:
        return len(self.target)

    def rows(self, indices: Tensor) -> HeadDataset:
        return HeadDataset(*(getattr(self, field.name)[indices] for field in dataclasses.fields(self)))


@torch.inference_mode()
def collect_head_dataset(
    model: MAR, source: LatentDataset, images: int, seed: int, progress: Callable[[int], None] = lambda done: None
) -> HeadDataset:
    """HeadDataset of up to 16 tokens of each of `images` images, `progress` being told of every few images.

    How many tokens the backbone sees is uniform in 0..L - 1, as it is over a generation, where each token is
    predicted once; in its own training most are masked.
    """
    found: list[HeadDataset] = []
    size = min(_BATCH, len(source.labels))
    for batch in range(-(-images // size)):
        examples = batch_examples(len(source.labels), size, batch, seed)[: images - batch * size]
        found.append(_contexts(model, source, examples, batch, seed))
        progress(len(examples))
    # A tensor made in inference mode could not take part in training: concatenation outside of it.
    with torch.inference_mode(False):
        return HeadDataset(
            *(torch.cat([getattr(part, f.name) for part in found]) for f in dataclasses.fields(HeadDataset))
        )


def _contexts(model: MAR, source: LatentDataset, examples: NDArray[np.int64], batch: int, seed: int) -> HeadDataset:
    config = model.config
    streams = [example_stream(seed, batch, place) for place in range(len(examples))]
    read = [readable_latent(source, int(i), False, stream) for i, stream in zip(examples, streams, strict=True)]
    tokens = model.patchify(torch.from_numpy(np.stack([latent for _, latent in read])))  # [B, L, D]
    order = torch.from_numpy(np.stack([stream.permutation(config.tokens) for stream in streams]))  # [B, L]
    known = int(streams[0].integers(config.tokens))  # V
    asked = min(_TOKENS_A_IMAGE, config.tokens - known)  # K
    visible, predict, rest = order.split([known, asked, config.tokens - known - asked], dim=1)
    seen, target = (
        tokens.gather(1, positions[..., None].expand(-1, -1, tokens.shape[-1])) for positions in (visible, predict)
    )
    labels = torch.from_numpy(source.labels[[example for example, _ in read]])
    z, no_class_z = (
        model.predict(seen, visible, predict, rest, asked_for).flatten(0, 1)  # [B K, C]
        for asked_for in (labels, torch.full_like(labels, config.class_num))
    )
    return HeadDataset(target.flatten(0, 1), z, no_class_z, torch.full((len(z), 1), known / config.tokens))
