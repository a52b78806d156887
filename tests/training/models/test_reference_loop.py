"""The eager reference against what the published code computed, and the model against the reference."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from runtime.sampling.plan import Plan, build_plan
from runtime.sampling.rng import seeded_noise, seeded_order
from runtime.sampling.settings import Sampling
from tests.helpers.distance import relative_l2
from tests.helpers.golden_cases import GOLDEN, GOLDEN_TOLERANCE, GoldenCase
from training.checkpoints.checkpoint import load_checkpoint
from training.models import reference_loop as published
from training.models.mar import MAR

# Both sides are float64 up to here: what is left are the tables and frequencies that both keep in float32.
_FLOAT64_TOLERANCE = 1e-6


@functools.cache
def _golden_model(name: str, dtype: torch.dtype) -> MAR:
    folder = GOLDEN / name
    return load_checkpoint(folder / "checkpoint-last.pth", folder / "meta.json").model.to(dtype)


def _plan(case: GoldenCase) -> Plan:
    return build_plan(case.order.shape[1], Sampling(**case.settings))


def _sample(case: GoldenCase, dtype: torch.dtype, **options: Any) -> np.ndarray:
    model = _golden_model(case.model, dtype)
    return published.sample(model, case.labels, _plan(case), case.order, case.noise, **options)


def test_float32_sampling_gives_the_published_latents(golden_case: GoldenCase) -> None:
    latents = _sample(golden_case, torch.float32)
    assert latents.dtype == np.float32
    assert latents.shape == golden_case.latents.shape
    assert relative_l2(latents, golden_case.latents) < GOLDEN_TOLERANCE


def test_float64_sampling_gives_the_published_float64_latents(golden_case: GoldenCase) -> None:
    latents = _sample(golden_case, torch.float64)
    assert latents.dtype == np.float64
    assert relative_l2(latents, golden_case.latents) < _FLOAT64_TOLERANCE


def test_under_autocast_the_baseline_generates_the_same_within_bfloat16() -> None:
    model = _golden_model("small", torch.float32)
    plan = build_plan(model.config.tokens, Sampling(iterations=4, diffusion_steps=10, cfg_scale=2.0))
    order, noise = seeded_order(0, [0, 1], model.config), seeded_noise(0, [0, 1], 10, model.config)
    request = (model, np.array([1, 4]), plan, order, noise)
    exact = published.sample(*request)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = published.sample(*request)
    assert rounded.dtype == np.float32
    assert 1e-4 < relative_l2(rounded, exact) < 0.05


def test_the_plan_predicts_as_many_tokens_per_pass_as_the_published_code(golden_case: GoldenCase) -> None:
    assert [iteration.count for iteration in _plan(golden_case).iterations] == golden_case.tokens_per_step


def test_sampling_reports_the_time_of_both_stages(golden_case: GoldenCase) -> None:
    times: dict[str, float] = {}
    _sample(golden_case, torch.float32, times=times)
    assert set(times) == {"backbone", "head"}
    assert all(seconds > 0 for seconds in times.values())


def _random_splits(length: int, count: int) -> list[tuple[int, int]]:
    """(V, K) with V + K <= L: random ones, and those with nothing known, or nothing left over."""
    drawn = np.random.default_rng(11)
    splits = [(0, 1), (0, length), (length - 1, 1), (length // 2, length - length // 2), (1, 1)]
    for _ in range(count):
        known = int(drawn.integers(0, length))
        splits.append((known, int(drawn.integers(1, length - known + 1))))
    return splits


def _raster_z(model: MAR, tokens: Tensor, order: Tensor, known: int, labels: Tensor) -> Tensor:
    """z of all positions from the published form: tokens [B, L, D] in raster order, masks as booleans."""
    masked = torch.ones(order.shape, dtype=torch.bool).scatter(1, order[:, :known], False)
    return published._backbone(model, tokens, masked, labels)


@pytest.mark.parametrize(("known", "count"), _random_splits(16, count=8))
@pytest.mark.parametrize("name", ["small", "patch2"])
def test_lists_of_positions_give_the_z_of_boolean_masks(name: str, known: int, count: int) -> None:
    model = _golden_model(name, torch.float64)
    generator = torch.Generator().manual_seed(known * 100 + count)
    channels = model.config.token_channels
    tokens = torch.randn(3, 16, channels, generator=generator, dtype=torch.float64)
    order = torch.rand(3, 16, generator=generator).argsort(dim=1)  # another one for each image
    labels = torch.tensor([0, 5, model.config.class_num])  # the last stands for no class
    visible, predict, rest = order[:, :known], order[:, known : known + count], order[:, known + count :]
    given = tokens.gather(1, visible[..., None].expand(-1, -1, channels))
    with torch.inference_mode():
        z = model.predict(given, visible, predict, rest, labels)
        raster = _raster_z(model, tokens, order, known, labels)
    expected = raster.gather(1, predict[..., None].expand(-1, -1, raster.shape[-1]))
    assert z.shape == expected.shape
    assert relative_l2(z.numpy(), expected.numpy()) < 1e-12
