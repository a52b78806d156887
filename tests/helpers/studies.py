"""A tiny study for the tests of `mar study`."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from mar_export.benchmark import study
from mar_export.benchmark.study import Judges, open_judges
from mar_export.benchmark.study_settings import Setting, Study
from runtime.artifact.artifact_folder import Artifact
from tests.helpers.tiny_runs import write_idx
from training.evaluation.comparison import Comparison
from training.evaluation.comparison_table import GENERATED, TRAINING


@dataclasses.dataclass(frozen=True)
class TinyStudy:
    """A study of 8x8 images in two classes, dark, and light below, and two settings of one artifact."""

    inputs: Study
    quick: Setting
    other: Setting
    judges: Judges

    @property
    def settings(self) -> list[Setting]:
        return [self.quick, self.other]


@pytest.fixture(scope="session")
def tiny_study(pixel_artifact: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    folder = tmp_path_factory.mktemp("study")
    data = folder / "data"
    data.mkdir()
    random = np.random.default_rng(0)
    for split, count in (("train", 256), ("t10k", 40)):
        labels = (np.arange(count) % 2).astype(np.uint8)
        pixels = random.integers(0, 90, (count, 8, 8), dtype=np.uint8)
        pixels[labels == 1, 4:] += 150
        write_idx(data / f"{split}-images-idx3-ubyte", pixels)
        write_idx(data / f"{split}-labels-idx1-ubyte", labels)
    inputs = Study(data, count=10, classifier=folder / "classifier.safetensors", backend=(("backend", "onnxruntime"),))
    quick = Setting("quick", pixel_artifact, {"iterations": 2, "diffusion_steps": 3})
    sampling = {"iterations": 2, "sampler": "dpm++2m", "diffusion_steps": 4, "cfg_scale": 1.0}
    other = Setting("dpm++2m 4", pixel_artifact, sampling, "dpm++2m")
    return TinyStudy(inputs, quick, other, open_judges(inputs, [quick]))


class Drawn(list[tuple[str, int, int]]):
    """The images that were drawn: the preset or the number of steps, the seed and the number of each job."""


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """Nothing is drawn, and the classifier finds distances of 1, 2, 3 and so on."""
    seen = Drawn()

    def draw(job: Any, count: int, *others: Any) -> None:
        settings = dict(job.settings)
        seen.append((str(settings.get("preset") or settings["diffusion_steps"]), job.seed, count))

    def compare(*inputs: Any) -> Comparison:
        return Comparison({"classifier": metrics(float(len(seen)))}, ["10 images are few"])

    monkeypatch.setattr(study, "generate_images", draw)
    monkeypatch.setattr(study, "compare_job", compare)
    return seen


def metrics(distance: float) -> dict[str, Any]:
    """What a network says of images at a distance from real ones."""
    real = {"top1_accuracy": 0.9, "frechet": 0.1, "standard_error": {"top1_accuracy": None, "frechet": None}}
    return {GENERATED: {**real, "top1_accuracy": 0.5, "frechet": distance}, TRAINING: real}


def report_row(setting: Setting, distances: list[float], milliseconds: float) -> Mapping[str, Any]:
    """A row of a report, with the same distances by two networks, of which one knows the classes."""
    of_seeds = [metrics(distance)[GENERATED] for distance in distances]
    without_classes = [{**of_seed, "top1_accuracy": None} for of_seed in of_seeds]
    manifest = Artifact(setting.artifact).manifest
    return {
        "name": setting.name,
        "sampler": setting.sampler,
        "sampling": dataclasses.asdict(manifest.resolve_sampling(setting.sampling)),
        "head_evaluations": 160,
        "features": {"inception": without_classes, "classifier": of_seeds},
        "milliseconds": {"median": milliseconds},
    }


def ignore(text: str) -> None:
    """What a study says of a setting that is evaluated."""
