"""Sampling trajectories: images generated without fresh noise, with the backbone's output in every iteration.

All tokens are in generation order with the sequence first, [L, B, D], as in `runtime.loops.host_loop`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from runtime.loops.host_loop import Engines, diffuse, run_plan
from runtime.model.engine_spec import Array
from runtime.model.family_config import FamilyConfig
from runtime.requests.class_subjects import both_halves
from runtime.sampling.plan import Float, Int, Iteration, Plan
from runtime.sampling.rng import seeded_noise, seeded_order


@dataclasses.dataclass(frozen=True)
class TrajectoryInputs:
    """The inputs of B images.

    Attributes:
        labels: Classes, [B].
        order: Token positions, first generated first, [L, B].
        noise: The noise that each token's diffusion chain starts from, [L, B, D].
    """

    labels: Int
    order: Int
    noise: Float

    @classmethod
    def seeded(cls, seed: int, numbers: range, config: FamilyConfig, token_order: str) -> TrajectoryInputs:
        """Return the inputs of the images `numbers` of a seed, as `Generator.generate` uses them; classes in turn."""
        order = seeded_order(seed, numbers, config, token_order)  # [B, L]
        noise = seeded_noise(seed, numbers, 0, config)[0]  # [B, L, D] by position
        noise = np.take_along_axis(noise, order[..., None], axis=1)
        return cls(np.array(numbers, np.int64) % config.class_num, order.T, noise.swapaxes(0, 1))


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """B images and how they were generated.

    Attributes:
        inputs: What they were generated from.
        vectors: The backbone's output z in every iteration, each [G*N, C].
        tokens: All tokens, [L, B, D].
    """

    inputs: TrajectoryInputs
    vectors: tuple[Float, ...]
    tokens: Float


class TrajectorySampler:
    """Generates images, from the start or from known tokens, with the same first noise each time."""

    def __init__(self, engines: Engines, config: FamilyConfig) -> None:
        """Use the engines of a model."""
        self._engines, self._config = engines, config

    def record(self, plan: Plan, inputs: TrajectoryInputs, advance: Callable[[int], None]) -> Trajectory:
        """Generate images and keep the backbone's outputs. `advance` is called with 1 in every iteration."""
        vectors: list[Float] = []

        def backbone(**arrays: Array) -> tuple[Array, ...]:
            outputs = self._engines.backbone(**arrays)
            vectors.append(outputs[0])
            advance(1)
            return outputs

        recording = dataclasses.replace(self._engines, backbone=backbone)
        tokens = self._run(recording, plan, inputs, np.empty((0, *inputs.noise.shape[1:]), np.float32))
        return Trajectory(inputs, tuple(vectors), tokens)

    def sample(self, plan: Plan, inputs: TrajectoryInputs) -> Float:
        """Generate images; return all tokens, [L, B, D]."""
        return self.complete(plan, 0, inputs, np.empty((0, *inputs.noise.shape[1:]), np.float32))

    def complete(self, plan: Plan, done: int, inputs: TrajectoryInputs, known: Float) -> Float:
        """Run the iterations of `plan` after the first `done`; return all tokens, [L, B, D].

        `known` are the tokens of the first `done` iterations, [V, B, D].
        """
        rest = plan.iterations[done:]
        if not rest:
            return known
        return self._run(self._engines, dataclasses.replace(plan, iterations=rest), inputs, known)

    def predict(self, iteration: Iteration, inputs: TrajectoryInputs, z: Float) -> Float:
        """Run the head alone: return the tokens [K, B, D] of one iteration from the backbone's output z [G*N, C]."""
        first = inputs.noise[iteration.known : iteration.known + iteration.count]  # [K, B, D]
        rows = first.reshape(-1, first.shape[-1])
        table, guidance = iteration.table, iteration.guidance_scale
        return diffuse(self._engines, self._config, z, _noise_of_steps(rows, table.steps), table, guidance).reshape(
            first.shape
        )

    def _run(self, engines: Engines, plan: Plan, inputs: TrajectoryInputs, known: Float) -> Float:
        noise = _noise_of_steps(inputs.noise, plan.diffusion_steps)
        return run_plan(
            engines,
            self._config,
            plan,
            both_halves(inputs.labels, self._config.class_num),
            inputs.order,
            noise,
            known,
            None,
        )


def _noise_of_steps(first: Float, steps: int) -> Float:
    """Noise for T = `steps` steps, [T + 1, ...]: views of the first, since deterministic chains use no other."""
    return np.broadcast_to(first, (steps + 1, *first.shape))


def energies(tokens: Float) -> NDArray[np.float64]:
    """Return the sum of squares of every image's tokens, [B], from [V, B, D]."""
    return np.square(tokens, dtype=np.float64).sum(axis=(0, 2))
