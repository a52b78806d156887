"""Models of other forms than the published one, small and with random weights."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch

from mar_export.artifact.export import export_artifact
from tests.helpers.artifacts import made_once
from training.checkpoints.checkpoint import Checkpoint
from training.models.mar import MAR
from training.models.model_sizes import model_config

# Sixteen tokens; encoder and decoder of different widths, so that none is taken for the other.
_SIZES = {
    "img_size": 16,
    "class_num": 3,
    "encoder_embed_dim": 32,
    "encoder_depth": 1,
    "encoder_num_heads": 2,
    "decoder_embed_dim": 24,
    "decoder_depth": 1,
    "decoder_num_heads": 2,
    "diffloss_d": 1,
    "diffloss_w": 32,
}
_FORMS: dict[str, dict[str, Any]] = {
    "causal": {"attention": "causal"},
    "raster vq": {"order": "raster", "head": "vq", "codebook_size": 40},
    "causal vq": {"attention": "causal", "head": "vq", "codebook_size": 40},
}


def variant_checkpoint(form: str) -> Checkpoint:
    config = model_config("pixel_small", **_SIZES, **_FORMS[form])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MAR(**config.to_dict())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return Checkpoint(model.eval(), "pixel", ("cat", "dog", "cow"), "random weights", "0" * 64)


def variant_artifact(form: str, factory: pytest.TempPathFactory) -> pathlib.Path:
    """The model of `variant_checkpoint`, exported once a session. Read only."""

    def export(folder: pathlib.Path) -> None:
        export_artifact(variant_checkpoint(form), folder / "artifact", lambda text: None)

    return made_once(factory, f"{form.replace(' ', '-')}-artifact", export) / "artifact"
