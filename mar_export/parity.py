"""Whether exported engines compute what the eager model computes, as numbers that go into the manifest."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mar_export.examples import example_inputs, parity_sizes
from runtime.backends import Engine
from runtime.config import ModelConfig
from runtime.errors import ParityError
from runtime.generator import Generator
from runtime.noise import seeded_noise, seeded_order
from runtime.spec import EngineSpec
from training.model import MAR
from training.published import sample

GENERATION_TOLERANCE = 1e-4  # relative L2 of the latents; float32 round-off alone is 3e-7 to 3e-6
_GENERATION = {"preset": "exact", "cfg_scale": 2.0, "diffusion_steps": 10, "start_timestep": 900}


def relative_l2(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """|found - expected| / |expected|, in float64; infinite where a value is not finite."""
    difference = np.linalg.norm(found.astype(np.float64) - expected.astype(np.float64))
    distance = float(difference / max(float(np.linalg.norm(expected.astype(np.float64))), 1e-30))
    return distance if np.isfinite(distance) else float("inf")


def engine_parity(engine: Engine, module: nn.Module, spec: EngineSpec, config: ModelConfig) -> dict[str, Any]:
    """The worst distance of an engine from its module over random inputs of every size. Raises `ParityError`."""
    worst = 0.0
    cases = parity_sizes(config)
    for seed, sizes in enumerate(cases):
        inputs = example_inputs(spec, config, sizes, seed)
        with torch.inference_mode():
            expected = module(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        expected = expected if isinstance(expected, tuple) else (expected,)
        for tensor, found, reference in zip(spec.outputs, engine(**inputs), expected, strict=True):
            if found.shape != tuple(reference.shape):
                raise ParityError(
                    f"engine {spec.name}: output {tensor.name} has shape {found.shape} where eager PyTorch has "
                    f"{tuple(reference.shape)}, at sizes {dict(sizes)}"
                )
            worst = max(worst, relative_l2(found, reference.numpy()))
    return _judged(f"engine {spec.name}", worst, spec.tolerance) | {"cases": len(cases)}


def generation_parity(generator: Generator, model: MAR) -> dict[str, Any]:
    """The distance of two whole pictures from the eager loop's, same order and noise. Raises `ParityError`."""
    config = model.config
    labels = np.array([0, config.class_num - 1], dtype=np.int64)
    settings: dict[str, Any] = {**_GENERATION, "iterations": min(4, config.tokens)}
    plan = generator.plan(**settings)
    order, noise = seeded_order(0, [0, 1], config), seeded_noise(0, [0, 1], plan.diffusion_steps, config)
    expected = sample(model, labels, plan, order, noise)
    found = generator.generate(list(labels), order=order, noise=noise, **settings).latents
    return _judged("whole generation", relative_l2(found, expected), GENERATION_TOLERANCE) | settings


def _judged(what: str, distance: float, tolerance: float) -> dict[str, Any]:
    if not distance <= tolerance:
        raise ParityError(
            f"{what}: relative L2 distance {distance:.2e} from eager PyTorch, where at most {tolerance:.0e} is "
            "allowed; nothing was written"
        )
    return {"relative_l2": distance, "tolerance": tolerance}
