"""A new flow head for a checkpoint with a frozen backbone: trained on real tokens, or distilled from its own head."""

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
from runtime.image_files import WHITE, Color
from runtime.sampling.constraints import check_masked_diffusion
from training.checkpoints.checkpoint import Checkpoint
from training.data.class_names import check_known_classes
from training.data.draws import draw_timesteps
from training.data.latent_dataset import check_model_fits, open_latents
from training.heads.dataset import HeadDataset, collect_head_dataset
from training.heads.distillation import distillation_loss, guided_teacher, teacher_trajectories
from training.heads.head_training import HeadTrainConfig, train_head
from training.models.mar import MAR
from training.reporting.progress import print_lines, print_warnings

OpenBar = Callable[[int, str], AbstractContextManager[Any]]
"""Opens a progress bar of a length under a label; its method `update(n)` advances it by n."""


@dataclasses.dataclass(frozen=True)
class HeadDataConfig:
    """The settings of the dataset that a head is trained on.

    Attributes:
        data: The dataset that the model was trained on: a folder of images, or of cached latents.
        count: The number of images to run the backbone on.
        seed: The seed of the choice of images, tokens and masks, and of the teacher's noise.
        background: The colour under transparent pixels of images.
    """

    data: pathlib.Path
    count: int
    seed: int
    background: Color = WHITE


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """The settings of a distillation.

    Attributes:
        steps: The steps of the distilled head.
        teacher_steps: The steps of the teacher, a multiple of `steps`.
        cfg_scale: The guidance scale that is built into the distilled head; 1 is no guidance.
    """

    steps: int
    teacher_steps: int
    cfg_scale: float


def train_flow_head(
    checkpoint: Checkpoint, data_config: HeadDataConfig, train_config: HeadTrainConfig, open_bar: OpenBar
) -> Checkpoint:
    """Train a flow head that starts from the weights of the checkpoint's head (flow matching, arXiv 2210.02747).

    Returns:
        `checkpoint` with the flow head; its backbone is the same.

    Raises:
        RequestError: The model has causal attention, or a VQ head.
        DataError: The dataset does not fit the model, or cannot be read.
        MarError: The loss is not finite.
    """
    dataset = _collect_dataset(checkpoint, data_config, open_bar)
    model = with_flow_head(checkpoint.model)
    diffloss, drop_probability = model.diffloss, model.config.label_drop_prob

    def loss(indices: Tensor, random: np.random.Generator) -> Tensor:
        rows = dataset.rows(indices)
        dropped = torch.from_numpy(random.random((len(indices), 1)) < drop_probability)
        timesteps = torch.from_numpy(draw_timesteps("flow", (len(indices),), random))
        noise = torch.from_numpy(random.standard_normal(rows.target.shape, np.float32))
        return diffloss(rows.target, torch.where(dropped, rows.unconditional_z, rows.z), timesteps, noise).mean()

    return _train(checkpoint, model, len(dataset), loss, train_config, open_bar)


def distill_head(
    checkpoint: Checkpoint,
    data_config: HeadDataConfig,
    train_config: HeadTrainConfig,
    distill_config: DistillConfig,
    open_bar: OpenBar,
) -> Checkpoint:
    """Distill the checkpoint's head into a flow head of few steps (see `training.heads.distillation`).

    Returns:
        `checkpoint` with the distilled head; its backbone is the same.

    Raises:
        RequestError: `teacher_steps` is no multiple of `steps`, or the checkpoint's head cannot be a teacher.
        DataError: The dataset does not fit the model, or cannot be read.
        MarError: The loss is not finite.
    """
    steps, teacher_steps = distill_config.steps, distill_config.teacher_steps
    if teacher_steps % steps:
        raise RequestError(f"the teacher's steps must be a multiple of the head's {steps} steps, found {teacher_steps}")
    if checkpoint.model.config.distilled_steps:
        raise RequestError(
            f"{checkpoint.source} has a distilled head, which cannot be a teacher; distill its original checkpoint"
        )
    dataset = _collect_dataset(checkpoint, data_config, open_bar)
    teacher = guided_teacher(checkpoint.model, distill_config.cfg_scale)
    with open_bar(len(dataset), "running the teacher") as bar:
        trajectories = teacher_trajectories(teacher, dataset, steps, teacher_steps, data_config.seed, bar.update)
    model = with_flow_head(checkpoint.model, steps)
    loss = distillation_loss(model.diffloss.net, dataset, trajectories)
    return _train(checkpoint, model, len(dataset), loss, train_config, open_bar)


def with_flow_head(model: MAR, distilled_steps: int = 0) -> MAR:
    """Copy `model` with a flow head that has the weights of its head.

    They are a good start for training: at high noise the velocity is nearly the noise itself, and the head's time input
    has the same scale for diffusion and for flow.
    """
    copy = MAR(**{**model.config.to_dict(), "head": "flow", "distilled_steps": distilled_steps})
    copy.load_state_dict(model.state_dict())
    return copy.eval()


def _collect_dataset(checkpoint: Checkpoint, data_config: HeadDataConfig, open_bar: OpenBar) -> HeadDataset:
    """Run the backbone on the images of `data_config`."""
    config = checkpoint.model.config
    check_masked_diffusion(config, "training a head on a frozen backbone")
    source = open_latents(data_config.data, config.img_size, data_config.background)
    print_lines(source.notes)
    check_model_fits(source, config, str(data_config.data))
    check_known_classes(source.classes, checkpoint.class_names, str(data_config.data), checkpoint.source)
    with open_bar(data_config.count, "running the backbone") as bar:
        dataset = collect_head_dataset(checkpoint.model, source, data_config.count, data_config.seed, bar.update)
    print_warnings(source.warnings)
    return dataset


def _train(
    checkpoint: Checkpoint,
    model: MAR,
    rows: int,
    loss: Callable[[Tensor, np.random.Generator], Tensor],
    config: HeadTrainConfig,
    open_bar: OpenBar,
) -> Checkpoint:
    """Train the head of `model` and put the model into `checkpoint`."""
    with open_bar(config.steps, "training the head") as bar:
        train_head(model.diffloss.net, rows, loss, config, lambda step, smoothed: bar.update(1))
    return dataclasses.replace(checkpoint, model=model)
