"""Hi-MAR in eager PyTorch is the published one, at every stage of the golden cases."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from runtime.model.latents import patchify
from tests.helpers.distance import relative_l2
from tests.helpers.himar_cases import CASES, himar_case, himar_checkpoint
from training.models.himar_reference import sample

# The bar of the description of the cases: at 1e-4 a wrong GELU goes unnoticed.
CLOSE = 1e-5


@pytest.mark.parametrize("file", CASES)
def test_every_stage_of_a_generation_is_the_published_one(file: str) -> None:
    model, case = himar_checkpoint().model, himar_case(file)
    arrays, plan = case.arrays, case.plan
    for phase, name in enumerate(("small", "big")):
        assert [i.count for i in plan.phase(phase)] == arrays[f"tokens_per_step_{name}"].tolist()
        assert [i.guidance_scale for i in plan.phase(phase)] == pytest.approx(arrays[f"guidance_{name}"].tolist())
    seen: dict[str, list[NDArray[np.float32]]] = {name: [] for name in ("z_small", "small", "small_z", "z_big", "big")}
    latents = sample(
        model,
        arrays["labels"],
        plan,
        case.order,
        case.noise,
        observe=lambda name, value: seen[name].append(value.numpy().copy()),
    )
    for found, expected in zip(seen["small"], arrays["tokens_small_after"], strict=True):
        assert relative_l2(found, expected) <= CLOSE
    assert relative_l2(seen["small_z"][0], arrays["small_z"]) <= CLOSE
    for name in ("z_small", "z_big"):
        iterations = plan.phase(int(name == "z_big"))
        order = arrays[f"generation_order_{name[2:]}"]
        for number, expected in zip(arrays[f"{name}_steps"], arrays[name], strict=True):
            iteration, z = iterations[number], seen[name][number]
            now = order[:, iteration.known : iteration.known + iteration.count]
            places = np.tile(now if name == "z_small" else order, (len(z) // len(now), 1))[..., None]
            assert relative_l2(np.take_along_axis(z, places, 1), np.take_along_axis(expected, places, 1)) <= CLOSE
    small = patchify(arrays["small_latents_float64"], 1)
    assert relative_l2(seen["small"][-1], small) <= CLOSE
    assert relative_l2(latents, arrays["latents_float64"]) <= CLOSE


def test_in_float64_the_latents_are_those_of_the_published_float64_run() -> None:
    model, case = copy.deepcopy(himar_checkpoint().model).double(), himar_case("case0.npz")
    latents = sample(model, case.arrays["labels"], case.plan, case.order, case.noise.astype(np.float64))
    assert relative_l2(latents, case.arrays["latents_float64"]) <= 1e-6


def test_the_dit_and_the_small_head_are_the_published_ones() -> None:
    model, arrays = himar_checkpoint().model, himar_case("case0.npz").arrays
    with torch.inference_mode():
        x, z = (torch.from_numpy(patchify(arrays[name], 1)) for name in ("dit_x", "dit_z"))
        eps = model.cond_diffloss.net(x, torch.from_numpy(arrays["dit_t"]).float(), z)
        mlp = (torch.from_numpy(arrays[name]).float() for name in ("mlp_x", "mlp_t", "mlp_z"))
        out = model.diffloss.net(*mlp)
    assert relative_l2(eps.numpy(), patchify(arrays["dit_eps"], 1)) <= 2e-6
    assert relative_l2(out.numpy(), arrays["mlp_out"]) <= 2e-6
