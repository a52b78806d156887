"""The dataset that a head is trained on when the backbone is frozen: masked tokens with the backbone's outputs."""

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
_TOKENS_PER_IMAGE = 16


@dataclasses.dataclass(frozen=True)
class HeadDataset:
    """Masked tokens of real images and what the backbone predicts for them, as float32 tensors.

    Attributes:
        target: The tokens [n, D] that the head learns to generate.
        z: The backbone's output [n, C] for each token, given the class of the image.
        unconditional_z: The backbone's output [n, C] for each token without the class.
        known: The share of the image's tokens that the backbone was given, [n, 1], each in 0..1.
        image: The index of the image in its dataset, int64 [n].
    """

    target: Tensor
    z: Tensor
    unconditional_z: Tensor
    known: Tensor
    image: Tensor

    def __len__(self) -> int:
        return len(self.target)

    def rows(self, indices: Tensor) -> HeadDataset:
        """Select the rows at `indices`, int64 [B]."""
        return HeadDataset(*(getattr(self, field.name)[indices] for field in dataclasses.fields(self)))


@torch.inference_mode()
def collect_head_dataset(
    model: MAR, source: LatentDataset, count: int, seed: int, progress: Callable[[int], None] = lambda done: None
) -> HeadDataset:
    """Run the backbone of `model` on masked images, and collect up to 16 tokens of each.

    The number of known tokens is uniform in 0..L - 1, as in generation, where each token is predicted once. (In the
    training of the backbone most tokens are masked.) Images that cannot be read are replaced; the warnings of `source`
    name them.

    Args:
        model: The model, in evaluation mode.
        source: The images, as latents.
        count: The number of images.
        seed: The seed of the choice of images, tokens and masks.
        progress: Is called with the number of images of each finished batch.
    """
    batches: list[HeadDataset] = []
    size = min(_BATCH, len(source.labels))
    for batch in range(-(-count // size)):
        examples = batch_examples(len(source.labels), size, batch, seed)[: count - batch * size]
        batches.append(_collect_batch(model, source, examples, batch, seed))
        progress(len(examples))
    # A tensor that is made in inference mode cannot take part in training, so the concatenation is outside of it.
    with torch.inference_mode(False):
        return HeadDataset(
            *(torch.cat([getattr(part, f.name) for part in batches]) for f in dataclasses.fields(HeadDataset))
        )


def _collect_batch(
    model: MAR, source: LatentDataset, examples: NDArray[np.int64], batch: int, seed: int
) -> HeadDataset:
    """Collect the rows of one batch: the images `examples` [B], all with the same number of known tokens."""
    config = model.config
    streams = [example_stream(seed, batch, place) for place in range(len(examples))]
    latents = [readable_latent(source, int(i), False, stream) for i, stream in zip(examples, streams, strict=True)]
    tokens = model.patchify(torch.from_numpy(np.stack([latent for _, latent in latents])))  # [B, L, D]
    order = torch.from_numpy(np.stack([stream.permutation(config.tokens) for stream in streams]))  # [B, L]
    known = int(streams[0].integers(config.tokens))  # V
    predicted = min(_TOKENS_PER_IMAGE, config.tokens - known)  # K
    visible, predict, rest = order.split([known, predicted, config.tokens - known - predicted], dim=1)
    visible_tokens, target = (
        tokens.gather(1, positions[..., None].expand(-1, -1, tokens.shape[-1])) for positions in (visible, predict)
    )
    images = torch.tensor([example for example, _ in latents])
    labels = torch.from_numpy(source.labels)[images]
    z, unconditional_z = (
        model.predict(visible_tokens, visible, predict, rest, classes).flatten(0, 1)  # [B K, C]
        for classes in (labels, torch.full_like(labels, config.class_num))
    )
    shares, images = torch.full((len(z), 1), known / config.tokens), images.repeat_interleave(predicted)
    return HeadDataset(target.flatten(0, 1), z, unconditional_z, shares, images)
