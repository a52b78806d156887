"""Files of published models at full size, in the published format, with weights by formula.

The formula is that of shared/golden/README.md: each parameter a function of its name and shape, so that
nothing large has to be kept, and what the published code computes with them is known.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import zlib
from collections.abc import Mapping

import numpy as np
import torch

from tests.helpers.golden_cases import GOLDEN
from training.models.mar import MAR
from training.models.model_sizes import model_config

FULL = GOLDEN / "full"
_EMBEDDINGS = ("pos_embed_learned", "mask_token", "fake_latent", "class_emb.weight")


def formula_tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    random = np.random.Generator(np.random.Philox(key=zlib.crc32(name.encode())))
    values = random.standard_normal(shape, dtype=np.float32)
    if name.endswith(_EMBEDDINGS):
        values *= np.float32(0.5)
    elif len(shape) > 1:
        values /= np.float32(np.sqrt(np.prod(shape[1:])))
    elif name.endswith(".weight"):
        values = np.float32(1) + np.float32(0.1) * values
    else:
        values *= np.float32(0.05)
    return torch.from_numpy(values)


def formula_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    return {name: formula_tensor(name, tuple(shape)) for name, shape in shapes.items()}


def mar_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """The parameters of the published model called `name`."""
    with torch.device("meta"):
        model = MAR(**model_config(name).to_dict())
    return {parameter: tuple(tensor.shape) for parameter, tensor in model.state_dict().items()}


def write_published_mar(path: pathlib.Path, name: str) -> None:
    """A `checkpoint-last.pth` as the published trainer saves it, its optimizer's state left small."""
    config, weights = model_config(name), formula_weights(mar_shapes(name))
    arguments = {
        "model": name,
        "num_sampling_steps": "100",
        "lr": 1e-4,
        **{
            field: getattr(config, field)
            for field in ("img_size", "vae_embed_dim", "vae_stride", "patch_size", "class_num", "buffer_size")
        },
        "diffloss_d": config.diffloss_d,
        "diffloss_w": config.diffloss_w,
    }
    content = {
        "model": {"class_emb.weight": torch.zeros(1, 1)},  # not what is drawn with: only model_ema is read
        "model_ema": weights,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]},
        "epoch": 399,
        "scaler": {"scale": 65536.0},
        "args": argparse.Namespace(**arguments),
    }
    torch.save(content, path)


def write_published_vae(path: pathlib.Path) -> None:
    """A `kl16.ckpt` as it is published."""
    shapes = json.loads((FULL / "kl16_parameters.json").read_text())
    torch.save({"model": formula_weights(shapes)}, path)
