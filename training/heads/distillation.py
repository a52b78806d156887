"""A few steps that do what many of a teacher do: guided distillation of a head, its backbone frozen.

The teacher, a head of either kind, draws tokens by a chain of many guided steps without noise, so that
every first noise leads to one token. The student is a flow head. It learns the mean velocity of each part of that
path, from which one Euler step takes it to the end of the part: knowledge distillation (arXiv 2101.02388) for
one step, and for several in parts, as PeRFlow (arXiv 2405.07510) has them. Guidance is part of what the
teacher draws (arXiv 2210.03142), so the student needs no unconditional half, nor does the backbone.
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

# As late as a diffusion teacher is asked: above, an error of its eps is amplified hundreds of times.
_LARGEST_TIME = 0.9939  # log of signal over noise -5.1 (eMIGM, arXiv 2503.07197)
_ROWS = 4096  # of the teacher at once

# x [N, D], t, and the contexts of those rows -> the x0 that the teacher believes in, guided.
Teacher = Callable[[Tensor, float, HeadDataset], Tensor]


@dataclasses.dataclass(frozen=True)
class Paths:
    """Where the teacher went: `x` [N + 1, n, D], from noise to token, at the N times `times` and at 0."""

    x: Tensor
    times: tuple[float, ...]


def guided_teacher(model: MAR, cfg_scale: float) -> Teacher:
    """The head of `model` under a guidance that grows with the share of known tokens, as published."""
    net, predict = model.diffloss.net, _flow_x0 if model.config.head == "flow" else _diffusion_x0

    def teacher(x: Tensor, t: float, contexts: HeadDataset) -> Tensor:
        with_class = predict(net, x, t, contexts.z)
        if cfg_scale == 1:
            return with_class
        without = predict(net, x, t, contexts.no_class_z)
        return without + (1 + (cfg_scale - 1) * contexts.known) * (with_class - without)

    return teacher


def _flow_x0(net: HeadMLP, x: Tensor, t: float, z: Tensor) -> Tensor:
    return x - t * net(x, x.new_full((len(x),), TRAIN_STEPS * t), z).chunk(2, dim=-1)[0]


def _diffusion_x0(net: HeadMLP, x: Tensor, t: float, z: Tensor) -> Tensor:
    """A diffusion head on the straight path: at some timestep signal and noise are to each other as there."""
    t = min(t, _LARGEST_TIME)
    length = float(np.hypot(1 - t, t))
    signal, sigma = (1 - t) / length, t / length
    timestep = continuous_timestep(signal**2)
    eps = net(x / length, x.new_full((len(x),), timestep), z).chunk(2, dim=-1)[0]
    return (x / length - sigma * eps) / signal


@torch.inference_mode()
def teacher_paths(
    teacher: Teacher,
    contexts: HeadDataset,
    steps: int,
    teacher_steps: int,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Paths:
    """The paths of all `contexts` from one noise each, in `teacher_steps`, a multiple of `steps`, of second order."""
    times, columns = second_order(teacher_steps, 1.0, 0.0)
    random = np.random.default_rng(seed)
    parts = []
    for start in range(0, len(contexts), _ROWS):
        rows = contexts.rows(torch.arange(start, min(start + _ROWS, len(contexts))))
        x = torch.from_numpy(random.standard_normal(rows.target.shape, np.float32))
        x0, kept = torch.zeros_like(x), []
        for step in range(teacher_steps):
            if step % (teacher_steps // steps) == 0:
                kept.append(x)
            previous_x0, x0 = x0, teacher(x, float(times[step]) / TRAIN_STEPS, rows)
            row = {name: float(column[step]) for name, column in columns.items()}
            x = row["x_from_x"] * x + row["x_from_x0"] * x0 + row["x_from_previous_x0"] * previous_x0
        parts.append(torch.stack([*kept, x]))  # [N + 1, n, D]
        progress(len(rows))
    with torch.inference_mode(False):  # what is made within it could not take part in training
        return Paths(torch.cat(parts, dim=1), tuple(flow_times(steps).tolist()))


def distillation_loss(
    student: HeadMLP, contexts: HeadDataset, paths: Paths
) -> Callable[[Tensor, np.random.Generator], Tensor]:
    """The loss of `train_head`: velocity MSE against the mean velocity of a random part of each row's path."""
    begins = torch.tensor(paths.times)
    lengths = begins - torch.tensor([*paths.times[1:], 0.0])

    def loss(indices: Tensor, random: np.random.Generator) -> Tensor:
        part = torch.from_numpy(random.integers(0, len(begins), len(indices)))
        x, end = paths.x[part, indices], paths.x[part + 1, indices]  # [n, D] each
        velocity = student(x, TRAIN_STEPS * begins[part], contexts.z[indices]).chunk(2, dim=-1)[0]
        return (velocity.float() - (x - end) / lengths[part, None]).square().mean()

    return loss
