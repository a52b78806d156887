"""The order of convergence of every sampler, on the heads of an example, against a very long chain.

All chains of a family start from the same noise at the same timestep, and chains with fresh noise follow one Brownian
path: the noise of a long step is the sum of the noise of the short steps in it. What is measured is therefore the
error of the discretization alone.

- *Strong* error: the relative L2 distance of the tokens from those of the long chain, with the same noise.
- *Weak* error: the same of the means over many draws of the noise, for the same z. The part of the distance that
  chance explains is subtracted.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.numerics.recording import record
from benchmarks.short_chains import START
from mar_export.graphs.engine_modules import loop_modules
from mar_export.torch_backends.torch_cpu import torch_engine
from runtime.artifact.artifact_folder import Artifact
from runtime.loops.host_loop import Engines
from runtime.model.coefficients import exact_rows
from runtime.model.engine_spec import CONDITIONING, DENOISE
from runtime.sampling.noise_schedule import TRAIN_STEPS
from runtime.sampling.samplers import FLOW_SAMPLERS, columns_through
from training.checkpoints.checkpoint import load_checkpoint

GUIDANCE = 2.0
_PRECISE, _MANY = torch.float64, torch.float32  # of chains without noise, and of many chains with noise
_SEED = 20261129

Step = Callable[[Tensor, Tensor, Tensor, float, Tensor], tuple[Tensor, Tensor]]
"""One step: x and the previous x0 [N, D], noise [N, D], the timestep and a row of coefficients [10] to x and x0."""

Noise = Callable[[int], Tensor]
"""Returns the noise [N, D] of a step of a chain by its number."""


@dataclasses.dataclass(frozen=True)
class Solver:
    """A sampler of the runtime.

    Attributes:
        sampler: One of `runtime.sampling.samplers.SAMPLERS`.
        eta: The share of fresh noise of a sampler that has it.
    """

    sampler: str
    eta: float = 0.0

    @property
    def adds_noise(self) -> bool:
        """Whether its steps draw fresh noise."""
        return bool(self.eta) or self.sampler in ("ddpm", "dpm++2m-sde")

    def timesteps(self, intervals: int) -> NDArray[np.float64]:
        """Return evenly spread timesteps with this many intervals, noisy to clean."""
        if self.sampler in FLOW_SAMPLERS:
            return TRAIN_STEPS * np.arange(intervals, 0, -1) / intervals
        return np.linspace(START, 0, intervals + 1)

    def __str__(self) -> str:
        return f"{self.sampler}, eta {self.eta:g}" if self.eta else self.sampler


FAMILIES: Mapping[str, tuple[Solver, ...]] = {
    "diffusion": (Solver("dpm++2m"), Solver("ddim")),
    "diffusion with fresh noise": (Solver("dpm++2m-sde"), Solver("ddpm"), Solver("ddim", 1.0)),
    "flow": (Solver("flow-2m"), Solver("flow-euler")),
}
"""The solvers that share a limit. The first one of each, with many steps, is the reference."""


def run_chain(step: Step, first: Tensor, noise: Noise, solver: Solver, intervals: int) -> Tensor:
    """Run a chain with evenly spread timesteps.

    Args:
        step: The head and the arithmetic of a step.
        first: The state [N, D] at the first timestep.
        noise: The noise of each step; a solver that adds none ignores it.
        solver: The sampler.
        intervals: The number of intervals between the first timestep and the last.

    Returns:
        The tokens, [N, D].
    """
    timesteps = solver.timesteps(intervals)
    columns = columns_through(solver.sampler, timesteps, eta=solver.eta)
    rows = torch.from_numpy(exact_rows(columns)).to(first.dtype)
    x, x0 = first, torch.zeros_like(first)
    for number, row in enumerate(rows):
        x, x0 = step(x, x0, noise(number), float(timesteps[number]), row)
    return x


def brownian_noise(shape: Sequence[int], intervals: int, finest: int, dtype: torch.dtype) -> Noise:
    """Return the standard normal noise of a chain on a Brownian path that all chains of this shape share.

    Args:
        shape: [N, D].
        intervals: The intervals of the chain, a divisor of `finest`.
        finest: The intervals of the finest chain.
        dtype: The type of the noise.
    """
    together = finest // intervals

    def noise(step: int) -> Tensor:
        total = torch.zeros(*shape, dtype=dtype)
        if step < intervals:  # the step to the clean token has none
            for fine in range(step * together, (step + 1) * together):
                total += torch.randn(*shape, generator=torch.Generator().manual_seed(_SEED + fine), dtype=dtype)
        return total / math.sqrt(together)

    return noise


def without_noise(first: Tensor) -> Noise:
    """Return the noise of a chain that adds none."""
    zero = torch.zeros_like(first)
    return lambda step: zero


def strong_error(found: Tensor, reference: Tensor) -> float:
    """Return the relative L2 distance of tokens [N, D] from those of the reference."""
    return float((found - reference).norm() / reference.norm())


def weak_error(found: Tensor, reference: Tensor, draws: int) -> float:
    """Return the relative L2 distance of the means over the draws of the noise, without what chance adds to it.

    Args:
        found: Tokens [Z * draws, D], the draws of each z one after another.
        reference: Tokens of the reference with the same noise.
        draws: The number of draws of each z.
    """
    difference = (found - reference).unflatten(0, (-1, draws)).double()  # [Z, draws, D]
    bias = difference.mean(dim=1).square().sum()
    by_chance = difference.var(dim=1).sum() / draws
    size = reference.unflatten(0, (-1, draws)).double().mean(dim=1).square().sum()
    return float(((bias - by_chance).clamp(min=0) / size).sqrt())


def orders(errors: Mapping[int, float]) -> list[float]:
    """Return log2 of the factor by which each doubling of the intervals divides the error."""
    values = list(errors.values())
    pairs = itertools.pairwise(values)
    return [math.log2(coarse / fine) if fine > 0 else math.nan for coarse, fine in pairs]


class TrainedHead:
    """The head of a model in PyTorch, for the same z in every chain."""

    def __init__(self, model: Any, vectors: NDArray[np.float32], draws: int, guided: bool, dtype: torch.dtype) -> None:
        """Prepare the head.

        Args:
            model: The model.
            vectors: The backbone's outputs z, [2, Z, C], the conditional guidance half first.
            draws: How many rows share each z.
            guided: Whether chains have guidance.
            dtype: The type of the computation.
        """
        modules = loop_modules(model)
        self._conditioning, self._denoise = (modules[name].to(dtype) for name in (CONDITIONING, DENOISE))
        halves = np.concatenate(vectors) if guided else vectors[0]
        self._z, self._draws = torch.from_numpy(halves).to(dtype), draws
        self._guidance = torch.tensor([GUIDANCE], dtype=dtype)

    @torch.inference_mode()
    def __call__(
        self, x: Tensor, previous_x0: Tensor, noise: Tensor, timestep: float, row: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run one step; see `Step`."""
        (modulation,) = self._conditioning(self._z, torch.tensor([timestep], dtype=x.dtype))
        repeated = modulation.repeat_interleave(self._draws, dim=0)
        next_x, x0 = self._denoise(x, previous_x0, noise, repeated, row, self._guidance)
        return next_x, x0


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        tokens: Z, the number of z without noise.
        noisy_tokens: Z, the number of z with fresh noise.
        draws: The draws of the noise of each of them.
        reference: The intervals of the reference without noise.
        noisy_reference: The intervals of the reference with fresh noise, and of the finest Brownian path.
        intervals: The intervals that are measured without noise, each twice the one before.
        noisy_intervals: The same with fresh noise.
    """

    tokens: int = 24
    noisy_tokens: int = 8
    draws: int = 32
    reference: int = 2048
    noisy_reference: int = 1024
    intervals: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 512)
    noisy_intervals: tuple[int, ...] = (8, 16, 32, 64, 128)


def measure_family(
    family: str, head: Callable[[int, int, bool, torch.dtype], Step], guided: bool, channels: int, sizes: Sizes
) -> list[dict[str, Any]]:
    """Measure every solver of a family.

    Args:
        family: One of `FAMILIES`.
        head: Returns the step of a head for Z tokens with some draws, with guidance or not, in a type.
        guided: Whether chains have guidance.
        channels: D.
        sizes: How much is measured.

    Returns:
        An entry for each solver: its name, and by the number of intervals the errors that its kind has.
    """
    solvers = FAMILIES[family]
    noisy = solvers[0].adds_noise
    count, draws = (sizes.noisy_tokens, sizes.draws) if noisy else (sizes.tokens, 1)
    dtype, finest = (_MANY, sizes.noisy_reference) if noisy else (_PRECISE, sizes.reference)
    step, shape = head(count, draws, guided, dtype), (count * draws, channels)
    first = torch.randn(*shape, generator=torch.Generator().manual_seed(_SEED - 1), dtype=dtype)

    def chain(solver: Solver, intervals: int) -> Tensor:
        noise = brownian_noise(shape, intervals, finest, dtype) if noisy else without_noise(first)
        return run_chain(step, first, noise, solver, intervals)

    reference, entries = chain(solvers[0], finest), []
    for solver in solvers:
        found = {each: chain(solver, each) for each in (sizes.noisy_intervals if noisy else sizes.intervals)}
        entry = {"family": family, "solver": str(solver), "guided": guided}
        entry["strong"] = {str(each): strong_error(tokens, reference) for each, tokens in found.items()}
        if noisy:
            entry["weak"] = {str(each): weak_error(tokens, reference, draws) for each, tokens in found.items()}
        entries.append(entry)
        print(entry)
    return entries


def measure_convergence(artifact: pathlib.Path, checkpoint: pathlib.Path, flow: pathlib.Path, sizes: Sizes) -> Any:
    """Measure every solver on the head of an example and on a flow head, with and without guidance.

    Args:
        artifact: The artifact of the example, for its sampling settings.
        checkpoint: Its checkpoint.
        flow: A checkpoint with a flow head on the same backbone.
        sizes: How much is measured.

    Returns:
        The figures, for JSON.
    """
    entries = []
    vectors = backbone_vectors(artifact, checkpoint, max(sizes.tokens, sizes.noisy_tokens))
    for family in FAMILIES:
        model = load_checkpoint(flow if family == "flow" else checkpoint).model

        def head(count: int, draws: int, guided: bool, dtype: torch.dtype, model: Any = model) -> Step:
            return TrainedHead(model, vectors[:, :count], draws, guided, dtype)

        for guided in (False, True):
            entries += measure_family(family, head, guided, model.config.token_channels, sizes)
    return {"start": START, "guidance": GUIDANCE, "sizes": dataclasses.asdict(sizes), "rows": entries}


def backbone_vectors(artifact: pathlib.Path, checkpoint: pathlib.Path, count: int) -> NDArray[np.float32]:
    """Return the backbone's outputs z [2, count, C] for random tokens of images of all iterations, both halves."""
    manifest, model = Artifact(artifact).manifest, load_checkpoint(checkpoint).model
    modules = loop_modules(model).items()
    engines = Engines(**{name: torch_engine(module, manifest.specs[name]) for name, module in modules})
    settings = {"preset": "exact", "iterations": 8, "sampler": "ddim", "diffusion_steps": 10}
    recording = record(engines, manifest, settings, images=4)
    rows = np.concatenate([z.reshape(2, -1, z.shape[-1]) for z in recording.vectors], axis=1)
    return rows[:, np.random.default_rng(0).choice(rows.shape[1], count, replace=False)]
