"""A flow head for a checkpoint whose backbone stays as it is: trained anew, or distilled from the head it has."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runtime.errors import RequestError
from runtime.sampling.constraints import check_masked_diffusion
from training.checkpoints.checkpoint import Checkpoint
from training.data.draws import draw_timesteps
from training.data.latent_dataset import check_model_fits, open_latents
from training.heads.dataset import HeadDataset, collect_head_dataset
from training.heads.distillation import distillation_loss, guided_teacher, teacher_paths
from training.heads.head_training import HeadTraining, train_head
from training.models.mar import MAR
from training.reporting.progress import print_warnings

Bar = Callable[[int, str], AbstractContextManager[Any]]  # of a length, under a label; `update(by)` moves it


@dataclasses.dataclass(frozen=True)
class Material:
    """What a head is trained from: so many `images` of the dataset at `data`, everything drawn by `seed`."""

    data: pathlib.Path
    images: int
    seed: int


def trained_flow_head(checkpoint: Checkpoint, material: Material, training: HeadTraining, bar: Bar) -> Checkpoint:
    """`checkpoint` with a flow head that begins with the weights of the head it has."""
    contexts = _contexts(checkpoint, material, bar)
    model = with_flow_head(checkpoint.model)
    diffloss, share_dropped = model.diffloss, model.config.label_drop_prob

    def loss(indices: Tensor, random: np.random.Generator) -> Tensor:
        rows = contexts.rows(indices)
        dropped = torch.from_numpy(random.random((len(indices), 1)) < share_dropped)
        timesteps = torch.from_numpy(draw_timesteps("flow", (len(indices),), random))
        noise = torch.from_numpy(random.standard_normal(rows.target.shape, np.float32))
        return diffloss(rows.target, torch.where(dropped, rows.no_class_z, rows.z), timesteps, noise).mean()

    return _trained(checkpoint, model, len(contexts), loss, training, bar)


def distilled_head(
    checkpoint: Checkpoint,
    material: Material,
    training: HeadTraining,
    bar: Bar,
    *,
    steps: int,
    teacher_steps: int,
    cfg_scale: float,
) -> Checkpoint:
    """`checkpoint` with a flow head whose `steps` steps do what the head it has does in `teacher_steps`.

    Guidance of `cfg_scale`, linear in the share of known tokens, is built in. Raises `RequestError`.
    """
    if teacher_steps % steps:
        raise RequestError(f"the teacher's steps must be a multiple of the {steps} distilled to, found {teacher_steps}")
    if checkpoint.model.config.distilled_steps:
        raise RequestError(f"{checkpoint.source} has a distilled head, which cannot be a teacher; take its own teacher")
    contexts = _contexts(checkpoint, material, bar)
    teacher = guided_teacher(checkpoint.model, cfg_scale)
    with bar(len(contexts), "teacher") as shown:
        paths = teacher_paths(teacher, contexts, steps, teacher_steps, material.seed, shown.update)
    model = with_flow_head(checkpoint.model, steps)
    loss = distillation_loss(model.diffloss.net, contexts, paths)
    return _trained(checkpoint, model, len(contexts), loss, training, bar)


def with_flow_head(model: MAR, distilled_steps: int = 0) -> MAR:
    """A copy of `model` whose head is a flow head with the same weights.

    They are a good beginning: where there is much noise a velocity is nearly the noise itself, and the times
    of both processes are alike.
    """
    changed = MAR(**{**model.config.to_dict(), "head": "flow", "distilled_steps": distilled_steps})
    changed.load_state_dict(model.state_dict())
    return changed.eval()


def _contexts(checkpoint: Checkpoint, material: Material, bar: Bar) -> HeadDataset:
    config = checkpoint.model.config
    check_masked_diffusion(config, "training a head on a frozen backbone")
    source = open_latents(material.data, config.img_size)
    check_model_fits(source, config, str(material.data))
    with bar(material.images, "backbone") as shown:
        contexts = collect_head_dataset(checkpoint.model, source, material.images, material.seed, shown.update)
    print_warnings(source.warnings)
    return contexts


def _trained(
    checkpoint: Checkpoint,
    model: MAR,
    rows: int,
    loss: Callable[[Tensor, np.random.Generator], Tensor],
    training: HeadTraining,
    bar: Bar,
) -> Checkpoint:
    with bar(training.steps, "head") as shown:
        train_head(model.diffloss.net, rows, loss, training, lambda step, value: shown.update(1))
    return dataclasses.replace(checkpoint, model=model)
