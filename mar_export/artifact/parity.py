"""Whether exported engines compute what the eager model computes, as numbers that go into the manifest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mar_export.onnx_export.example_inputs import example_inputs, parity_sizes
from runtime.distance import distance_report, drift, relative_l2
from runtime.errors import ParityError
from runtime.generator import Generator
from runtime.model.config import ModelConfig
from runtime.model.engine_spec import Engine, EngineSpec
from runtime.sampling.constraints import default_sampling, fixed_settings, short_chain_settings
from runtime.sampling.plan import Plan, build_plan
from runtime.sampling.presets import resolve_sampling
from runtime.sampling.rng import seeded_noise, seeded_order
from training.models.mar import MAR
from training.models.reference_loop import sample

# The largest relative L2 distance from eager float32 that an export may have, by its precision. In
# float32, round-off alone is 3e-7 to 3e-6. What lower precisions come to is in docs/benchmarks/exports.md.
ENGINE_TOLERANCES = {"fp32": 1e-5, "fp16": 3e-3, "bf16": 3e-2}
GENERATION_TOLERANCES = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 5e-2}

_ITERATIONS = {"fp32": 4, "fp16": 16, "bf16": 16}  # errors of low precision need some to show how they grow
_DRIFT_EVERY = 8  # iterations

Arrays = tuple[NDArray[Any], ...]


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """A whole image: how it is to be drawn, and what the eager loop of the published code drew."""

    labels: NDArray[np.int64]
    settings: dict[str, Any]
    plan: Plan
    order: NDArray[np.int64]
    noise: NDArray[np.float32]
    latents: NDArray[np.float32]

    def drawn_by(self, generator: Generator) -> NDArray[np.float32]:
        """The latents of the same image by `generator`."""
        return generator.generate(list(self.labels), order=self.order, noise=self.noise, **self.settings).latents


def eager_outputs(module: nn.Module, spec: EngineSpec, config: ModelConfig) -> list[Arrays]:
    """What `module` makes of random inputs of every size."""
    outputs = []
    for inputs in _cases(spec, config):
        with torch.inference_mode():
            made = module(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        outputs.append(tuple(output.numpy() for output in (made if isinstance(made, tuple) else (made,))))
    return outputs


def engine_parity(
    engine: Engine, expected: list[Arrays], spec: EngineSpec, config: ModelConfig, precision: str
) -> dict[str, Any]:
    """The worst distance of an engine from `expected`, the outputs of `eager_outputs`. Raises `ParityError`."""
    worst = 0.0
    for inputs, references in zip(_cases(spec, config), expected, strict=True):
        for tensor, found, reference in zip(spec.outputs, engine(**inputs), references, strict=True):
            if found.shape != reference.shape:
                shapes = {name: list(array.shape) for name, array in inputs.items()}
                raise ParityError(
                    f"engine {spec.name}: output {tensor.name} has shape {found.shape} where eager PyTorch has "
                    f"{reference.shape}, for inputs of {shapes}"
                )
            worst = max(worst, relative_l2(found, reference))
    return _judged(f"engine {spec.name}", worst, ENGINE_TOLERANCES[precision]) | {"cases": len(expected)}


def eager_trajectory(model: MAR, precision: str) -> Trajectory:
    """An image drawn by the eager loop, long enough to judge an export in `precision` by."""
    config = model.config
    labels = np.array([config.class_num - 1], dtype=np.int64)
    usual: dict[str, Any] = {
        "preset": "exact",
        "iterations": min(_ITERATIONS[precision], config.tokens),
        "cfg_scale": 2.0,
        **short_chain_settings(config, 10),
    }
    settings = {name: value for name, value in usual.items() if name not in fixed_settings(config)}
    plan = build_plan(config.tokens, resolve_sampling(default_sampling(config), config, settings))
    order, noise = seeded_order(0, [0], config, plan.token_order), seeded_noise(0, [0], plan.diffusion_steps, config)
    return Trajectory(labels, settings, plan, order, noise, sample(model, labels, plan, order, noise))


def generation_parity(generator: Generator, trajectory: Trajectory, precision: str) -> dict[str, Any]:
    """The distance of a whole image from the eager loop's, same order and noise. Raises `ParityError`."""
    found = trajectory.drawn_by(generator)
    told = _judged("whole generation", relative_l2(found, trajectory.latents), GENERATION_TOLERANCES[precision])
    patch_size = generator.manifest.model.patch_size
    of_iterations = drift(found, trajectory.latents, trajectory.order, trajectory.plan, patch_size, _DRIFT_EVERY)
    return told | {"drift": of_iterations} | trajectory.settings


def _cases(spec: EngineSpec, config: ModelConfig) -> list[Mapping[str, NDArray[Any]]]:
    return [example_inputs(spec, config, sizes, seed) for seed, sizes in enumerate(parity_sizes(spec, config))]


def _judged(what: str, distance: float, tolerance: float) -> dict[str, Any]:
    if not distance <= tolerance:
        raise ParityError(
            f"{what}: relative L2 distance {distance:.2e} from eager PyTorch, where at most {tolerance:.0e} is "
            "allowed; nothing was written"
        )
    return {**distance_report(distance), "tolerance": tolerance}
