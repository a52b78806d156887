"""The study of quality against time: every preset, and every sampler at several numbers of steps.

Every setting generates images of the same classes from the same token orders and noise. Thousands of images for each
take hours on a processor, so they are generated with the engines in PyTorch in bfloat16, by one or several processes.
The times are those of the runtime in float32, with a batch of one image.
"""

from __future__ import annotations

import contextlib
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

from mar_export.artifact.exported_checkpoint import as_exported
from mar_export.torch_backends.torch_cpu import eager_generator
from runtime.artifact.artifact_folder import Artifact
from runtime.errors import RequestError
from runtime.generator import Generator
from runtime.image_files import WHITE, Color
from runtime.model.config import ModelConfig
from runtime.progress import Progress
from runtime.sampling.constraints import supported_samplers
from runtime.sampling.presets import PRESETS
from runtime.storage.files import write_json
from runtime.storage.stored_files import check_hash, with_hash
from runtime.storage.structured_files import FaultReport, read_json_object
from runtime.workers.tasks import run_tasks
from runtime.workers.worker_group import Workers
from training.checkpoints.checkpoint import load_checkpoint
from training.data.class_names import check_known_classes
from training.data.datasets import chunks, open_dataset
from training.evaluation.feature_networks import (
    DatasetClassifier,
    FeatureStatistics,
    LabelledBatch,
    extract_features,
    labelled_batches,
)
from training.evaluation.metrics import frechet_distance
from training.evaluation.reliability import doubts
from training.evaluation.uncertainty import uncertainty_of

STEPS = (100, 50, 25, 14, 10, 6)
_SAMPLER_ITERATIONS = 16
_BATCH = 100


@dataclasses.dataclass(frozen=True)
class Setting:
    """Sampling settings under a name.

    Attributes:
        name: The row in tables, and the name of the file with the result.
        sampling: The preset and the overrides of a request, as `Generator.generate` takes them.
    """

    name: str
    sampling: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Study:
    """The inputs of a study.

    Attributes:
        artifact: The artifact folder.
        checkpoint: The checkpoint that the artifact was exported from.
        classifier: The file with the weights of the classifier; it is trained and written if it is missing. None: that
            of `training.evaluation.classifier.default_file`.
        data: The dataset that the model was trained on.
        count: The number of images that each setting generates.
        background: The colour under transparent pixels of the dataset's images.
    """

    artifact: pathlib.Path
    checkpoint: pathlib.Path
    classifier: pathlib.Path | None
    data: pathlib.Path
    count: int
    background: Color = WHITE


def sampler_settings(model: ModelConfig) -> list[Setting]:
    """Return every sampler of a model at every number of steps in `STEPS`; none for a distilled head.

    These settings have no guidance, which halves the work. Each sampler starts at its own default timestep.
    """
    common = {"preset": "exact", "iterations": min(_SAMPLER_ITERATIONS, model.tokens), "cfg_scale": 1.0}
    return [
        Setting(f"{sampler} {steps}", {**common, "sampler": sampler, "diffusion_steps": steps})
        for steps in (() if model.distilled_steps else reversed(STEPS))
        for sampler in supported_samplers(model)
    ]


def preset_settings(own: Iterable[str]) -> list[Setting]:
    """Return a setting for every built-in preset and for each of the artifact's `own`, with the artifact's guidance."""
    return [Setting(name, {"preset": name}) for name in (*PRESETS, *own)]


def run_study(
    study: Study, settings: list[Setting], out: pathlib.Path, workers: Workers, report: Callable[[str], None]
) -> None:
    """Evaluate every setting that has no result in `out` yet.

    Args:
        study: The inputs.
        settings: The settings to evaluate.
        out: A folder with one JSON file for each setting; results are written as soon as they are there.
        workers: The processes, each of which evaluates one setting at a time.
        report: Called with a line of text for each new result.

    Raises:
        BackendError: Ray, which more than one process need, is not installed.
    """
    out.mkdir(parents=True, exist_ok=True)
    if not workers.in_this_process:
        _load_study(study)  # trains a missing classifier once for all processes
    missing = [setting for setting in settings if _figures(out, setting, study) is None]
    if not missing:
        return
    with Progress(len(missing), "evaluating", unit="settings") as progress:
        for setting, figures in run_tasks(functools.partial(_evaluating, study, workers.threads), missing, workers):
            write_json(_file(out, setting), with_hash(figures))
            progress.message(
                f"{setting.name:20} top-1 accuracy {figures['top1_accuracy']:.1%}, "
                f"Fréchet distance {figures['frechet']:.3f}",
                report,
            )
            progress.update()


