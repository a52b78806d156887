"""Distilled heads and a flow head for the example model: trained, evaluated and timed beside its own head.

    python -m benchmarks.heads docs/benchmarks/data/heads.json docs/benchmarks/data/heads.png

takes half an hour of one core. Heads, artifacts and results that are in `out/heads` already are used again.
"""

from __future__ import annotations

import argparse
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np

from mar_export.benchmark.study import Setting, Study, run_study, summarize_study, time_settings
from runtime.backends import available_threads
from runtime.generator import Generator
from runtime.image_grid import save_grid
from runtime.storage.files import replacing, write_json
from runtime.workers.worker_group import Workers

EXAMPLE = pathlib.Path("examples/fashion-mnist")
HEADS = pathlib.Path("out/heads")
GUIDANCE = "--cfg-scale=2.0"
TRAINED = {"distilled-1": 900, "distilled-2": 3000, "flow": 900}  # steps of training
ROUNDS, REPEATS = 3, 3


def main(
    json_file: pathlib.Path, image: pathlib.Path, data: pathlib.Path, classifier: pathlib.Path | None, count: int
) -> None:
    """Train and evaluate all heads; write the figures and a grid of their images."""
    export("example", EXAMPLE, [GUIDANCE, "--diffusion-steps=ddim100"])
    for name, steps in TRAINED.items():
        command = ["flow-head"] if name == "flow" else ["distill", f"--to={name.removeprefix('distilled-')}", GUIDANCE]
        train(run_folder(name), [*command, str(EXAMPLE), f"--steps={steps}"], data)
        export(name, run_folder(name), [GUIDANCE] if name == "flow" else [])
    evaluated = evaluate(data, classifier, count)
    save_images(image, evaluated)
    write_json(json_file, {"images": count, "settings": summarize(evaluated)})


def run_folder(name: str) -> pathlib.Path:
    """Return the run folder of a head."""
    return EXAMPLE if name == "example" else HEADS / f"{name}-run"


def train(run: pathlib.Path, command: list[str], data: pathlib.Path) -> None:
    """Train a head with a command of `mar`, which resumes or keeps a run that it began."""
    mar([*command, "--data", str(data), "--out", str(run), "--threads=1"])


def export(name: str, run: pathlib.Path, settings: list[str]) -> None:
    """Export a head, unless its artifact exists."""
    artifact = HEADS / name
    if not artifact.exists():
        artifact.parent.mkdir(parents=True, exist_ok=True)
        mar(["export", str(run), "--out", str(artifact), *settings])


def mar(arguments: list[str]) -> None:
    """Run the command `mar` in a new process."""
    subprocess.run([sys.executable, "-m", "runtime.cli", *arguments], check=True)


def evaluate(data: pathlib.Path, classifier: pathlib.Path | None, count: int) -> list[tuple[Study, list[Setting]]]:
    """Evaluate every artifact, and return the settings of each."""
    evaluated = []
    for name in ("example", *TRAINED):
        study = Study(HEADS / name, run_folder(name), classifier, data, count)
        settings = [Setting({"example": "fast", "flow": "flow-8"}.get(name, name), {"preset": "fast"})]
        if name == "example":
            settings.insert(0, Setting("exact", {"preset": "exact"}))
        run_study(study, settings, HEADS / "results", Workers.of_this_machine(1, 1), print)
        evaluated.append((study, settings))
    return evaluated


def summarize(evaluated: list[tuple[Study, list[Setting]]]) -> list[dict[str, Any]]:
    """Time all artifacts in turn, and return the figures of every setting."""
    seconds: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for study, settings in evaluated:
            for name, times in time_settings(study, settings, available_threads(), REPEATS).items():
                seconds.setdefault(name, []).extend(times)
    return [
        setting
        for study, settings in evaluated
        for setting in summarize_study(study, settings, HEADS / "results", seconds)["settings"]
    ]


def save_images(image: pathlib.Path, evaluated: list[tuple[Study, list[Setting]]]) -> None:
    """Write a grid of the same ten images, one of each class, with a row for every setting."""
    rows, captions = [], []
    for study, settings in evaluated:
        with Generator.load(study.artifact, threads=1) as generator:
            for setting in settings:
                images = generator.generate(range(10), seed=1, **setting.sampling).images
                assert images is not None
                rows.append(images)
                captions += [setting.name] * len(images)
    with replacing(image) as temporary:
        save_grid(temporary, np.concatenate(rows), captions, columns=10)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("json_file", type=pathlib.Path)
    parser.add_argument("image", type=pathlib.Path)
    parser.add_argument("--data", type=pathlib.Path, default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--classifier", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=5000)
    main(**vars(parser.parse_args()))
