"""NOVA in eager PyTorch is the published one: condition, z of two iterations, tokens and latents of golden cases."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from runtime.errors import ConfigError
from runtime.model.latents import patchify
from runtime.sampling.nova_sampling import alphas_cumprod
from tests.helpers.distance import relative_l2
from tests.helpers.nova_cases import CASES, channels_first, nova_case, nova_checkpoint
from training.models.nova_reference import sample

# The bars of the README of the cases, which are stored in float32: a wrong GELU moves c by 1e-4, a wrong eps more.
CONDITION, Z, LATENTS = 2e-6, 1e-5, 5e-6


@pytest.mark.parametrize(("model_name", "file"), CASES)
def test_every_stage_of_a_generation_is_the_published_one(model_name: str, file: str) -> None:
    model, case = nova_checkpoint(model_name).model, nova_case(model_name, file)
    arrays, plan = case.arrays, case.plan
    assert [iteration.count for iteration in plan.iterations] == arrays["tokens_per_step"].tolist()
    assert relative_l2(plan.iterations[0].table.timesteps, arrays["timesteps"]) <= 1e-7
    with torch.inference_mode():
        condition = model.condition(*case.text(model.config, torch.float32))
    assert relative_l2(condition.numpy(), arrays["c"]) <= CONDITION

    seen: dict[str, list[NDArray[np.float32]]] = {"z": [], "tokens": []}
    latents = sample(
        model,
        condition,
        plan,
        arrays["order"],
        case.noise,
        observe=lambda name, value: seen[name].append(value.numpy().copy()),
    )
    for iteration, z, expected in zip(
        plan.iterations, seen["z"], (arrays["z_first"], arrays["z_second"]), strict=False
    ):
        places = arrays["order"][:, iteration.known : iteration.known + iteration.count]
        index = np.tile(places, (len(z) // len(places), 1))[..., None]
        assert relative_l2(np.take_along_axis(z, index, 1), np.take_along_axis(expected, index, 1)) <= Z
    for tokens, expected in zip(seen["tokens"], arrays["tokens_after"], strict=True):
        assert relative_l2(tokens, channels_first(expected, model.config)) <= LATENTS
    assert relative_l2(latents, arrays["latents_float64"]) <= LATENTS
    assert relative_l2(patchify(latents, model.config.patch_size), seen["tokens"][-1]) == 0


def test_the_noise_schedule_of_ddpm_is_the_published_one() -> None:
    config, expected = nova_checkpoint("case1").model.config, nova_case("case1", "run0.npz").arrays["alphas_cumprod"]
    assert alphas_cumprod(config.scheduler).astype(np.float32).tolist() == expected.tolist()


def test_heads_of_a_width_that_rotation_cannot_share_are_refused() -> None:
    """An eighth of its channels belongs to time, half of the others to row and column each, and all are pairs."""
    config = nova_checkpoint("case1").model.config
    for heads in (config.width // 32, config.width // 64):
        assert dataclasses.replace(config, heads=heads).rotary
    with pytest.raises(ConfigError, match=r"does not divide into the channels of its positions: .* one of 32"):
        dataclasses.replace(config, heads=config.width // 16)
