"""A tiny study, and evaluation without images, for the tests of `mar study`."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from mar_export.benchmark import study
from mar_export.benchmark.study import (
    Setting,
    Study,
)
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import MANIFEST
from runtime.errors import MarError
from tests.helpers.tiny_runs import write_idx
from training.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_weights, write_run_config
from training.checkpoints.run_folder import WEIGHTS_FILE

QUICK = Setting("quick", {"iterations": 2, "diffusion_steps": 3})
OTHER = Setting("dpm++2m 4", {"iterations": 2, "sampler": "dpm++2m", "diffusion_steps": 4, "cfg_scale": 1.0})


@pytest.fixture
def study_is_not_kept() -> Iterator[None]:
    """The study of this test is not kept afterwards."""
    yield
    study._load_study.cache_clear()


@pytest.fixture(scope="session")
def tiny_study(
    pixel_checkpoint: Checkpoint, pixel_artifact: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> Study:
    """A run folder, the artifact of its weights, and 8x8 images in two classes: dark, and light below."""
    folder = tmp_path_factory.mktemp("study")
    run, data = folder / "run", folder / "data"
    run.mkdir()
    data.mkdir()
    write_run_config(
        run, {"model": pixel_checkpoint.model.config.to_dict(), "tokenizer": "pixel", "class_names": ["cat", "dog"]}
    )
    save_weights(run / WEIGHTS_FILE, pixel_checkpoint.model.state_dict())
    random = np.random.default_rng(0)
    for split, count in (("train", 256), ("t10k", 40)):
        labels = (np.arange(count) % 2).astype(np.uint8)
        pixels = random.integers(0, 90, (count, 8, 8), dtype=np.uint8)
        pixels[labels == 1, 4:] += 150
        write_idx(data / f"{split}-images-idx3-ubyte", pixels)
        write_idx(data / f"{split}-labels-idx1-ubyte", labels)
    artifact = pathlib.Path(shutil.copytree(pixel_artifact, folder / "artifact"))
    manifest = json.loads((artifact / MANIFEST).read_text())
    manifest["provenance"]["checkpoint_sha256"] = load_checkpoint(run).sha256
    (artifact / MANIFEST).write_text(json.dumps(manifest))
    return Study(artifact, run, folder / "classifier.safetensors", data, count=10)


class EvaluatedSettings(list[tuple[str, int]]):
    """The settings that were evaluated, each with the number of images."""


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> EvaluatedSettings:
    """Judges every setting at once, in this process."""
    seen = EvaluatedSettings()

    def judge(inputs: Study, setting: Setting) -> dict[str, Any]:
        seen.append((setting.name, inputs.count))
        manifest = Artifact(inputs.artifact).manifest
        sampling = manifest.resolve_sampling(setting.sampling)
        found = figures(
            setting.name, json.loads(json.dumps(dataclasses.asdict(sampling))), inputs.count, float(len(seen))
        )
        return {**found, "checkpoint_sha256": manifest.provenance["checkpoint_sha256"]}

    monkeypatch.setattr(study, "evaluate_setting", judge)
    monkeypatch.setattr(study, "_load_study", lambda inputs: None)
    monkeypatch.setattr("mar_export.cli.study.study_doubts", lambda inputs: [])
    return seen


def figures(name: str, sampling: dict[str, Any], images: int, frechet: float) -> dict[str, Any]:
    return {
        "name": name,
        "sampling": sampling,
        "images": images,
        "top1_accuracy": 0.5,
        "frechet": frechet,
        "head_evaluations": 160,
        "engines": "fakes",
        "seconds": 1.0,
    }


def fail(inputs: Study, setting: Setting) -> dict[str, Any]:
    raise MarError("out of luck")


def ignore(text: str) -> None:
    """What a study says of a setting that is evaluated."""
