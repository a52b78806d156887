"""Distilled heads: what the teacher is asked, where its paths lead, and what the student learns of them."""

from __future__ import annotations

import copy
import dataclasses
import math
import pathlib

import numpy as np
import pytest
import torch
from torch import Tensor

from runtime.errors import MarError, RequestError
from runtime.sampling.noise_schedule import continuous_alphas_cumprod
from tests.helpers.tiny_runs import TINY, one_sentence, one_thread, randomized, write_idx_dataset
from training.checkpoints.checkpoint import Checkpoint
from training.data.latent_dataset import open_latents
from training.heads.dataset import HeadDataset, collect_head_dataset
from training.heads.distillation import Paths, _diffusion_x0, distillation_loss, guided_teacher, teacher_paths
from training.heads.head_training import HeadTraining, train_head
from training.heads.new_head import Material, distilled_head, trained_flow_head, with_flow_head
from training.models.diffusion_head import HeadMLP
from training.models.mar import MAR

MEAN, VARIANCE = 0.7, 0.25  # of a Gaussian that stands for the tokens


def gaussian_x0(x: Tensor, t: float) -> Tensor:
    """E[x0 | x] on the straight path."""
    return MEAN + (1 - t) * VARIANCE / ((1 - t) ** 2 * VARIANCE + t**2) * (x - (1 - t) * MEAN)


def contexts_of(rows: int, known: float = 0.5) -> HeadDataset:
    generator = torch.Generator().manual_seed(0)
    z, without = (torch.randn(rows, 24, generator=generator) for _ in range(2))
    return HeadDataset(torch.zeros(rows, 16), z, without, torch.full((rows, 1), known))


def small_head(seed: int = 0) -> HeadMLP:
    net = HeadMLP(16, 24, 32, 1)
    randomized(net, seed, 0.1)  # type: ignore[arg-type]
    return net


def bar(length: int, label: str) -> Bar:
    return Bar()


class Bar:
    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: object) -> None: ...

    def update(self, by: int) -> None: ...


# The teacher.


@pytest.mark.parametrize("t", [0.05, 0.5, 0.9, 0.99])
def test_a_diffusion_head_is_asked_at_the_timestep_of_the_same_noise(t: float) -> None:
    """One that knows a Gaussian exactly in its own process says on the straight path what is true there."""

    def exact(x: Tensor, timesteps: Tensor, z: Tensor) -> Tensor:
        alpha_bar = float(continuous_alphas_cumprod(timesteps[:1].double().numpy())[0])
        signal, sigma = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
        eps = sigma * (x - signal * MEAN) / (alpha_bar * VARIANCE + sigma**2)
        return torch.cat([eps, torch.zeros_like(eps)], dim=-1)

    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    found = _diffusion_x0(exact, x, t, x)  # type: ignore[arg-type]
    torch.testing.assert_close(found, gaussian_x0(x, t), rtol=2e-4, atol=2e-4)


def test_guidance_grows_with_what_is_known() -> None:
    model = MAR(**{**TINY.to_dict(), "head": "flow"}).eval()
    model.diffloss.net.load_state_dict(small_head().state_dict())
    rows, x = contexts_of(5, known=0.25), torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    swapped = dataclasses.replace(rows, z=rows.no_class_z)
    with torch.no_grad():
        with_class, without = (guided_teacher(model, 1.0)(x, 0.6, each) for each in (rows, swapped))
        found = guided_teacher(model, 3.0)(x, 0.6, rows)
    torch.testing.assert_close(found, without + 1.5 * (with_class - without))
    assert (found - with_class).abs().max() > 1e-3


def test_paths_lead_from_noise_to_where_the_flow_leads() -> None:
    rows = contexts_of(5000)  # more than are run together
    paths = teacher_paths(lambda x, t, contexts: gaussian_x0(x, t), rows, 4, 40, 3)
    assert paths.times == (1.0, 0.75, 0.5, 0.25)
    assert paths.x.shape == (5, 5000, 16)
    noise = paths.x[0]
    assert abs(float(noise.std()) - 1) < 0.01
    for t, x in zip((*paths.times, 0.0), paths.x, strict=True):
        along = (1 - t) * MEAN + math.sqrt((1 - t) ** 2 * VARIANCE + t**2) * noise
        torch.testing.assert_close(x, along, rtol=0, atol=0.02)


def test_paths_are_those_of_their_seed() -> None:
    rows = contexts_of(10)
    one, again, other = (teacher_paths(lambda x, t, c: 0.5 * x, rows, 2, 4, seed).x for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one[0], other[0])


# The student.


def test_the_loss_is_the_distance_from_the_mean_velocity_of_a_part() -> None:
    rows = contexts_of(3)
    x = torch.randn(3, 3, 16, generator=torch.Generator().manual_seed(1))
    paths, told = Paths(x, (1.0, 0.5)), []

    def student(x: Tensor, timesteps: Tensor, z: Tensor) -> Tensor:
        told.append(timesteps)
        part = (timesteps < 1000).long()
        velocity = (paths.x[part, torch.arange(3)] - paths.x[part + 1, torch.arange(3)]) / 0.5
        return torch.cat([velocity + 0.1, torch.zeros_like(velocity)], dim=-1)

    loss = distillation_loss(student, rows, paths)  # type: ignore[arg-type]
    for seed in range(4):
        assert loss(torch.arange(3), np.random.default_rng(seed)).item() == pytest.approx(0.01, rel=1e-4)
    assert {float(t) for timesteps in told for t in timesteps} == {1000.0, 500.0}


