"""A grid of images drawn by a model in training, so that a person sees it learn."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np

from runtime.files import replacing
from runtime.image_grid import save_grid
from runtime.sampling.constraints import apply_constraints, default_sampling
from runtime.sampling.plan import build_plan
from runtime.sampling.rng import seeded_noise, seeded_order
from training.data.latent_dataset import LatentDataset
from training.models.mar import MAR
from training.models.reference_loop import sample

_CLASSES = 10
_ROWS = 2
_GUIDANCE = 2.0


def save_sample_grid(path: pathlib.Path, model: MAR, source: LatentDataset) -> None:
    """Two images of each of the first ten classes of `source`, the same orders and noises at every call."""
    config = model.config
    shown = min(_CLASSES, config.class_num)
    labels = np.tile(np.arange(shown, dtype=np.int64), _ROWS)
    usual = default_sampling(config)
    if config.head == "diffusion":  # not from t = 999: an error is amplified hundreds of times there, and it is young
        usual = dataclasses.replace(usual, diffusion_steps="ddim50")
    wanted = dataclasses.replace(usual, cfg_scale=_GUIDANCE, iterations=min(16, config.tokens))
    plan = build_plan(config.tokens, apply_constraints(config, wanted, {}))
    order = seeded_order(0, range(len(labels)), config, plan.token_order)
    noise = seeded_noise(0, range(len(labels)), plan.diffusion_steps, config)
    latents = sample(model, labels, plan, order, noise)
    with replacing(path) as temporary:
        save_grid(temporary, source.images(latents), [source.classes[label] for label in labels], columns=shown)
