"""Quality against time: what each sampler, at each number of steps, and each preset costs and keeps.

Every setting to draw is judged on the same classes, orders and noises. Thousands of images for each take
hours on a processor, so they are drawn with the engines in PyTorch under bfloat16, one process a core;
the times are the runtime's own, float32, an image at a time.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mar_export.torch_backends.torch_cpu import eager_generator
from runtime.artifact.artifact_folder import Artifact
from runtime.errors import RequestError
from runtime.files import write_json
from runtime.generator import Generator
from runtime.model.config import ModelConfig
from runtime.sampling.constraints import supported_samplers
from runtime.sampling.presets import PRESETS
from training.checkpoints.checkpoint import load_checkpoint
from training.data.datasets import chunks, open_dataset
from training.evaluation.feature_networks import (
    DatasetClassifier,
    FeatureStatistics,
    LabelledBatch,
    extract_features,
    labelled_batches,
)
from training.evaluation.generate_images import run_in_processes
from training.evaluation.metrics import frechet_distance

STEPS = (100, 50, 25, 14, 10, 6)
_ITERATIONS = 16  # of the comparison of samplers
_BATCH = 100


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting to draw: a name for tables, and the settings of a request."""

    name: str
    sampling: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Study:
    """What is judged by what: paths, and how many images of each setting."""

    artifact: pathlib.Path
    checkpoint: pathlib.Path
    classifier: pathlib.Path
    data: pathlib.Path
    images: int


def sampler_settings(model: ModelConfig) -> list[Setting]:
    """Every sampler of `model` at every number of steps, from its own first timestep; none for a distilled head.

    Without guidance, which halves the work; presets are judged with that of the artifact.
    """
    usual = {"preset": "exact", "iterations": min(_ITERATIONS, model.tokens), "cfg_scale": 1.0}
    return [
        Setting(f"{sampler} {steps}", {**usual, "sampler": sampler, "diffusion_steps": steps})
        for steps in (() if model.distilled_steps else reversed(STEPS))
        for sampler in supported_samplers(model)
    ]


def preset_settings(own: Iterable[str]) -> list[Setting]:
    """Every preset, the artifact's guidance included, and those that are the artifact's `own`."""
    return [Setting(name, {"preset": name}) for name in (*PRESETS, *own)]


def run_study(
    study: Study, settings: list[Setting], out: pathlib.Path, processes: int, said: Callable[[str], None]
) -> None:
    """Judge every setting that `out`, a folder with a JSON for each, does not hold yet."""
    out.mkdir(parents=True, exist_ok=True)
    _tools(study)  # trains the classifier where there is none, once for all processes
    left = [setting for setting in settings if _figures(out, setting, study) is None]

    def save(setting: Setting, figures: dict[str, Any]) -> None:
        write_json(_file(out, setting), figures)
        said(
            f"{setting.name:20} top-1 accuracy {figures['top1_accuracy']:.1%}, "
            f"Fréchet distance {figures['frechet']:.3f}"
        )

    run_in_processes(functools.partial(judge_setting, study), left, processes, save)


def time_settings(study: Study, settings: list[Setting], threads: int, repeats: int) -> dict[str, list[float]]:
    """Seconds an image of each setting, by name: the runtime on its exported engines, in turn, batch 1."""
    seconds: dict[str, list[float]] = {setting.name: [] for setting in settings}
    with Generator.load(study.artifact, threads=threads) as generator:
        for repeat in range(-1, repeats):
            for setting in settings:
                started = time.perf_counter()
                generator.generate([0], **setting.sampling)
                if repeat >= 0:  # the first round warms up
                    seconds[setting.name].append(time.perf_counter() - started)
    return seconds


def summary(
    study: Study, settings: list[Setting], out: pathlib.Path, seconds: Mapping[str, list[float]]
) -> dict[str, Any]:
    """What the study found: the figures of every setting that is judged, with its times."""
    found = []
    for setting in settings:
        figures = _figures(out, setting, study)
        if figures is not None:
            p10, median, p90 = np.percentile(seconds[setting.name], [10, 50, 90])
            found.append({**figures, "milliseconds": {"median": 1e3 * median, "p10": 1e3 * p10, "p90": 1e3 * p90}})
    return {"images": study.images, "settings": found}


def judge_setting(study: Study, setting: Setting) -> dict[str, Any]:
    """Draw and judge the images of one setting, in one thread."""
    torch.set_num_threads(1)
    generator, classifier, real = _tools(study)
    labels = np.arange(study.images, dtype=np.int64) % generator.manifest.model.class_num
    started = time.perf_counter()
    generated = extract_features(classifier, generated_batches(generator, labels, setting.sampling))
    return {
        "name": setting.name,
        "sampling": dataclasses.asdict(generator.sampling(**setting.sampling)),
        "images": study.images,
        "checkpoint_sha256": generator.manifest.provenance["checkpoint_sha256"],
        "top1_accuracy": generated.top1_accuracy,
        "frechet": frechet_distance(generated.moments, real.moments),
        "head_evaluations": generator.plan(**setting.sampling).head_evaluations,
        "engines": generator.description,
        "seconds": time.perf_counter() - started,
    }


@functools.lru_cache(maxsize=1)
def _tools(study: Study) -> tuple[Generator, DatasetClassifier, FeatureStatistics]:
    """Open the generator and the classifier, and compute the statistics of the real test images; once per process."""
    manifest, checkpoint = Artifact(study.artifact).manifest, load_checkpoint(study.checkpoint, None)
    if checkpoint.sha256 != manifest.provenance.get("checkpoint_sha256"):
        raise RequestError(f"{study.checkpoint} is not the checkpoint that {study.artifact} was exported from")
    generator = eager_generator(manifest, checkpoint.model, bfloat16=True)
    train, test = (open_dataset(study.data, manifest.model.img_size, split) for split in ("train", "test"))
    classifier = DatasetClassifier.load_or_train(study.classifier, train)
    real = extract_features(classifier, labelled_batches(test, np.arange(len(test.labels))))
    return generator, classifier, real


def generated_batches(
    generator: Generator, labels: NDArray[np.int64], settings: Mapping[str, Any]
) -> Iterator[LabelledBatch]:
    """Generate an image for each of `labels` [n] and yield them in batches, by a generator with a decoder."""
    batches = chunks(labels, _BATCH)
    for result in generator.generate_batches(labels.tolist(), _BATCH, **settings):
        assert result.images is not None
        yield result.images, next(batches)


def _file(out: pathlib.Path, setting: Setting) -> pathlib.Path:
    return out / f"{setting.name.replace(' ', '-').replace('+', 'p')}.json"


def _figures(out: pathlib.Path, setting: Setting, study: Study) -> dict[str, Any] | None:
    """What was found for `setting` before; None if nothing was, or for another model or settings."""
    try:
        figures: dict[str, Any] = json.loads(_file(out, setting).read_text())
    except (OSError, ValueError):
        return None
    manifest = Artifact(study.artifact).manifest
    wanted = {
        "sampling": dataclasses.asdict(manifest.resolve_sampling(setting.sampling)),
        "images": study.images,
        "checkpoint_sha256": manifest.provenance["checkpoint_sha256"],
    }
    return figures if {key: figures.get(key) for key in wanted} == json.loads(json.dumps(wanted)) else None
