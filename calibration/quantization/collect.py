"""Statistics of real sampling trajectories: over classes, iterations, guidance halves and diffusion steps."""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from calibration.quantization.observer import Observer
from calibration.quantization.statistics import LayerStatistics, Statistics
from runtime.artifact.artifact_folder import Artifact
from runtime.errors import CalibrationError
from runtime.generator import Generator
from runtime.loops.host_loop import Engines
from runtime.model.engine_spec import ENGINES, Array
from runtime.sampling.plan import Plan, build_plan
from runtime.sampling.settings import Sampling

_SEED = 2**31  # apart from the seeds that people draw with
_TOGETHER = 8  # images


def identity(artifact: Artifact) -> str:
    """What statistics are of: the graphs of the loop."""
    return "-".join(artifact.manifest.graph_sha256(name)[:16] for name in ENGINES)


def collect(
    artifact: Artifact,
    images: int,
    file: pathlib.Path,
    sampling: Sampling,
    threads: int,
    progress: Callable[[int], None],
) -> Statistics:
    """Draw `images` images, classes in turn, and note what passes into every product; go on with `file`.

    Raises `CalibrationError` where `file` is of another artifact or plan.
    """
    manifest = artifact.manifest
    plan = build_plan(manifest.model.tokens, sampling)
    statistics = _begun(artifact, file, sampling, plan)
    random = np.random.default_rng(statistics.images)

    def watch(layer: str, activation: Array, iteration: int, steps: range) -> None:
        if layer not in statistics.layers:
            sizes = activation.shape[-1], len(plan.iterations), plan.diffusion_steps
            statistics.layers[layer] = LayerStatistics(*sizes)
        statistics.layers[layer].update(activation, iteration, steps, random)

    observer = Observer(watch)
    with tempfile.TemporaryDirectory(prefix=f".{file.stem}-", dir=file.parent) as work:
        folder = pathlib.Path(work)
        engines = {
            name: observer.observed(manifest.specs[name], artifact.engine_file(name), folder, threads)
            for name in ENGINES
        }
        generator = Generator(manifest, Engines(**engines), "observed")
        while statistics.images < images:
            together = range(statistics.images, min(statistics.images + _TOGETHER, images))
            observer.begin()
            labels = [number % manifest.model.class_num for number in together]
            generator.generate(labels, seed=_SEED, index=together, **_settings(sampling))
            statistics.images = together.stop
            statistics.save(file)
            progress(len(together))
    return statistics


def _begun(artifact: Artifact, file: pathlib.Path, sampling: Sampling, plan: Plan) -> Statistics:
    longest = max((iteration.table for iteration in plan.iterations), key=lambda table: table.steps)
    fresh = Statistics(identity(artifact), _settings(sampling), tuple(float(t) for t in longest.timesteps))
    if not file.exists():
        return fresh
    found = Statistics.load(file)
    if found.artifact != fresh.artifact:
        raise CalibrationError(f"{file} holds statistics of another artifact than {artifact.path}; give another file")
    if dict(found.sampling) != dict(fresh.sampling):
        raise CalibrationError(f"{file} holds statistics of another plan; give another file, or the same settings")
    return found


def _settings(sampling: Sampling) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(sampling).items()
        if value is not None
    }
