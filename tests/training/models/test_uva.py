"""UVA in eager PyTorch computes what the published code computed, stage by stage."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from runtime.model.uva_config import UvaConfig
from tests.helpers.distance import relative_l2
from tests.helpers.uva_cases import CASES, uva_case, uva_checkpoint
from training.models.uva import Uva
from training.models.uva_reference import denoise, sample_actions

STAGES, ACTIONS, FLOAT64 = 2e-6, 5e-6, 1e-6
"""The bars of the golden cases; in float64 the rounding of their inputs and coefficients to float32 remains."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("model", "file"), CASES)
def test_every_stage_is_the_published_one(model: str, file: str, dtype: torch.dtype) -> None:
    case = uva_case(model, file)
    uva: Uva = copy.deepcopy(uva_checkpoint(model).model).to(dtype)
    inputs = {name: torch.from_numpy(array).to(dtype) for name, array in case.observation.items()}
    with torch.inference_mode():
        embedded = uva.embed(inputs["latents"], inputs.get("text"), inputs.get("state"))
        z = uva.transform(embedded)
        rows = uva.diffactloss.rows(z)
        timesteps = torch.full((len(case.arrays["out_first"]),), float(case.arrays["timesteps"][0]), dtype=dtype)
        noise = torch.from_numpy(case.arrays["noise"]).to(dtype)
        out = uva.head_network(noise[0], timesteps, rows.flatten(0, 1))
    if "embedded_first_every4" in case.arrays:
        assert relative_l2(embedded[:1, ::4].numpy(), case.arrays["embedded_first_every4"]) <= STAGES
    assert relative_l2(z[:1, ::4].numpy(), case.arrays["z_first_every4"]) <= STAGES
    assert relative_l2(rows.numpy(), case.arrays["rows"]) <= STAGES
    assert relative_l2(out.numpy(), case.arrays["out_first"]) <= ACTIONS
    actions = denormalized(sample_actions(uva, case.observation, case.plan.iterations[0].table, case.noise), uva.config)
    bar = FLOAT64 if dtype == torch.float64 else ACTIONS
    assert relative_l2(actions, case.arrays["action_pred_float64"]) <= bar


@pytest.mark.parametrize(("model", "file"), CASES)
def test_the_chain_visits_the_published_timesteps_and_states(model: str, file: str) -> None:
    case = uva_case(model, file)
    table, uva = case.plan.iterations[0].table, uva_checkpoint(model).model
    np.testing.assert_array_equal(table.timesteps, case.arrays["timesteps"])
    rows = torch.from_numpy(case.arrays["rows"]).flatten(0, 1)
    noise = torch.from_numpy(case.arrays["noise"])
    for steps, expected in zip((1, 2, table.steps - 1), case.arrays["x_steps"], strict=True):
        first = type(table)(table.timesteps[:steps], table.coefficients[:steps])
        with torch.inference_mode():
            assert relative_l2(denoise(uva, rows, noise, first).numpy(), expected) <= ACTIONS


def denormalized(actions: np.ndarray, config: UvaConfig) -> np.ndarray:
    if not config.action_scale:
        return actions
    return (actions - np.array(config.action_offset)) / np.array(config.action_scale)
