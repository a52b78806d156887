"""A whole generation with all its intermediate states: z of every iteration, and x after every diffusion step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.artifact.manifest import Manifest
from runtime.generator import Generator
from runtime.loops.host_loop import Engines
from runtime.model.engine_spec import Array

SEED = 2**29 + 2  # of these images; `calibration.seeds` has those next to it


@dataclasses.dataclass(frozen=True)
class Recording:
    """The states of one generation of B images. All tokens are in generation order, the sequence first.

    Attributes:
        vectors: The backbone's output of every iteration, [G*N, C] each.
        states: The state after every diffusion step of every iteration, [T, N, D] each.
        batch: B.
    """

    vectors: tuple[NDArray[np.float32], ...]
    states: tuple[NDArray[np.float32], ...]
    batch: int

    @property
    def tokens(self) -> list[NDArray[np.float32]]:
        """The tokens that each iteration predicted, [K, B, D] each."""
        return [states[-1].reshape(-1, self.batch, states.shape[-1]) for states in self.states]


def record(
    engines: Engines,
    manifest: Manifest,
    settings: Mapping[str, Any],
    images: int,
    known: NDArray[np.float32] | None = None,
) -> Recording:
    """Generate images, always from the same orders and noise, and keep every state.

    Args:
        engines: The engines.
        manifest: The manifest with the model and its sampling settings.
        settings: The sampling settings of the request.
        images: B. Classes are used in turn.
        known: Tokens [L, B, D] that the backbone reads in place of those that were generated. The error of an
            iteration is then its own.
    """
    vectors: list[NDArray[np.float32]] = []
    states: list[list[NDArray[np.float32]]] = []

    def backbone(**inputs: Array) -> tuple[Array, ...]:
        if known is not None:
            inputs["tokens"] = known[: len(inputs["tokens"])]
        outputs = engines.backbone(**inputs)
        vectors.append(outputs[0])
        states.append([])
        return outputs

    def denoise(**inputs: Array) -> tuple[Array, ...]:
        outputs = engines.denoise(**inputs)
        states[-1].append(outputs[0])
        return outputs

    recording = dataclasses.replace(engines, backbone=backbone, denoise=denoise)
    labels = [number % manifest.model.class_num for number in range(images)]
    Generator(manifest, recording, "recorded").generate(labels, seed=SEED, **settings)
    return Recording(tuple(vectors), tuple(np.stack(each) for each in states), images)
