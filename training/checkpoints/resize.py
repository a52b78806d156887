"""A model for images of another size than it was trained on, as far as its position embeddings allow."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from training.checkpoints.tensor_files import fill
from training.models.mar import MAR


def resize_model(model: MAR, image_size: int) -> MAR:
    """`model` for images of image_size x image_size pixels: its embeddings of places, interpolated.

    Bicubic, without antialiasing, between the centres of the tokens, as is usual for vision transformers
    (arXiv 2010.11929, section 3.2); those of the buffer stay. Raises `ConfigError` for a size that makes
    no whole tokens.
    """
    config = dataclasses.replace(model.config, img_size=image_size)
    weights = dict(model.state_dict())
    for name in ("encoder_pos_embed_learned", "decoder_pos_embed_learned", "diffusion_pos_embed_learned"):
        weights[name] = _interpolated(weights[name], model.config.grid, config.grid)
    with torch.device("meta"):
        other = MAR(**config.to_dict())
    fill(other, weights, f"the model at {image_size}x{image_size}")
    return other


def _interpolated(embedding: Tensor, grid: int, wanted: int) -> Tensor:
    """[1, buffer + grid^2, E] -> [1, buffer + wanted^2, E]; the buffer may be none."""
    buffer = embedding.shape[1] - grid**2
    places = embedding[:, buffer:].transpose(1, 2).unflatten(2, (grid, grid))  # [1, E, h, w]
    places = F.interpolate(places, size=(wanted, wanted), mode="bicubic", align_corners=False)
    return torch.cat([embedding[:, :buffer], places.flatten(2).transpose(1, 2)], dim=1)
