"""Resizing of a model to images of another size than it was trained on."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from training.checkpoints.tensor_files import assign_weights
from training.models.mar import MAR


def resize_model(model: MAR, image_size: int) -> MAR:
    """Return a model for images of image_size x image_size pixels, with interpolated position embeddings.

    The interpolation is bicubic, without antialiasing, between the centers of the tokens, as is usual for vision
    transformers (arXiv 2010.11929, section 3.2). The embeddings of the class buffer stay as they are.

    Raises:
        ConfigError: The size is not a multiple of the side of a token.
    """
    config = dataclasses.replace(model.config, img_size=image_size)
    weights = dict(model.state_dict())
    for name in ("encoder_pos_embed_learned", "decoder_pos_embed_learned", "diffusion_pos_embed_learned"):
        weights[name] = _interpolate(weights[name], model.config.grid, config.grid)
    with torch.device("meta"):
        other = MAR(**config.to_dict())
    assign_weights(other, weights, f"the model at {image_size}x{image_size}")
    return other


def _interpolate(embedding: Tensor, grid: int, new_grid: int) -> Tensor:
    """Return the embedding [1, buffer + grid^2, E] as [1, buffer + new_grid^2, E]; the buffer may be empty."""
    buffer = embedding.shape[1] - grid**2
    positions = embedding[:, buffer:].transpose(1, 2).unflatten(2, (grid, grid))  # [1, E, h, w]
    positions = F.interpolate(positions, size=(new_grid, new_grid), mode="bicubic", align_corners=False)
    return torch.cat([embedding[:, :buffer], positions.flatten(2).transpose(1, 2)], dim=1)
