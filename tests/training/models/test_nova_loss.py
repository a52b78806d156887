"""The loss of a NOVA asks for what its samplers undo: from the exact answer, every step finds the clean tokens."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from runtime.model.coefficients import COEFFICIENTS
from runtime.model.nova_config import DDPM, FLOW, NovaScheduler
from runtime.sampling.constraints import default_sampling, plan_for
from training.models.model_sizes import model_config
from training.models.nova_loss import noisy_and_target

SCHEDULERS = [
    NovaScheduler(FLOW),
    NovaScheduler(DDPM),
    NovaScheduler(DDPM, beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing"),
    NovaScheduler(DDPM, beta_schedule="scaled_linear", prediction_type="v_prediction"),
]


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda s: f"{s.kind} {s.beta_schedule} {s.prediction_type}")
def test_every_step_of_the_sampler_finds_the_clean_tokens_from_the_target(scheduler: NovaScheduler) -> None:
    config = model_config("nova_small", scheduler=dataclasses.asdict(scheduler))
    table = plan_for(config, default_sampling(config)).iterations[0].table
    torch.manual_seed(0)
    clean, noise = torch.randn(2, table.steps, 7, 5).double()
    timesteps = torch.from_numpy(table.timesteps.copy())[:, None].expand(-1, 7)
    timesteps = timesteps.long() if scheduler.kind == DDPM else timesteps.double()
    noisy, target = noisy_and_target(scheduler, clean, noise, timesteps)
    rows = torch.from_numpy(table.coefficients).double()
    of_x, of_target = (rows[:, COEFFICIENTS.index(name), None, None] for name in ("x0_from_x", "x0_from_eps"))
    assert torch.allclose(of_x * noisy + of_target * target, clean, atol=2e-3)
    assert (noisy.std(dim=(1, 2)) > 0.5).all()


def test_half_way_a_flow_is_the_mean_of_token_and_noise() -> None:
    noisy, velocity = noisy_and_target(NovaScheduler(FLOW), torch.ones(1), torch.full((1,), 3.0), torch.tensor(500.0))
    assert (noisy.item(), velocity.item()) == (2.0, 2.0)
