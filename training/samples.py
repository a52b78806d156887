"""A grid of pictures drawn by a model in training, so that a person sees it learn."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np

from runtime.files import replacing
from runtime.forms import formed
from runtime.grid import save_grid
from runtime.noise import seeded_noise, seeded_order
from runtime.plan import Sampling, build_plan
from training.model import MAR
from training.published import sample
from training.source import Source

_CLASSES = 10
_ROWS = 2
# Not from t = 999: there, an error of the head is amplified hundreds of times, and a young head errs.
_SAMPLING = Sampling(cfg_scale=2.0, diffusion_steps="ddim50")


def save_sample_grid(path: pathlib.Path, model: MAR, source: Source) -> None:
    """Two pictures of each of the first ten classes of `source`, the same orders and noises at every call."""
    config = model.config
    shown = min(_CLASSES, config.class_num)
    labels = np.tile(np.arange(shown, dtype=np.int64), _ROWS)
    sampling = formed(config, dataclasses.replace(_SAMPLING, iterations=min(16, config.tokens)), {})
    plan = build_plan(config.tokens, sampling)
    order = seeded_order(0, range(len(labels)), config, plan.token_order)
    noise = seeded_noise(0, range(len(labels)), plan.diffusion_steps, config)
    latents = sample(model, labels, plan, order, noise)
    with replacing(path) as temporary:
        save_grid(temporary, source.pictures(latents), [source.classes[label] for label in labels], columns=shown)
