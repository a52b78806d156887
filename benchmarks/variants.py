"""The variants of the paper (arXiv 2406.11838, table 1) trained alike, exported, and judged: order, attention, loss.

    python -m benchmarks.variants --data FOLDER --out out/variants --json variants.json --chart variants.png

Each is a run of `mar train` and an artifact under --out. What is there already is not made again, and a run
that was stopped goes on.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from mar_export.artifact.export import export_artifact
from mar_export.benchmark.study import generated_batches
from runtime.artifact.artifact_folder import Artifact, is_artifact
from runtime.cli.options import PATH
from runtime.errors import MarError
from runtime.files import check_writable, replacing, sha256, write_json
from runtime.generator import Generator
from runtime.image_grid import save_grid
from runtime.model.latents import from_uint8, patchify, to_uint8, unpatchify
from training.checkpoints.checkpoint import CONFIG_FILE, WEIGHTS_FILE, load_checkpoint
from training.config import RunConfig
from training.data.datasets import ImageDataset, open_dataset
from training.evaluation.feature_networks import (
    DatasetClassifier,
    FeatureStatistics,
    LabelledBatch,
    extract_features,
    labelled_batches,
)
from training.evaluation.metrics import frechet_distance
from training.loop.mar_trainer import MarTrainer
from training.models.mar import MAR
from training.models.vq_head import nearest_codes
from training.reporting.run_comparison import summarize

# Minutes on one core. All variants have the same transformer, and heads of the same depth and width.
_TRANSFORMER = {"embed_dim": 96, "depth": 1, "num_heads": 3}
_MODEL = {
    **{f"{half}_{name}": size for half in ("encoder", "decoder") for name, size in _TRANSFORMER.items()},
    "buffer_size": 4,
    "diffloss_d": 2,
    "diffloss_w": 128,
    "diffusion_batch_mul": 1,  # a masked token trains either head once a step
}
_TRAINING = {
    "batch_size": 32,
    "learning_rate": 2e-3,
    "warmup_steps": 100,
    "ema_rate": 0.995,
    "flip": False,
    "precision": "fp32",
}
_CODES = 512
_MAR_ITERATIONS = 16
_CHAIN = {"sampler": "ddim", "diffusion_steps": 25}  # of heads that have one


@dataclasses.dataclass(frozen=True)
class Variant:
    """A model that is trained."""

    attention: str
    order: str
    head: str

    @property
    def name(self) -> str:
        return f"{self.order}-{self.attention}-{self.head}"

    @property
    def model(self) -> dict[str, Any]:
        """Its model, as changes to the preset."""
        codes = _CODES if self.head == "vq" else 0
        return {**_MODEL, "attention": self.attention, "order": self.order, "head": self.head, "codebook_size": codes}

    @property
    def iteration_counts(self) -> tuple[int | None, ...]:
        """The iterations that it is drawn with, None for one a token."""
        return (None,) if self.attention == "causal" else (None, _MAR_ITERATIONS)


VARIANTS = tuple(
    Variant(attention, order, head)
    for attention, order in (("causal", "raster"), ("causal", "random"), ("bidirectional", "random"))
    for head in ("vq", "diffusion")
)


@click.command()
@click.option("--data", type=PATH, required=True, help="The dataset: its training and its test images.")
@click.option("--out", type=PATH, required=True, help="Where runs and artifacts are kept.")
@click.option("--json", "json_file", type=PATH, required=True, help="Where to write what was found.")
@click.option("--chart", type=PATH, required=True, help="Where to write an image of each class by each variant.")
@click.option("--classifier", type=PATH, default="out/classifier.safetensors", show_default=True)
@click.option("--steps", type=int, default=500, show_default=True, help="Training steps of each.")
@click.option("--images", "count", type=int, default=1000, show_default=True, help="Images judged of each.")
def variants(
    data: pathlib.Path,
    out: pathlib.Path,
    json_file: pathlib.Path,
    chart: pathlib.Path,
    classifier: pathlib.Path,
    steps: int,
    count: int,
) -> None:
    """Train every variant of the paper for as many steps, and judge as many images of each."""
    for file in (json_file, chart):
        check_writable(file)
    for variant in VARIANTS:
        click.echo(f"{variant.name}: training")
        train(variant, data, out / variant.name, steps)
        export(out / variant.name, out / variant.name / "artifact")
    side = Artifact(out / VARIANTS[0].name / "artifact").manifest.model.img_size
    training, test = (open_dataset(data, side, split) for split in ("train", "test"))
    network = DatasetClassifier.load_or_train(classifier, training)
    real = extract_features(network, labelled_batches(test, np.arange(len(test.labels))))
    rows, shown = [], []
    for variant in VARIANTS:
        for iterations in variant.iteration_counts:
            row, images = _evaluated(variant, out / variant.name, iterations, network, real, count)
            click.echo(f"{row['name']}: recognised {row['top1_accuracy']:.1%}, Fréchet distance {row['frechet']:.2f}")
            rows.append(row)
            shown.append(images)
    coded = load_checkpoint(next(out / variant.name for variant in VARIANTS if variant.head == "vq")).model
    by_codes = extract_features(network, _through_codebook(coded, training, count))
    value = {
        "images": count,
        "steps": steps,
        "model": _MODEL | {"codebook_size": _CODES},
        "training": _TRAINING,
        "real": _figures(extract_features(network, labelled_batches(training, np.arange(count))), real),
        "real_through_codebook": _figures(by_codes, real),
        "rows": rows,
    }
    write_json(json_file, value)
    captions = [
        {0: row["order"], 1: row["attention"], 2: row["head"], 3: f"{row['iterations']} iterations"}.get(column, "")
        for row in rows
        for column in range(len(test.classes))
    ]
    with replacing(chart) as temporary:
        save_grid(temporary, np.concatenate(shown), captions, columns=len(test.classes))


def train(variant: Variant, data: pathlib.Path, run: pathlib.Path, steps: int) -> None:
    """A run of `steps` steps at `run`, gone on with where there is one."""
    if (run / CONFIG_FILE).exists():
        trainer = MarTrainer.resume(run, changes={"steps": steps})
    else:
        training = {**_TRAINING, "steps": steps, "checkpoint_every": 500, "sample_every": steps}
        told = {"data": str(data), "preset": "pixel_small", "model": variant.model, "training": training}
        trainer = MarTrainer.start(run, RunConfig.from_dict(told, variant.name))
    if trainer.step < steps:
        trainer.train()


def export(run: pathlib.Path, artifact: pathlib.Path) -> None:
    """The artifact of a run, unless it is there already."""
    made_from = Artifact(artifact).manifest.provenance["checkpoint_sha256"] if is_artifact(artifact) else None
    if made_from != sha256(run / WEIGHTS_FILE):
        export_artifact(load_checkpoint(run), artifact, lambda told: None)


def _evaluated(
    variant: Variant,
    run: pathlib.Path,
    iterations: int | None,
    network: DatasetClassifier,
    real: FeatureStatistics,
    count: int,
) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    """What is found of `count` images drawn in `iterations`, and one of each class [classes, H, W, c]."""
    with Generator.load(run / "artifact", threads=torch.get_num_threads()) as generator:
        config = generator.manifest.model
        iterations = iterations or config.tokens
        settings: dict[str, Any] = {"iterations": iterations, **(_CHAIN if variant.head == "diffusion" else {})}
        labels = np.arange(count, dtype=np.int64) % config.class_num
        batches = list(generated_batches(generator, labels, settings))
        found = _figures(extract_features(network, batches), real)
    about = {
        "name": f"{variant.name}-{iterations}",
        **dataclasses.asdict(variant),
        "iterations": iterations,
        "sampling": dataclasses.asdict(generator.sampling(**settings)),
        "loss": summarize(run).loss,
    }
    return about | found, batches[0][0][: config.class_num]


def _figures(statistics: FeatureStatistics, real: FeatureStatistics) -> dict[str, float | None]:
    distance = frechet_distance(statistics.moments, real.moments)
    return {"top1_accuracy": statistics.top1_accuracy, "frechet": distance}


def _through_codebook(model: MAR, dataset: ImageDataset, count: int) -> Iterator[LabelledBatch]:
    """Real images, every token of which is the nearest code: the best that a head of codes could draw."""
    patch, grid = model.config.patch_size, model.config.grid
    codebook = model.diffloss.codebook
    for images, labels in labelled_batches(dataset, np.arange(count)):
        tokens = patchify(from_uint8(images), patch)  # [B, L, D]
        codes = nearest_codes(torch.from_numpy(tokens).flatten(0, 1), codebook)
        yield to_uint8(unpatchify(codebook[codes].numpy().reshape(tokens.shape), grid, patch)), labels


if __name__ == "__main__":
    try:
        variants(standalone_mode=False)
    except (MarError, click.UsageError) as error:
        sys.exit(f"variants: {error}")
