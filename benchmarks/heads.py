"""Distilled heads and a flow head for an example model: trained, evaluated and timed beside its own head.

    python -m benchmarks.heads docs/benchmarks/data/heads.json docs/benchmarks/data/heads.png

takes an hour of one core. Heads, artifacts and results that are in `out/heads` already are used again.
"""

from __future__ import annotations

import argparse
import pathlib
import subprocess
import sys
from collections.abc import Sequence

import numpy as np

from mar_export.benchmark.study import Results, open_judges, run_study, summarize_study, time_settings
from mar_export.benchmark.study_settings import Setting, Study
from runtime.backends import available_threads
from runtime.generator import Generator
from runtime.image_grid import save_grid
from runtime.storage.files import replacing, write_json
from training.evaluation.feature_networks import CLASSIFIER, NETWORKS

HEADS = pathlib.Path("out/heads")
GUIDANCE = "--cfg-scale=2.0"
TRAINED = {"distilled-1": 900, "distilled-2": 3000, "flow": 900}  # steps of training
REPEATS = 9


def main(
    example: pathlib.Path,
    steps: str | None,
    train_data: pathlib.Path,
    study: Study,
    json_file: pathlib.Path,
    image: pathlib.Path,
) -> None:
    """Train and evaluate all heads; write the figures and a grid of their images."""
    export("example", example, [GUIDANCE, *([f"--diffusion-steps={steps}"] if steps else [])])
    for name, number in TRAINED.items():
        command = ["flow-head"] if name == "flow" else ["distill", f"--to={name.removeprefix('distilled-')}", GUIDANCE]
        run = HEADS / f"{name}-run"
        mar([*command, str(example), f"--steps={number}", "--data", str(train_data), "--out", str(run), "--threads=1"])
        export(name, run, [GUIDANCE] if name == "flow" else [])
    settings = [
        Setting("exact", HEADS / "example", {"preset": "exact"}),
        Setting("fast", HEADS / "example", {"preset": "fast"}),
        *(Setting(f"{name}-8" if name == "flow" else name, HEADS / name, {"preset": "fast"}) for name in TRAINED),
    ]
    results = Results(study, open_judges(study, settings), HEADS / "results")
    run_study(study, settings, results, 1, available_threads(), print)
    save_images(image, settings)
    times = time_settings(study, settings, available_threads(), REPEATS)
    write_json(json_file, summarize_study(study, settings, results, times))


def export(name: str, run: pathlib.Path, settings: list[str]) -> None:
    """Export a head, unless its artifact exists."""
    artifact = HEADS / name
    if not artifact.exists():
        artifact.parent.mkdir(parents=True, exist_ok=True)
        mar(["export", str(run), "--out", str(artifact), *settings])


def mar(arguments: list[str]) -> None:
    """Run the command `mar` in a new process; it resumes or keeps a run that it began."""
    subprocess.run([sys.executable, "-m", "runtime.cli", *arguments], check=True)


def save_images(image: pathlib.Path, settings: Sequence[Setting]) -> None:
    """Write a grid of the same ten images, one of each class, with a row for every setting."""
    rows, captions = [], []
    for setting in settings:
        with Generator.load(setting.artifact, threads=1) as generator:
            images = generator.generate(range(10), seed=1, **setting.sampling).images
            assert images is not None
            rows.append(images)
            captions += [setting.name] * len(images)
    with replacing(image) as temporary:
        save_grid(temporary, np.concatenate(rows), captions, columns=10)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json_file", type=pathlib.Path)
    parser.add_argument("image", type=pathlib.Path)
    parser.add_argument("--example", type=pathlib.Path, default="examples/fashion-mnist")
    parser.add_argument("--steps", default="ddim100", help="diffusion steps of the example's own head")
    parser.add_argument("--data", type=pathlib.Path, default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--latents", type=pathlib.Path, help="the latents that heads are trained on; default: --data")
    parser.add_argument("--classifier", type=pathlib.Path)
    parser.add_argument("--features", choices=NETWORKS, nargs="+", default=[CLASSIFIER])
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args()
    main(
        given.example,
        given.steps,
        given.latents or given.data,
        Study(given.data, given.count, given.seeds, tuple(given.features), given.classifier),
        given.json_file,
        given.image,
    )
