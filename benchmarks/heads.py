"""Heads of the example other than its own: trained, judged and timed beside it.

    python -m benchmarks.heads docs/benchmarks/data/heads.json docs/benchmarks/data/heads.png

takes half an hour of one core. What is in `out/heads` already, heads, artifacts and judgements, stays.
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
from runtime.files import replacing, write_json
from runtime.generator import Generator
from runtime.image_grid import save_grid

EXAMPLE = pathlib.Path("examples/fashion-mnist")
HEADS = pathlib.Path("out/heads")
GUIDANCE = "--cfg-scale=2.0"
TRAINED = {"distilled-1": 900, "distilled-2": 3000, "flow": 900}  # steps of training
ROUNDS, REPEATS = 3, 3


def main(
    json_file: pathlib.Path, image: pathlib.Path, data: pathlib.Path, classifier: pathlib.Path, images: int
) -> None:
    make("example", EXAMPLE, [GUIDANCE, "--diffusion-steps=ddim100"])
    for name, steps in TRAINED.items():
        kind = ["flow-head"] if name == "flow" else ["distill", f"--to={name.removeprefix('distilled-')}", GUIDANCE]
        train(run_of(name), [*kind, str(EXAMPLE), f"--steps={steps}"], data)
        make(name, run_of(name), [GUIDANCE] if name == "flow" else [])
    judged = judge(data, classifier, images)
    draw(image, judged)
    write_json(json_file, {"images": images, "settings": seconds_and_figures(judged)})


def run_of(name: str) -> pathlib.Path:
    return EXAMPLE if name == "example" else HEADS / f"{name}-run"


def train(run: pathlib.Path, command: list[str], data: pathlib.Path) -> None:
    if not run.exists():
        run.parent.mkdir(parents=True, exist_ok=True)
        mar([*command, "--data", str(data), "--out", str(run), "--threads=1"])


def make(name: str, run: pathlib.Path, settings: list[str]) -> None:
    artifact = HEADS / name
    if not artifact.exists():
        artifact.parent.mkdir(parents=True, exist_ok=True)
        mar(["export", str(run), "--out", str(artifact), *settings])


def mar(line: list[str]) -> None:
    subprocess.run([sys.executable, "-m", "runtime.cli.main", *line], check=True)


def judge(data: pathlib.Path, classifier: pathlib.Path, images: int) -> list[tuple[Study, list[Setting]]]:
    """Every artifact with the settings in which it is drawn, all of them judged."""
    found = []
    for name in ("example", *TRAINED):
        study = Study(HEADS / name, run_of(name), classifier, data, images)
        settings = [Setting({"example": "fast", "flow": "flow-8"}.get(name, name), {"preset": "fast"})]
        if name == "example":
            settings.insert(0, Setting("exact", {"preset": "exact"}))
        run_study(study, settings, HEADS / "judged", 1, print)
        found.append((study, settings))
    return found


def seconds_and_figures(judged: list[tuple[Study, list[Setting]]]) -> list[dict[str, Any]]:
    """The figures of all settings with seconds an image, artifacts timed in turn."""
    seconds: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for study, settings in judged:
            for name, found in time_settings(study, settings, available_threads(), REPEATS).items():
                seconds.setdefault(name, []).extend(found)
    return [
        setting
        for study, settings in judged
        for setting in summarize_study(study, settings, HEADS / "judged", seconds)["settings"]
    ]


def draw(image: pathlib.Path, judged: list[tuple[Study, list[Setting]]]) -> None:
    """The same ten images, a class each, in every setting, a row each."""
    rows, captions = [], []
    for study, settings in judged:
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
    parser.add_argument("--classifier", type=pathlib.Path, default="out/classifier.safetensors")
    parser.add_argument("--images", type=int, default=5000)
    main(**vars(parser.parse_args()))