@contextlib.contextmanager
def _evaluating(study: Study, threads: int) -> Iterator[Callable[[Setting], dict[str, Any]]]:
    """Open the evaluation of settings in a worker."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield functools.partial(evaluate_setting, study)
    finally:
        torch.set_num_threads(before)


def study_doubts(study: Study) -> list[str]:
    """Return one line for each reason to doubt the figures of a study, see `training.evaluation.reliability`."""
    _, classifier, real = _load_study(study)
    return doubts(classifier.name, {"generated": study.count}, real, classifier.knows_classes)


def check_results(study: Study, settings: list[Setting], out: pathlib.Path) -> None:
    """Raise `RequestError` if the folder `out` has a result that `run_study` would replace by another one."""
    for setting in settings:
        if _file(out, setting).exists() and _figures(out, setting, study) is None:
            raise RequestError(
                f"{_file(out, setting)} is the result of another model, of other settings or of another number of "
                "images; choose another --out, or give --force to replace it"
            )


def time_settings(study: Study, settings: list[Setting], threads: int, repeats: int) -> dict[str, list[float]]:
    """Time the runtime with every setting, in turn, one image at a time.

    Returns:
        The seconds of `repeats` images for each setting, by its name.
    """
    seconds: dict[str, list[float]] = {setting.name: [] for setting in settings}
    with (
        Generator.load(study.artifact, threads=threads) as generator,
        Progress((repeats + 1) * len(settings), "timing") as progress,
    ):
        for repeat in range(-1, repeats):
            for setting in settings:
                started = time.perf_counter()
                generator.generate([0], **setting.sampling)
                if repeat >= 0:  # the first round warms up
                    seconds[setting.name].append(time.perf_counter() - started)
                progress.update()
    return seconds


def summarize_study(
    study: Study, settings: list[Setting], out: pathlib.Path, seconds: Mapping[str, list[float]]
) -> dict[str, Any]:
    """Return the report of a study: the result and the times of every setting that is evaluated.

    Args:
        study: The inputs.
        settings: The settings to report.
        out: The folder of results, as for `run_study`.
        seconds: The times of each setting, as `time_settings` returns them.
    """
    rows = []
    for setting in settings:
        figures = _figures(out, setting, study)
        if figures is not None:
            p10, median, p90 = np.percentile(seconds[setting.name], [10, 50, 90])
            rows.append({**figures, "milliseconds": {"median": 1e3 * median, "p10": 1e3 * p10, "p90": 1e3 * p90}})
    return {"images": study.count, "settings": rows}


def evaluate_setting(study: Study, setting: Setting) -> dict[str, Any]:
    """Generate the images of one setting and evaluate them.

    Returns:
        The result as JSON: the settings, the top-1 accuracy, the Fréchet distance from the real test images, and their
        uncertainty.
    """
    generator, classifier, real = _load_study(study)
    labels = np.arange(study.count, dtype=np.int64) % generator.manifest.model.class_num
    started = time.perf_counter()
    generated = extract_features(classifier, generated_batches(generator, labels, setting.sampling))
    return {
        "name": setting.name,
        "sampling": dataclasses.asdict(generator.sampling(**setting.sampling)),
        "images": study.count,
        "checkpoint_sha256": generator.manifest.provenance["checkpoint_sha256"],
        "top1_accuracy": generated.top1_accuracy,
        "frechet": frechet_distance(generated.moments, real.moments),
        **uncertainty_of(generated, real),
        "head_evaluations": generator.plan(**setting.sampling).head_evaluations,
        "engines": generator.description,
        "seconds": time.perf_counter() - started,
    }


@functools.lru_cache(maxsize=1)
def _load_study(study: Study) -> tuple[Generator, DatasetClassifier, FeatureStatistics]:
    """Open the generator and the classifier, and compute the statistics of the real test images; once per process."""
    manifest = Artifact(study.artifact).manifest
    if manifest.tokenizer != "pixel":
        raise RequestError(f"{study.artifact} is a model of latents, mar study is for pixels; use mar evaluate")
    checkpoint = as_exported(load_checkpoint(study.checkpoint), study.artifact)
    generator = eager_generator(manifest, checkpoint.model, bfloat16=True)
    side = manifest.model.image_shape[0]
    train, test = (open_dataset(study.data, side, split, study.background) for split in ("train", "test"))
    check_known_classes(train.classes, manifest.class_names, str(study.data), str(study.artifact))
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
    """Read the result of a setting; None if there is none, or one of another model, settings or number of images.

    Raises:
        RequestError: The file is damaged or was altered.
    """
    file, fault_report = _file(out, setting), FaultReport(RequestError, "remove it to evaluate the setting again")
    if not file.exists():
        return None
    figures = check_hash(read_json_object(file, fault_report), (), file, fault_report)
    manifest = Artifact(study.artifact).manifest
    inputs = {
        "sampling": dataclasses.asdict(manifest.resolve_sampling(setting.sampling)),
        "images": study.count,
        "checkpoint_sha256": manifest.provenance["checkpoint_sha256"],
    }
    return figures if {key: figures.get(key) for key in inputs} == json.loads(json.dumps(inputs)) else None
