"""The variants of the paper (arXiv 2406.11838, table 1) trained alike, exported, and judged: order, attention, loss.

    python -m mar_export.variants --data FOLDER --out out/variants --json variants.json --chart variants.png

Each is a run of `mar train` and an artifact in a folder of its own under --out. What is there already is not
made again; a run that was stopped goes on.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from mar_export.export import export_artifact
from runtime.artifact import Artifact, is_artifact
from runtime.errors import MarError
from runtime.files import replacing, sha256, write_json
from runtime.generator import Generator
from runtime.grid import save_grid
from runtime.options import PATH
from runtime.plan import Sampling
from training.checkpoint import CONFIG_FILE, WEIGHTS_FILE, load_checkpoint
from training.comparison import last_losses
from training.config import RunConfig
from training.data import open_dataset
from training.quality import Classifier, batches, frechet_distance, judge, load_or_train_classifier
from training.trainer import Trainer

# Small enough for minutes on one core; all variants have the same layers but for the last of the head.
_TRANSFORMER = {"embed_dim": 96, "depth": 1, "num_heads": 3}
_MODEL = {
    **{f"{half}_{name}": size for half in ("encoder", "decoder") for name, size in _TRANSFORMER.items()},
    "buffer_size": 4,
    "diffloss_d": 2,
    "diffloss_w": 128,
    "diffusion_batch_mul": 1,
}
_TRAINING = {
    "batch_size": 32,
    "learning_rate": 2e-3,
    "warmup_steps": 100,
    "ema_rate": 0.995,
    "flip": False,
    "precision": "fp32",
}
_CODES = 512
_MAR_ITERATIONS = 16
_SAMPLING = Sampling(diffusion_steps=50, sampler="ddim")
_BATCH = 100
_SHOWN = 10  # pictures of each variant in the chart


@dataclasses.dataclass(frozen=True)
class Variant:
    """A model that is trained."""

    attention: str
    order: str
    head: str

    @property
    def name(self) -> str:
        return f"{self.order}-{self.attention}-{self.head}"

    @property
    def model(self) -> dict[str, Any]:
        """Its model, as changes to the preset."""
        codes = _CODES if self.head == "codes" else 0
        return {**_MODEL, "attention": self.attention, "order": self.order, "head": self.head, "codes": codes}


VARIANTS = tuple(
    Variant(attention, order, head)
    for attention, order in (("causal", "raster"), ("causal", "random"), ("bidirectional", "random"))
    for head in ("codes", "diffusion")
)


def train(variant: Variant, data: pathlib.Path, run: pathlib.Path, steps: int) -> None:
    """A run of `steps` steps at `run`, gone on with where there is one."""
    if (run / CONFIG_FILE).exists():
        trainer = Trainer.resume(run, changes={"steps": steps})
    else:
        training = {**_TRAINING, "steps": steps, "checkpoint_every": 500, "sample_every": steps}
        told = {"data": str(data), "preset": "pixel_small", "model": variant.model, "training": training}
        trainer = Trainer.start(run, RunConfig.from_dict(told, variant.name))
    if trainer.step < steps:
        trainer.train()

