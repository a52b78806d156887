"""Flow heads in training: their loss, their times, and a whole run of one."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest
import torch
from torch import Tensor

from runtime.errors import ConfigError
from tests.helpers.tiny_runs import TINY, logged, one_thread, randomized, tiny_training, write_idx_dataset
from training.config import RunConfig
from training.data.draws import draw_timesteps, example_stream
from training.loop.mar_trainer import MarTrainer
from training.models.diffusion_head import DiffusionLoss
from training.models.flow_head import FlowLoss
from training.models.mar import MAR

FLOW = dataclasses.replace(TINY, head="flow")


def rows(count: int, channels: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    target, noise = (torch.randn(count, channels, generator=generator) for _ in range(2))
    return target, noise, torch.rand(count, generator=generator) * 1000


def test_the_loss_is_that_of_the_velocity_on_the_straight_path() -> None:
    target, noise, timesteps = rows(6)
    loss, seen = FlowLoss(16, 24, 32, 1), []

    def network(x: Tensor) -> Tensor:
        seen.append(x)
        return torch.cat([noise - target + 0.5, torch.full_like(x, 1e6)], dim=-1)  # the other half counts nothing

    torch.testing.assert_close(loss.loss_of(target, timesteps, noise, network), torch.full((6,), 0.25))
    t = timesteps[:, None] / 1000
    torch.testing.assert_close(seen[0], (1 - t) * target + t * noise)


def test_the_head_receives_time_and_z_of_each_row() -> None:
    target, noise, timesteps = rows(2 * 1500)  # more rows than there are whole timesteps
    z = torch.randn(1500, 24, generator=torch.Generator().manual_seed(1))
    loss = FlowLoss(16, 24, 32, 1)
    randomized(loss)  # type: ignore[arg-type]
    actual = loss(target, z, timesteps, noise)
    t = timesteps[:, None] / 1000
    velocity = loss.net((1 - t) * target + t * noise, timesteps, z.repeat(2, 1))[:, :16]
    torch.testing.assert_close(actual, (velocity - (noise - target)).square().mean(dim=-1), rtol=1e-4, atol=1e-5)


def test_a_flow_head_can_start_from_the_weights_of_a_diffusion_head() -> None:
    diffusion, flow = DiffusionLoss(16, 24, 32, 2), FlowLoss(16, 24, 32, 2)
    flow.load_state_dict(diffusion.state_dict())  # exactly the same names and shapes


def test_times_of_a_flow_head_are_logit_normal() -> None:
    actual = draw_timesteps("flow", (40_000,), np.random.default_rng(0))
    assert actual.dtype == np.float32
    assert (actual > 0).all()
    assert (actual < 1000).all()
    quartiles = 1000 / (1 + np.exp(-np.array([-0.6745, 0.0, 0.6745])))
    np.testing.assert_allclose(np.quantile(actual, [0.25, 0.5, 0.75]), quartiles, atol=6)


def test_timesteps_of_a_diffusion_head_are_integers_drawn_uniformly() -> None:
    actual = draw_timesteps("diffusion", (2, 5), example_stream(0, 0, 0))
    np.testing.assert_array_equal(actual, example_stream(0, 0, 0).integers(0, 1000, (2, 5)))


def test_a_run_of_a_flow_model_trains_samples_and_resumes(tmp_path: pathlib.Path) -> None:
    with one_thread():
        data = write_idx_dataset(tmp_path / "data")
        for run, steps in (("whole", 8), ("halves", 4)):
            MarTrainer.start(tmp_path / run, RunConfig(str(data), FLOW, tiny_training(steps, sample_every=4))).train()
        MarTrainer.resume(tmp_path / "halves", changes={"steps": 8}).train()
    assert logged(tmp_path / "halves", "loss") == logged(tmp_path / "whole", "loss")
    assert (tmp_path / "whole" / "samples" / "step-000008.png").exists()
    assert '"head": "flow"' in (tmp_path / "whole" / "config.json").read_text()


def test_mar_train_refuses_distilled_steps() -> None:
    model = {"name": "pixel_small", "head": "flow", "distilled_steps": 2}
    with pytest.raises(
        ConfigError, match="distilled_steps 2 is set by mar distill; resume its run with mar distill --resume"
    ):
        RunConfig.from_dict({"data": "x", "model": model, "training": {"steps": 1}}, "the flags")


def test_a_step_trains_the_velocity_and_not_the_other_half_of_the_output() -> None:
    model = randomized(MAR(**FLOW.to_dict())).train()
    generator = torch.Generator().manual_seed(0)
    order = torch.stack([torch.randperm(9, generator=generator) for _ in range(2)])
    loss = model(
        torch.randn(2, 1, 12, 12, generator=generator),
        torch.tensor([0, 3]),
        order,
        1000 * torch.rand(2, 2, 5, generator=generator),
        torch.randn(2, 2, 5, 16, generator=generator),
    )
    loss.backward()
    gradient = model.diffloss.net.final_layer.linear.weight.grad
    assert gradient is not None
    assert gradient[:16].abs().min(dim=1).values.max() > 0
    assert not gradient[16:].any()
