"""Generates a few images in a process of its own, and writes their latents and random numbers.

    python -m benchmarks.numerics.probe ARTIFACT OUT.npz --backend onnxruntime --threads 1 --batch 4

It imports only the runtime, so that it also runs where other versions of the libraries are installed.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib

import numpy as np

from runtime.generator import Generator
from runtime.sampling.rng import seeded_noise, seeded_order
from runtime.storage.stored_files import save_arrays

IMAGES, SEED = 4, 7
PRESET = "turbo"


@dataclasses.dataclass(frozen=True)
class RunsOn:
    """The header of the file: the backend, for people."""

    description: str


def main(artifact: pathlib.Path, out: pathlib.Path, backend: str, threads: int, batch: int, split: bool) -> None:
    """Write `latents`, `images`, `order` and `noise` of four images, and the `description` of the backend."""
    with Generator.load(artifact, backend=backend, threads=threads, split_batches=split) as generator:
        model = generator.manifest.model
        labels = [number % model.class_num for number in range(max(IMAGES, batch))]
        results = [
            generator.generate(
                labels[start : start + batch], seed=SEED, index=range(start, start + batch), preset=PRESET
            )
            for start in range(0, IMAGES, batch)
        ]
        steps = generator.plan(preset=PRESET).diffusion_steps
        images = [result.images for result in results if result.images is not None]
        arrays = {
            "latents": np.concatenate([result.latents for result in results])[:IMAGES],
            "images": np.concatenate(images)[:IMAGES],
            "order": seeded_order(SEED, range(IMAGES), model),
            "noise": seeded_noise(SEED, range(IMAGES), steps, model),
        }
        save_arrays(out, RunsOn(generator.description), arrays)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("artifact", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=IMAGES)
    parser.add_argument("--split", action="store_true")
    main(**vars(parser.parse_args()))
