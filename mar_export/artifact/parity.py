"""Parity: the distance of exported engines from eager PyTorch, as the manifest stores it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mar_export.artifact.float64 import InFloat64
from mar_export.onnx_export.example_inputs import example_inputs, parity_sizes
from runtime.distance import distance_report, drift, relative_l2, tolerance_text
from runtime.errors import ParityError
from runtime.generator import Generator
from runtime.model.engine_spec import Engine, EngineSpec
from runtime.model.families import family_of, imported
from runtime.model.family_config import FamilyConfig
from runtime.sampling.constraints import default_sampling, fixed_settings, plan_for, short_chain_settings
from runtime.sampling.plan import Plan
from runtime.sampling.presets import resolve_sampling
from runtime.sampling.recap import sort_unions
from runtime.sampling.rng import seeded_noise, seeded_order

ENGINE_TOLERANCES = {"fp32": 1e-5, "fp16": 3e-3, "bf16": 3e-2}
"""The largest relative L2 distance of an engine from eager float32, by precision.

Round-off alone is 3e-7 to 3e-6 in float32. docs/benchmarks/exports.md has the distances of lower precisions. For an
engine beyond it that enlarges round-off, it grows by `EagerOutputs.widening`.
"""

GENERATION_TOLERANCES = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 5e-2}
"""The same for the latents of a complete generation."""

_TIMES_ROUND_OFF = 4  # how many times the distance of eager PyTorch from float64 an engine may have from eager PyTorch
_WIDEST = 10.0

_ITERATIONS = {"fp32": 4, "fp16": 16, "bf16": 16}  # more in low precision, to show how its errors grow
_DRIFT_EVERY = 8  # iterations
_RECAP = {"recap_local_iterations": 1, "recap_plain_iterations": 1}

Arrays = tuple[NDArray[Any], ...]


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """A generation of one image by the reference loop in eager PyTorch, with all its inputs.

    Attributes:
        request: What the image shows, as named arguments of `Generator.generate`.
        settings: The sampling settings of the request.
        plan: The plan of these settings.
        order: The generation order [1, L].
        noise: The noise [T + 1, 1, L, D] by raster position.
        latents: The latents [1, c, H, W] that the reference loop generated.
    """

    request: Mapping[str, Any]
    settings: dict[str, Any]
    plan: Plan
    order: NDArray[np.int64]
    noise: NDArray[np.float32]
    latents: NDArray[np.float32]

    def generate_with(self, generator: Generator) -> NDArray[np.float32]:
        """Generate the same image with another generator; returns its latents [1, c, H, W]."""
        return generator.generate(**self.request, order=self.order, noise=self.noise, **self.settings).latents


@dataclasses.dataclass(frozen=True)
class EagerOutputs:
    """What a module computes in eager PyTorch for random inputs.

    Attributes:
        cases: Its outputs in float32, at each of the sizes of `parity_sizes`.
        round_off: Returns the relative L2 distance of those at the first size from the same in float64, which it
            computes with the module.
    """

    cases: list[Arrays]
    round_off: Callable[[], float]

    def widening(self) -> float:
        """Return the factor by which tolerances grow, 1 to 10: more than 1 where 1e-5 is little more than round-off.

        It is so in a deep transformer that normalizes behind its branches, x + LN(f(x)), as a NOVA does.
        """
        return min(max(1.0, _TIMES_ROUND_OFF * self.round_off() / ENGINE_TOLERANCES["fp32"]), _WIDEST)


def eager_outputs(module: nn.Module, spec: EngineSpec, config: FamilyConfig) -> EagerOutputs:
    """Return what a module computes at each of the sizes of `parity_sizes`."""
    inputs = _cases(spec, config)
    outputs = [_evaluated(module, each) for each in inputs]

    @functools.cache
    def round_off() -> float:
        with InFloat64():
            exact = _evaluated(module, inputs[0])
        return max(relative_l2(output, value) for output, value in zip(outputs[0], exact, strict=True))

    return EagerOutputs(outputs, round_off)


@torch.no_grad()
def _evaluated(module: nn.Module, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
    result = module(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    return tuple(output.numpy() for output in (result if isinstance(result, tuple) else (result,)))


def engine_parity(
    engine: Engine, expected: EagerOutputs, spec: EngineSpec, config: FamilyConfig, precision: str, backend: str = ""
) -> dict[str, Any]:
    """Compare an engine with eager PyTorch at every size.

    Args:
        engine: The loaded engine.
        expected: What `eager_outputs` returned for its module.
        spec: The engine's inputs and outputs.
        config: The model.
        precision: The precision of the export, which decides the tolerance. For an engine that needs it, it grows by
            the `widening` of `expected`.
        backend: What runs the engine, for the error message, if it is not the usual one.

    Returns:
        The largest distance of all outputs as a manifest stores it, with the tolerance and the number of sizes.

    Raises:
        ParityError: An output has another shape, or differs by more than the tolerance.
    """
    worst = 0.0
    for inputs, references in zip(_cases(spec, config), expected.cases, strict=True):
        for tensor, output, reference in zip(spec.outputs, engine(**inputs), references, strict=True):
            if output.shape != reference.shape:
                shapes = {name: list(array.shape) for name, array in inputs.items()}
                raise ParityError(
                    f"engine {spec.name}: output {tensor.name} has shape {output.shape} where eager PyTorch has "
                    f"{reference.shape}, for inputs of {shapes}"
                )
            worst = max(worst, relative_l2(output, reference))
    what = f"engine {spec.name}" + (f" on {backend}" if backend else "")
    tolerance = ENGINE_TOLERANCES[precision]
    if worst > tolerance:
        tolerance *= expected.widening()
    return _checked_distance(what, worst, tolerance) | {"cases": len(expected.cases)}


def eager_trajectory(model: Any, precision: str, recap: bool = False) -> Trajectory:
    """Generate an image with the reference loop in eager PyTorch, to compare an export with.

    Args:
        model: The model of any family, in float32.
        precision: The precision of the export, which decides the number of iterations.
        recap: Whether some iterations are local ones of ReCAP, and some belong to no group.
    """
    config = model.config
    eager = imported(family_of(config).eager)
    shown = imported(family_of(config).example)(config, 1)
    request: dict[str, Any] = {
        "preset": "exact",
        "iterations": min(_ITERATIONS[precision], config.tokens),
        "cfg_scale": 2.0,
        **short_chain_settings(config, 10),
        **(_RECAP if recap else {}),
    }
    settings = {name: value for name, value in request.items() if name not in fixed_settings(config)}
    plan = plan_for(config, resolve_sampling(default_sampling(config), config, settings))
    order = sort_unions(seeded_order(0, [0], config, plan.token_order), plan.groups)
    noise = seeded_noise(0, [0], plan.noise_steps, config)
    return Trajectory(shown, settings, plan, order, noise, eager.sample_request(model, shown, plan, order, noise))


def generation_parity(
    generator: Generator, trajectory: Trajectory, precision: str, widening: float = 1.0
) -> dict[str, Any]:
    """Compare a generator with the reference loop, for the same image.

    Args:
        generator: The generator.
        trajectory: The image.
        precision: The precision of the export, which decides the tolerance.
        widening: The factor by which the tolerance grows: the largest of all engines, see `EagerOutputs`.

    Returns:
        The distance of the latents as a manifest stores it, with the tolerance, the sampling settings, and how the
        distance grows over the iterations, `drift`.

    Raises:
        ParityError: The latents differ by more than the tolerance of the precision.
    """
    latents = trajectory.generate_with(generator)
    distance = relative_l2(latents, trajectory.latents)
    what = f"complete generation on {generator.description}"
    parity = _checked_distance(what, distance, GENERATION_TOLERANCES[precision] * widening)
    patch_size = generator.manifest.model.patch_size
    growth = drift(latents, trajectory.latents, trajectory.order, trajectory.plan, patch_size, _DRIFT_EVERY)
    return parity | {"drift": growth} | trajectory.settings


def _cases(spec: EngineSpec, config: FamilyConfig) -> list[Mapping[str, NDArray[Any]]]:
    return [example_inputs(spec, config, sizes, seed) for seed, sizes in enumerate(parity_sizes(spec, config))]


def _checked_distance(what: str, distance: float, tolerance: float) -> dict[str, Any]:
    if not distance <= tolerance:
        raise ParityError(
            f"{what}: relative L2 distance {distance:.2e} from eager PyTorch, where at most "
            f"{tolerance_text(tolerance)} is allowed; nothing was written"
        )
    return {**distance_report(distance), "tolerance": tolerance}
