"""What quantized engines do to images: the distance of their latents from those in float32."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.artifact.artifact_folder import Artifact
from runtime.backends.onnxruntime import OnnxRuntime
from runtime.distance import sqnr_db, relative_l2
from runtime.generator import Generator
from runtime.loops.host_loop import Engines
from runtime.model.engine_spec import ENGINES, Engine
from runtime.model.latents import patchify
from runtime.sampling.rng import seeded_order

_SEED = 2**30  # apart from those that statistics are of, and those that people draw


class Judge:
    """Draws the same few images with the engines of `artifact`, some of them changed."""

    def __init__(self, artifact: Artifact, sampling: Mapping[str, Any], images: int, threads: int) -> None:
        self._artifact, self._sampling, self._threads = artifact, dict(sampling), threads
        manifest = artifact.manifest
        self._labels = [number % manifest.model.class_num for number in range(images)]
        self._runner = OnnxRuntime("onnxruntime", threads)
        self._exact = {name: self._runner.load(artifact, name) for name in ENGINES}  # none decodes: latents are judged
        self._expected = self._drawn({})  # [B, C, H, W]

    def relative_l2(self, changed: Mapping[str, tuple[pathlib.Path, str]]) -> float:
        """The distance where the engines in `changed` are graphs in a precision instead."""
        return relative_l2(self._latents(changed), self._expected)

    def report(self, changed: Mapping[str, tuple[pathlib.Path, str]]) -> dict[str, Any]:
        """The distance of the latents, and of those tokens that each iteration made."""
        latents = self._latents(changed)
        distance = relative_l2(latents, self._expected)
        manifest = self._artifact.manifest
        config = manifest.model
        with Generator(manifest, Engines(**self._exact), "") as generator:
            plan = generator.plan(**self._sampling)
        order = seeded_order(_SEED, range(len(self._labels)), config, plan.token_order)[..., None]  # [B, L, 1]
        found, expected = (
            np.take_along_axis(patchify(each, config.patch_size), order, axis=1) for each in (latents, self._expected)
        )  # [B, L, D], in generation order
        drift = []
        for number, iteration in enumerate(plan.iterations):
            made = slice(iteration.known, iteration.known + iteration.count)
            of_iteration = relative_l2(found[:, made], expected[:, made])
            drift.append({"iteration": number + 1, "relative_l2": of_iteration, "sqnr_db": sqnr_db(of_iteration)})
        return {"relative_l2": distance, "sqnr_db": sqnr_db(distance), "of": "latents", "drift": drift}

    def close(self) -> None:
        self._runner.close()

    def _latents(self, changed: Mapping[str, tuple[pathlib.Path, str]]) -> NDArray[np.float32]:
        runner, specs = OnnxRuntime("onnxruntime", self._threads), self._artifact.manifest.specs
        with contextlib.closing(runner):
            return self._drawn(
                {name: runner.load_graph(graph, specs[name], precision) for name, (graph, precision) in changed.items()}
            )

    def _drawn(self, changed: Mapping[str, Engine]) -> NDArray[np.float32]:
        generator = Generator(self._artifact.manifest, Engines(**{**self._exact, **changed}), "")
        return generator.generate(self._labels, seed=_SEED, **self._sampling).latents


@contextlib.contextmanager
def judging(artifact: Artifact, sampling: Mapping[str, Any], images: int, threads: int) -> Iterator[Judge]:
    judge = Judge(artifact, sampling, images, threads)
    try:
        yield judge
    finally:
        judge.close()
