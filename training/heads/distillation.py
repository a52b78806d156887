"""Distillation of a head into a flow head of few steps, with guidance built in; the backbone is frozen.

The teacher is a diffusion head or a flow head. It generates tokens by many guided steps without noise, so that every
initial noise leads to one token. The student is a flow head. The teacher's trajectory is split into as many segments as
the student has steps, and the student learns the mean velocity of each segment: one Euler step then goes from the start
of a segment to its end. For one step this is knowledge distillation of a deterministic sampler (arXiv 2101.02388), for
several it is piecewise rectified flow (PeRFlow, arXiv 2405.07510). Guidance is part of the teacher's trajectory
(guided distillation, arXiv 2210.03142), so the student and its backbone need no unconditional pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from runtime.sampling.flow_samplers import flow_times, second_order
from runtime.sampling.noise_schedule import TRAIN_STEPS, continuous_timestep
from training.heads.dataset import HeadDataset
from training.models.diffusion_head import HeadMLP
from training.models.mar import MAR

# The largest time at which a diffusion teacher is evaluated. At larger times an error of its noise prediction is
# amplified hundreds of times. Here the log of the signal-to-noise ratio is -5.1 (eMIGM, arXiv 2503.07197).
_MAX_TIME = 0.9939
_TEACHER_BATCH = 4096  # rows

Teacher = Callable[[Tensor, float, HeadDataset], Tensor]
"""Maps x [N, D], the time t and the N rows of a dataset to the guided prediction of x0, [N, D]."""


@dataclasses.dataclass(frozen=True)
class TeacherTrajectories:
    """The teacher's trajectories from noise (t = 1) to tokens (t = 0) on the straight path x_t = (1 - t) x0 + t noise.

    Attributes:
        x: The points of every row at `times` and at t = 0, float32 [segments + 1, N, D].
        times: The times at which segments begin, from 1 downwards.
    """

    x: Tensor
    times: tuple[float, ...]


def guided_teacher(model: MAR, cfg_scale: float) -> Teacher:
    """Use the head of `model` as a teacher with classifier-free guidance (arXiv 2207.12598).

    The guidance scale grows linearly with the share of known tokens, from 1 to `cfg_scale`, as in published MAR.
    """
    net, predict = model.diffloss.net, _flow_x0 if model.config.head == "flow" else _diffusion_x0

    def teacher(x: Tensor, t: float, rows: HeadDataset) -> Tensor:
        conditional = predict(net, x, t, rows.z)
        if cfg_scale == 1:
            return conditional
        unconditional = predict(net, x, t, rows.unconditional_z)
        return unconditional + (1 + (cfg_scale - 1) * rows.known) * (conditional - unconditional)

    return teacher


def _flow_x0(net: HeadMLP, x: Tensor, t: float, z: Tensor) -> Tensor:
    """Predict x0 [N, D] with a flow head: x0 = x_t - t v."""
    return x - t * net(x, x.new_full((len(x),), TRAIN_STEPS * t), z).chunk(2, dim=-1)[0]


def _diffusion_x0(net: HeadMLP, x: Tensor, t: float, z: Tensor) -> Tensor:
    """Predict x0 [N, D] with a diffusion head, at the timestep whose signal-to-noise ratio is that of the time t."""
    t = min(t, _MAX_TIME)
    length = float(np.hypot(1 - t, t))
    signal, sigma = (1 - t) / length, t / length
    timestep = continuous_timestep(signal**2)
    eps = net(x / length, x.new_full((len(x),), timestep), z).chunk(2, dim=-1)[0]
    return (x / length - sigma * eps) / signal


@torch.inference_mode()
def teacher_trajectories(
    teacher: Teacher,
    dataset: HeadDataset,
    steps: int,
    teacher_steps: int,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> TeacherTrajectories:
    """Run the teacher with a second-order multistep solver, once for each row of `dataset`.

    Args:
        teacher: The teacher.
        dataset: The rows, N in total.
        steps: The number of segments, which are the student's steps.
        teacher_steps: The teacher's steps, a multiple of `steps`.
        seed: The seed of the initial noise.
        progress: Is called with the number of rows of each finished batch.
    """
    times, columns = second_order(flow_times(teacher_steps), 1.0, 0.0)
    random = np.random.default_rng(seed)
    batches = []
    for start in range(0, len(dataset), _TEACHER_BATCH):
        rows = dataset.rows(torch.arange(start, min(start + _TEACHER_BATCH, len(dataset))))
        x = torch.from_numpy(random.standard_normal(rows.target.shape, np.float32))
        x0, segment_starts = torch.zeros_like(x), []
        for step in range(teacher_steps):
            if step % (teacher_steps // steps) == 0:
                segment_starts.append(x)
            previous_x0, x0 = x0, teacher(x, float(times[step]) / TRAIN_STEPS, rows)
            row = {name: float(column[step]) for name, column in columns.items()}
            x = row["x_from_x"] * x + row["x_from_x0"] * x0 + row["x_from_previous_x0"] * previous_x0
        batches.append(torch.stack([*segment_starts, x]))  # [segments + 1, N, D]
        progress(len(rows))
    with torch.inference_mode(False):  # a tensor that is made in inference mode cannot take part in training
        return TeacherTrajectories(torch.cat(batches, dim=1), tuple(flow_times(steps).tolist()))


def distillation_loss(
    student: HeadMLP, dataset: HeadDataset, trajectories: TeacherTrajectories
) -> Callable[[Tensor, np.random.Generator], Tensor]:
    """Return the loss of a student: the squared error of the student's velocity at the start of a random segment.

    Its target is the mean velocity of the segment, (x_start - x_end) / (t_start - t_end).
    """
    starts = torch.tensor(trajectories.times)
    lengths = starts - torch.tensor([*trajectories.times[1:], 0.0])

    def loss(indices: Tensor, random: np.random.Generator) -> Tensor:
        segment = torch.from_numpy(random.integers(0, len(starts), len(indices)))
        x, end = trajectories.x[segment, indices], trajectories.x[segment + 1, indices]  # [B, D] each
        velocity = student(x, TRAIN_STEPS * starts[segment], dataset.z[indices]).chunk(2, dim=-1)[0]
        return (velocity.float() - (x - end) / lengths[segment, None]).square().mean()

    return loss
