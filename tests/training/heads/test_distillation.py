"""Distillation of heads: the teacher's predictions and trajectories, and what the student learns from them."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from runtime.sampling.noise_schedule import continuous_alphas_cumprod
from tests.helpers.tiny_runs import TINY, one_thread, randomized, write_idx_dataset
from training.checkpoints.checkpoint import Checkpoint
from training.data.latent_dataset import open_latents
from training.distributed import Processes
from training.heads.config import HeadTraining
from training.heads.dataset import HeadDataset, collect_head_dataset
from training.heads.distillation import (
    TeacherTrajectories,
    _diffusion_x0,
    distillation_loss,
    guided_teacher,
    teacher_trajectories,
)
from training.heads.train_step import HeadTrainStep, Loss, row_batches
from training.loop.optimizer_step import learning_rate
from training.models.diffusion_head import HeadMLP
from training.models.mar import MAR

MEAN, VARIANCE = 0.7, 0.25  # of a Gaussian that stands for the tokens


def gaussian_x0(x: Tensor, t: float) -> Tensor:
    """E[x0 | x] on the straight path."""
    return MEAN + (1 - t) * VARIANCE / ((1 - t) ** 2 * VARIANCE + t**2) * (x - (1 - t) * MEAN)


def head_dataset(rows: int, known: float = 0.5) -> HeadDataset:
    generator = torch.Generator().manual_seed(0)
    z, without = (torch.randn(rows, 24, generator=generator) for _ in range(2))
    return HeadDataset(torch.zeros(rows, 16), z, without, torch.full((rows, 1), known), torch.arange(rows))


def small_head(seed: int = 0) -> HeadMLP:
    net = HeadMLP(16, 24, 32, 1)
    randomized(net, seed, 0.1)  # type: ignore[arg-type]
    return net


def train(net: HeadMLP, rows: HeadDataset, loss: Loss, **settings: Any) -> list[float]:
    """Train a head alone, and return the losses."""
    config = HeadTraining(**settings)
    model = MAR(**{**TINY.to_dict(), "head": "flow"})
    model.diffloss.net = net
    step = HeadTrainStep(model, loss, config, Processes())
    batches = row_batches(rows, config, 0)
    return [step.update(number, [next(batches)]).loss for number in range(config.steps)]


# The teacher.


@pytest.mark.parametrize("t", [0.05, 0.5, 0.9, 0.99])
def test_a_diffusion_head_is_evaluated_at_the_timestep_of_the_same_noise(t: float) -> None:
    """A head that is exact for a Gaussian in the diffusion process is exact on the straight path too."""

    def exact(x: Tensor, timesteps: Tensor, z: Tensor) -> Tensor:
        alpha_bar = float(continuous_alphas_cumprod(timesteps[:1].double().numpy())[0])
        signal, sigma = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
        eps = sigma * (x - signal * MEAN) / (alpha_bar * VARIANCE + sigma**2)
        return torch.cat([eps, torch.zeros_like(eps)], dim=-1)

    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    x0 = _diffusion_x0(exact, x, t, x)  # type: ignore[arg-type]
    torch.testing.assert_close(x0, gaussian_x0(x, t), rtol=2e-4, atol=2e-4)


def test_guidance_grows_with_the_share_of_known_tokens() -> None:
    model = MAR(**{**TINY.to_dict(), "head": "flow"}).eval()
    model.diffloss.net.load_state_dict(small_head().state_dict())
    rows, x = head_dataset(5, known=0.25), torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    swapped = dataclasses.replace(rows, z=rows.unconditional_z)
    with torch.no_grad():
        conditional, unconditional = (guided_teacher(model, 1.0)(x, 0.6, each) for each in (rows, swapped))
        guided = guided_teacher(model, 3.0)(x, 0.6, rows)
    torch.testing.assert_close(guided, unconditional + 1.5 * (conditional - unconditional))
    assert (guided - conditional).abs().max() > 1e-3


def test_trajectories_follow_the_exact_flow() -> None:
    rows = head_dataset(5000)  # more than one batch of the teacher
    trajectories = teacher_trajectories(lambda x, t, rows: gaussian_x0(x, t), rows, 4, 40, 3)
    assert trajectories.times == (1.0, 0.75, 0.5, 0.25)
    assert trajectories.x.shape == (5, 5000, 16)
    noise = trajectories.x[0]
    assert abs(float(noise.std()) - 1) < 0.01
    for t, x in zip((*trajectories.times, 0.0), trajectories.x, strict=True):
        along = (1 - t) * MEAN + math.sqrt((1 - t) ** 2 * VARIANCE + t**2) * noise
        torch.testing.assert_close(x, along, rtol=0, atol=0.02)


def test_trajectories_depend_on_the_seed() -> None:
    rows = head_dataset(10)
    one, again, other = (teacher_trajectories(lambda x, t, rows: 0.5 * x, rows, 2, 4, seed).x for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one[0], other[0])


# The student.


def test_the_loss_is_the_squared_error_from_the_mean_velocity_of_a_segment() -> None:
    rows = head_dataset(3)
    x = torch.randn(3, 3, 16, generator=torch.Generator().manual_seed(1))
    trajectories, times = TeacherTrajectories(x, (1.0, 0.5)), []

    def student(x: Tensor, timesteps: Tensor, z: Tensor) -> Tensor:
        times.append(timesteps)
        segment = (timesteps < 1000).long()
        velocity = (trajectories.x[segment, torch.arange(3)] - trajectories.x[segment + 1, torch.arange(3)]) / 0.5
        return torch.cat([velocity + 0.1, torch.zeros_like(velocity)], dim=-1)

    loss = distillation_loss(student, rows, trajectories)  # type: ignore[arg-type]
    for seed in range(4):
        assert loss(torch.arange(3), np.random.default_rng(seed)).item() == pytest.approx(0.01, rel=1e-4)
    assert {float(t) for timesteps in times for t in timesteps} == {1000.0, 500.0}


def test_a_student_learns_to_do_in_one_step_what_the_teacher_does_in_many() -> None:
    rows, student = head_dataset(256), small_head()
    trajectories = teacher_trajectories(lambda x, t, rows: gaussian_x0(x, t), rows, 1, 10, 0)

    def error() -> float:
        with torch.no_grad():
            velocity = student(trajectories.x[0], torch.full((256,), 1000.0), rows.z)[:, :16]
        return float((trajectories.x[0] - velocity - trajectories.x[1]).square().mean())

    before = error()
    with one_thread():
        loss = distillation_loss(student, rows, trajectories)
        train(student, rows, loss, steps=150, batch_size=128, learning_rate=3e-3)
    assert error() < 0.1 * before


def test_training_a_head_is_repeatable() -> None:
    rows, heads = head_dataset(32), [small_head(), small_head()]
    trajectories = teacher_trajectories(lambda x, t, rows: gaussian_x0(x, t), rows, 1, 4, 0)
    for head in heads:
        train(head, rows, distillation_loss(head, rows, trajectories), steps=5, batch_size=16)
    for one, other in zip(*(head.parameters() for head in heads), strict=True):
        assert torch.equal(one, other)


def test_the_learning_rate_warms_up_and_falls_to_zero_along_a_cosine() -> None:
    config = HeadTraining(steps=1000, learning_rate=1e-3)
    rates = [learning_rate(config, step) for step in range(1000)]
    assert rates[0] == pytest.approx(1e-5)
    assert rates[99] == pytest.approx(1e-3 * (1 + math.cos(math.pi * 0.099)) / 2)
    assert rates[500] == pytest.approx(5e-4)
    assert rates[999] < 1e-8


# With a backbone.


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_idx_dataset(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture
def checkpoint() -> Checkpoint:
    return Checkpoint(randomized(MAR(**TINY.to_dict())).eval(), "pixel", ("a", "b", "c"), "tiny", "0" * 64)


def test_a_head_dataset_has_real_tokens_and_the_outputs_of_the_backbone(
    data: pathlib.Path, checkpoint: Checkpoint
) -> None:
    model, source = checkpoint.model, open_latents(data, TINY.img_size)
    dataset = collect_head_dataset(model, source, 40, seed=3)
    assert len(dataset) == len(dataset.z) == len(dataset.unconditional_z) == len(dataset.known)
    assert dataset.z.shape[1] == TINY.decoder_embed_dim
    assert len(set(dataset.known.flatten().tolist())) > 1  # the batches differ in the number of known tokens
    assert ((dataset.known * TINY.tokens).round() / TINY.tokens - dataset.known).abs().max() < 1e-6
    tokens = model.patchify(
        torch.from_numpy(np.stack([source.latent(i, False, np.random.default_rng()) for i in range(12)]))
    )
    distance = (dataset.target[:, None] - tokens.flatten(0, 1)).abs().amax(dim=-1).amin(dim=1)
    assert distance.max() == 0  # every target is a token of a real image
    assert (dataset.z - dataset.unconditional_z).abs().max() > 1e-3
    closest = (dataset.target[:, None, None] - tokens).abs().amax(dim=-1).amin(dim=2).argmin(dim=1)
    assert torch.equal(closest, dataset.image)  # and of the image that it names
    again = collect_head_dataset(model, source, 40, seed=3)
    assert torch.equal(again.z, dataset.z)
