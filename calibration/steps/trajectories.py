"""Images drawn to be measured: by chains without noise, with what the backbone said on the way.

Everything is in generation order, sequence first, as `runtime.loops.host_loop` has it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from runtime.loops.host_loop import Engines, diffuse, run_plan
from runtime.model.config import ModelConfig
from runtime.model.engine_spec import Array
from runtime.sampling.plan import Float, Int, Iteration, Plan
from runtime.sampling.rng import seeded_noise, seeded_order


@dataclasses.dataclass(frozen=True)
class TrajectoryInputs:
    """What images are drawn from: labels [B], order [L, B] and first noise [L, B, D]."""

    labels: Int
    order: Int
    noise: Float

    @classmethod
    def seeded(cls, seed: int, numbers: range, config: ModelConfig, token_order: str) -> TrajectoryInputs:
        """Those of `numbers` of a seed, classes in turn."""
        order = seeded_order(seed, numbers, config, token_order)  # [B, L]
        noise = seeded_noise(seed, numbers, 0, config)[0]  # [B, L, D] by position
        noise = np.take_along_axis(noise, order[..., None], axis=1)
        return cls(np.array(numbers, np.int64) % config.class_num, order.T, noise.swapaxes(0, 1))


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """Images that were drawn: z of every iteration, each [G K B, C], and the tokens [L, B, D]."""

    images: TrajectoryInputs
    vectors: tuple[Float, ...]
    tokens: Float


class TrajectorySampler:
    """Draws with some engines."""

    def __init__(self, engines: Engines, config: ModelConfig) -> None:
        self._engines, self._config = engines, config

    def follow(self, plan: Plan, images: TrajectoryInputs, advance: Callable[[int], None]) -> Trajectory:
        """Draw and note everything; `advance` is told of every iteration."""
        vectors: list[Float] = []

        def backbone(**inputs: Array) -> tuple[Array, ...]:
            outputs = self._engines.backbone(**inputs)
            vectors.append(outputs[0])
            advance(1)
            return outputs

        watched = dataclasses.replace(self._engines, backbone=backbone)
        tokens = self._run(watched, plan, images, np.empty((0, *images.noise.shape[1:]), np.float32))
        return Trajectory(images, tuple(vectors), tokens)

    def draw(self, plan: Plan, images: TrajectoryInputs) -> Float:
        """All tokens [L, B, D]."""
        return self.go_on(plan, 0, images, np.empty((0, *images.noise.shape[1:]), np.float32))

    def go_on(self, plan: Plan, done: int, images: TrajectoryInputs, known: Float) -> Float:
        """All tokens [L, B, D], where the tokens `known` [V, B, D] of the first `done` iterations are there."""
        rest = plan.iterations[done:]
        if not rest:
            return known
        return self._run(self._engines, dataclasses.replace(plan, iterations=rest), images, known)

    def predict(self, iteration: Iteration, images: TrajectoryInputs, z: Float) -> Float:
        """The tokens [K, B, D] of one iteration, by z [G K B, C]: the head alone runs."""
        first = images.noise[iteration.known : iteration.known + iteration.count]  # [K, B, D]
        rows = first.reshape(-1, first.shape[-1])
        table, guidance = iteration.table, iteration.guidance_scale
        return diffuse(self._engines, self._config, z, _every_step(rows, table.steps), table, guidance).reshape(
            first.shape
        )

    def _run(self, engines: Engines, plan: Plan, images: TrajectoryInputs, known: Float) -> Float:
        noise = _every_step(images.noise, plan.diffusion_steps)
        return run_plan(engines, self._config, plan, images.labels, images.order, noise, known, None)


def _every_step(first: Float, steps: int) -> Float:
    """The first noise for every step too, [T + 1, ...]: that takes no memory, and is ignored without noise."""
    return np.broadcast_to(first, (steps + 1, *first.shape))


def energies(tokens: Float) -> NDArray[np.float64]:
    """The sum of squares of every image, [B], of tokens [V, B, D]."""
    return np.square(tokens, dtype=np.float64).sum(axis=(0, 2))
