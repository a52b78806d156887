"""Heads of the example other than its own: trained, judged and timed beside it.

    python -m tests.measure_heads docs/numbers/heads.json docs/numbers/heads.png

takes an hour and a half of one core. What is in `out/heads` already, heads, artifacts and judgements, stays. The
way `exact`, which would take two hours, is that of docs/numbers/study where it has as many pictures.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np

from mar_export.study import Study, Way, run_study, summary, time_ways
from runtime.backends import available_threads
from runtime.files import replacing, write_json
from runtime.generator import Generator
from runtime.grid import save_grid

EXAMPLE = pathlib.Path("examples/fashion-mnist")
EXACT = pathlib.Path("docs/numbers/study/exact.json")
HEADS = pathlib.Path("out/heads")
GUIDANCE = "--cfg-scale=2.0"
DISTILLED = (1, 2, 4)
ROUNDS, REPEATS = 3, 3


def main(
    json_file: pathlib.Path, picture: pathlib.Path, data: pathlib.Path, classifier: pathlib.Path, images: int
) -> None:
    make(HEADS / "example", EXAMPLE, [GUIDANCE, "--diffusion-steps=ddim100"])
    train(HEADS / "flow-run", ["flow-head", str(EXAMPLE)], data)
    make(HEADS / "flow", HEADS / "flow-run", [GUIDANCE])
    for steps in DISTILLED:
        train(HEADS / f"distilled-{steps}-run", ["distill", str(EXAMPLE), f"--to={steps}", GUIDANCE], data)
        make(HEADS / f"distilled-{steps}", HEADS / f"distilled-{steps}-run", [])
    judged = judge(data, classifier, images)
    draw(picture, judged)
    ways = seconds_and_figures(judged)
    exact = json.loads(EXACT.read_text())
    if exact["images"] == images:
        before = {"median": time_exact(judged[0][0])}
        ways.insert(0, {**exact, "milliseconds": before})
    write_json(json_file, {"images": images, "ways": ways})


def train(run: pathlib.Path, command: list[str], data: pathlib.Path) -> None:
    if not run.exists():
        run.parent.mkdir(parents=True, exist_ok=True)
        mar([*command, "--data", str(data), "--out", str(run), "--threads=1"])


def make(artifact: pathlib.Path, run: pathlib.Path, settings: list[str]) -> None:
    if not artifact.exists():
        artifact.parent.mkdir(parents=True, exist_ok=True)
        mar(["export", str(run), "--out", str(artifact), *settings])


def mar(line: list[str]) -> None:
    subprocess.run([sys.executable, "-m", "runtime.cli", *line], check=True)


def judge(data: pathlib.Path, classifier: pathlib.Path, images: int) -> list[tuple[Study, list[Way]]]:
    """Every artifact with the ways in which it is drawn, all of them judged."""
    asked = [
        ("example", EXAMPLE, [Way("fast", {"preset": "fast"})]),
        ("flow", HEADS / "flow-run", [Way(f"flow-{n}", {"preset": "fast", "diffusion_steps": n}) for n in (8, 4)]),
        *(
            (f"distilled-{n}", HEADS / f"distilled-{n}-run", [Way(f"distilled-{n}", {"preset": "fast"})])
            for n in DISTILLED
        ),
    ]
    found = []
    for name, checkpoint, ways in reversed(asked):  # the quick ones first
        study = Study(HEADS / name, checkpoint, classifier, data, images)
        run_study(study, ways, HEADS / "judged", 1, print)
        found.append((study, ways))
    return found[::-1]


def seconds_and_figures(judged: list[tuple[Study, list[Way]]]) -> list[dict[str, Any]]:
    """The figures of all ways with seconds a picture, artifacts timed in turn."""
    seconds: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for study, ways in judged:
            for name, found in time_ways(study, ways, available_threads(), REPEATS).items():
                seconds.setdefault(name, []).extend(found)
    return [way for study, ways in judged for way in summary(study, ways, HEADS / "judged", seconds)["ways"]]


def time_exact(study: Study) -> float:
    """Milliseconds a picture, the median of a few."""
    return 1e3 * float(
        np.median(time_ways(study, [Way("exact", {"preset": "exact"})], available_threads(), 3)["exact"])
    )


def draw(picture: pathlib.Path, judged: list[tuple[Study, list[Way]]]) -> None:
    """The same ten pictures, a class each, in every way, a row each."""
    rows, captions = [], []
    for study, ways in judged:
        with Generator.load(study.artifact, threads=1) as generator:
            for way in ways:
                images = generator.generate(range(10), seed=1, **way.settings).images
                assert images is not None
                rows.append(images)
                captions += [way.name] * len(images)
    with replacing(picture) as temporary:
        save_grid(temporary, np.concatenate(rows), captions, columns=10)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("json_file", type=pathlib.Path)
    parser.add_argument("picture", type=pathlib.Path)
    parser.add_argument("--data", type=pathlib.Path, default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--classifier", type=pathlib.Path, default="out/classifier.safetensors")
    parser.add_argument("--images", type=int, default=5000)
    main(**vars(parser.parse_args()))
