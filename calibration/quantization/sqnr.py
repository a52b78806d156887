"""The signal-to-quantization-noise ratio (SQNR) of quantized engines, measured on the latents of whole images."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.seeds import SQNR_SEED
from runtime.artifact.artifact_folder import Artifact
from runtime.backends.onnxruntime import OnnxRuntime
from runtime.distance import distance_report, drift, relative_l2
from runtime.generator import Generator
from runtime.loops.host_loop import Engines
from runtime.model.engine_spec import Engine
from runtime.model.families import loop_specs
from runtime.sampling.constraints import plan_for
from runtime.sampling.rng import seeded_order
from runtime.sampling.settings import Sampling


class SqnrEvaluator:
    """Compares quantized engines with float32 engines on the same few images.

    Both start from the same noise and token order. Use it as a context manager: it frees the float32 engines.
    """

    def __init__(self, artifact: Artifact, sampling: Sampling, images: int, threads: int) -> None:
        """Load the engines of `artifact` and generate the reference latents.

        Args:
            artifact: The artifact in float32.
            sampling: The sampling settings of the images.
            images: Number of images. Classes are used in turn.
            threads: Number of processor threads.
        """
        self._artifact, self._sampling, self._threads = artifact, sampling, threads
        manifest = artifact.manifest
        self._labels = [number % manifest.model.class_num for number in range(images)]
        self._backend = OnnxRuntime("onnxruntime", threads)
        # Without the decoder: latents are compared, not images.
        own = loop_specs(manifest.model, manifest.engines)
        self._float32 = {name: self._backend.load(artifact, name) for name in own}
        self._expected = self._generate({})  # [B, C, h, w]

    def relative_l2(self, changed: Mapping[str, tuple[pathlib.Path, str]]) -> float:
        """Return the relative L2 distance of the latents when the engines in `changed` run quantized graphs.

        Args:
            changed: A graph and its precision, by engine. All other engines stay in float32.
        """
        return relative_l2(self._latents(changed), self._expected)

    def report(self, changed: Mapping[str, tuple[pathlib.Path, str]]) -> dict[str, Any]:
        """Return the distance of the latents, and of the tokens of each iteration, as the manifest stores them."""
        latents = self._latents(changed)
        model = self._artifact.manifest.model
        plan = plan_for(model, self._sampling)
        order = seeded_order(SQNR_SEED, range(len(self._labels)), model, plan.token_order)  # [B, L]
        return {
            **distance_report(relative_l2(latents, self._expected)),
            "of": "latents",
            "drift": drift(latents, self._expected, order, plan, model.patch_size),
        }

    def __enter__(self) -> SqnrEvaluator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._backend.close()

    def _latents(self, changed: Mapping[str, tuple[pathlib.Path, str]]) -> NDArray[np.float32]:
        """The latents [B, C, h, w] with some engines quantized."""
        backend, specs = OnnxRuntime("onnxruntime", self._threads), self._artifact.manifest.specs
        with contextlib.closing(backend):
            return self._generate(
                {
                    name: backend.load_graph(graph, specs[name], precision)
                    for name, (graph, precision) in changed.items()
                }
            )

    def _generate(self, changed: Mapping[str, Engine]) -> NDArray[np.float32]:
        generator = Generator(self._artifact.manifest, Engines(**{**self._float32, **changed}), "")
        return generator.generate(self._labels, seed=SQNR_SEED, sampling=self._sampling).latents
