"""Collects the statistics of activations while an artifact generates images.

The images cover all classes, iterations, diffusion steps, and both halves of classifier-free guidance.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from calibration.quantization.observer import ActivationObserver
from calibration.quantization.statistics import ActivationStatistics, LayerStatistics
from calibration.seeds import STATISTICS_SEED
from runtime.artifact.artifact_folder import Artifact
from runtime.errors import CalibrationError
from runtime.generator import Generator
from runtime.loops.host_loop import Engines
from runtime.model.engine_spec import Array
from runtime.model.families import engine_specs, loop_specs
from runtime.sampling.constraints import plan_for
from runtime.sampling.plan import Plan
from runtime.sampling.settings import Sampling
from runtime.storage.files import scratch_beside

_BATCH = 8


def artifact_identity(artifact: Artifact) -> str:
    """Return a text that identifies the graphs of the sampling loop, from their hashes."""
    return "-".join(artifact.manifest.graph_sha256(name)[:16] for name in engine_specs(artifact.manifest.model))


def collect(
    artifact: Artifact,
    images: int,
    file: pathlib.Path,
    sampling: Sampling,
    threads: int,
    progress: Callable[[int], None],
    resumed: Callable[[int], None] = lambda images: None,
) -> ActivationStatistics:
    """Generate images and collect the statistics of every layer's activation.

    Args:
        artifact: The artifact, in float32.
        images: Number of images. Classes are used in turn.
        file: Where the statistics are saved after every batch. If it exists, collecting resumes from it.
        sampling: The sampling settings. Statistics hold for these only.
        threads: Number of processor threads.
        progress: Called with the size of every batch that is done.
        resumed: Called once with the number of images whose statistics are in `file` already.

    Raises:
        CalibrationError: If `file` belongs to another artifact or to other settings, or cannot be read.
    """
    manifest, plan = artifact.manifest, plan_for(artifact.manifest.model, sampling)
    statistics = _load_or_start(artifact, file, sampling, plan)
    resumed(statistics.images)
    random = np.random.default_rng()

    def update(layer: str, activation: Array, iteration: int, steps: range) -> None:
        if layer not in statistics.layers:
            sizes = activation.shape[-1], len(plan.iterations), plan.diffusion_steps
            statistics.layers[layer] = LayerStatistics(*sizes)
        statistics.layers[layer].update(activation, iteration, steps, random)

    observer = ActivationObserver(update)
    with scratch_beside(file) as folder:
        engines = _observed(artifact, observer, folder, threads)
        while statistics.images < images:
            batch = range(statistics.images, min(statistics.images + _BATCH, images))
            random = np.random.default_rng(batch.start)  # one a batch, so that a resumed collection draws the same
            observer.begin_image()
            generator = Generator(manifest, engines, "observed")  # one a batch: it keeps first passes of the backbone
            labels = [number % manifest.model.class_num for number in batch]
            generator.generate(labels, seed=STATISTICS_SEED, index=batch, sampling=sampling)
            statistics.images = batch.stop
            statistics.save(file)
            progress(len(batch))
    return statistics


def _observed(artifact: Artifact, observer: ActivationObserver, folder: pathlib.Path, threads: int) -> Engines:
    """Return engines that tell `observer` their activations; `folder` gets copies of the graphs."""
    specs = loop_specs(artifact.manifest.model, artifact.manifest.engines)
    engines = {name: observer.wrap(spec, artifact.engine_file(name), folder, threads) for name, spec in specs.items()}
    return Engines(**engines)


def _load_or_start(artifact: Artifact, file: pathlib.Path, sampling: Sampling, plan: Plan) -> ActivationStatistics:
    """Return the statistics in `file`, or empty ones if there is no such file."""
    longest = max((iteration.table for iteration in plan.iterations), key=lambda table: table.steps)
    timesteps = tuple(float(timestep) for timestep in longest.timesteps)
    empty = ActivationStatistics(artifact_identity(artifact), _settings(sampling), timesteps)
    if not file.exists():
        return empty
    saved = ActivationStatistics.load(file)
    if saved.artifact != empty.artifact:
        raise CalibrationError(f"{file} holds statistics of another artifact than {artifact.path}; give another file")
    if dict(saved.sampling) != dict(empty.sampling):
        raise CalibrationError(
            f"{file} holds statistics of another plan; give another file, or the sampling settings it was made with"
        )
    return saved


def _settings(sampling: Sampling) -> dict[str, Any]:
    """The settings that are not None, with lists in place of tuples, as JSON would give them back."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(sampling).items()
        if value is not None
    }