def test_a_student_learns_to_reach_in_one_step_what_the_teacher_reached_in_many() -> None:
    rows, student = contexts_of(256), small_head()
    paths = teacher_paths(lambda x, t, contexts: gaussian_x0(x, t), rows, 1, 10, 0)

    def off() -> float:
        with torch.no_grad():
            velocity = student(paths.x[0], torch.full((256,), 1000.0), rows.z)[:, :16]
        return float((paths.x[0] - velocity - paths.x[1]).square().mean())

    before, losses = off(), []
    training = HeadTraining(steps=150, batch_size=128, learning_rate=3e-3)
    with one_thread():
        train_head(
            student, 256, distillation_loss(student, rows, paths), training, lambda step, loss: losses.append(loss)
        )
    assert len(losses) == 150
    assert off() < 0.1 * before
    assert not student.training


def test_training_a_head_is_repeatable() -> None:
    rows, heads = contexts_of(32), [small_head(), small_head()]
    paths = teacher_paths(lambda x, t, contexts: gaussian_x0(x, t), rows, 1, 4, 0)
    for head in heads:
        train_head(head, 32, distillation_loss(head, rows, paths), HeadTraining(5, 16))
    for one, other in zip(*(head.parameters() for head in heads), strict=True):
        assert torch.equal(one, other)


def test_a_loss_that_is_not_finite_ends_the_training() -> None:
    head = small_head()
    with pytest.raises(MarError) as caught:
        train_head(head, 4, lambda rows, random: head.cond_embed.bias.sum() * math.nan, HeadTraining(5, 2))
    assert "the loss is nan at step 1; try a lower --learning-rate" in one_sentence(caught)


# With a backbone.


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_idx_dataset(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture
def checkpoint() -> Checkpoint:
    return Checkpoint(randomized(MAR(**TINY.to_dict())).eval(), "pixel", ("a", "b", "c"), "tiny", "0" * 64)


def test_contexts_are_what_the_backbone_says_of_real_tokens(data: pathlib.Path, checkpoint: Checkpoint) -> None:
    model, source = checkpoint.model, open_latents(data, TINY.img_size)
    found = collect_head_dataset(model, source, 40, seed=3)
    assert len(found) == len(found.z) == len(found.no_class_z) == len(found.known)
    assert found.z.shape[1] == TINY.decoder_embed_dim
    assert len(set(found.known.flatten().tolist())) > 1  # of its four batches each sees another share
    assert ((found.known * TINY.tokens).round() / TINY.tokens - found.known).abs().max() < 1e-6
    tokens = model.patchify(
        torch.from_numpy(np.stack([source.latent(i, False, np.random.default_rng()) for i in range(12)]))
    )
    apart = (found.target[:, None] - tokens.flatten(0, 1)).abs().amax(dim=-1).amin(dim=1)
    assert apart.max() == 0  # every target is a token of a real image
    assert (found.z - found.no_class_z).abs().max() > 1e-3
    again = collect_head_dataset(model, source, 40, seed=3)
    assert torch.equal(again.z, found.z)


def test_a_distilled_head_leaves_the_backbone_and_its_teacher_alone(data: pathlib.Path, checkpoint: Checkpoint) -> None:
    before = copy.deepcopy(checkpoint.model.state_dict())
    found = distilled_head(
        checkpoint, Material(data, 24, 0), HeadTraining(3, 8), bar, steps=2, teacher_steps=4, cfg_scale=2.0
    )
    assert (found.model.config.head, found.model.config.distilled_steps) == ("flow", 2)
    assert dataclasses.replace(found.model.config, head="diffusion", distilled_steps=0) == TINY
    for name, tensor in checkpoint.model.state_dict().items():
        assert torch.equal(tensor, before[name])
        if not name.startswith("diffloss."):
            assert torch.equal(found.model.state_dict()[name], tensor)
    assert not torch.equal(found.model.diffloss.net.input_proj.weight, checkpoint.model.diffloss.net.input_proj.weight)


def test_a_flow_head_can_be_trained_and_can_teach(data: pathlib.Path, checkpoint: Checkpoint) -> None:
    flow = trained_flow_head(checkpoint, Material(data, 24, 0), HeadTraining(3, 8), bar)
    assert (flow.model.config.head, flow.model.config.distilled_steps) == ("flow", 0)
    found = distilled_head(
        flow, Material(data, 24, 0), HeadTraining(3, 8), bar, steps=1, teacher_steps=4, cfg_scale=1.0
    )
    assert found.model.config.distilled_steps == 1


def test_what_cannot_be_distilled_is_told_before_the_work(checkpoint: Checkpoint, tmp_path: pathlib.Path) -> None:
    student = dataclasses.replace(checkpoint, model=with_flow_head(checkpoint.model, 2))
    for teacher, teacher_steps, told in (
        (checkpoint, 5, "the teacher's steps must be a multiple of the 2 distilled to, found 5"),
        (student, 4, "tiny has a distilled head, which cannot be a teacher"),
    ):
        with pytest.raises(RequestError) as caught:
            distilled_head(
                teacher,
                Material(tmp_path / "nothing", 8, 0),
                HeadTraining(1),
                bar,
                steps=2,
                teacher_steps=teacher_steps,
                cfg_scale=1.0,
            )
        assert told in one_sentence(caught)
