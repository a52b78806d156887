"""The variants of the paper (arXiv 2406.11838, table 1): order, attention and head, trained and evaluated alike.

    python -m benchmarks.variants --data FOLDER --out out/variants --report variants.json --chart variants.png

Each variant is a training run and an artifact under --out. Existing artifacts are used again, and a run that was
stopped is resumed.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from mar_export.artifact.export import export_artifact
from runtime.artifact.artifact_folder import Artifact, is_artifact
from runtime.cli.options import PATH
from runtime.errors import MarError
from runtime.generator import Generator
from runtime.image_grid import save_grid
from runtime.model.latents import from_uint8, patchify, to_uint8, unpatchify
from runtime.storage.files import check_writable, replacing, sha256, write_json
from training.checkpoints.checkpoint import load_checkpoint
from training.checkpoints.run_folder import CONFIG_FILE, WEIGHTS_FILE
from training.config import RunConfig
from training.data.datasets import ImageDataset, chunks, open_dataset
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
_BATCH = 100
_MAR_ITERATIONS = 16
_CHAIN = {"sampler": "ddim", "diffusion_steps": 25}  # for diffusion heads


@dataclasses.dataclass(frozen=True)
class Variant:
    """A variant of the model.

    Attributes:
        attention: `causal` or `bidirectional`.
        order: The order in which tokens are generated: `raster` or `random`.
        head: `vq` or `diffusion`.
    """

    attention: str
    order: str
    head: str

    @property
    def name(self) -> str:
        """The name of the variant, and of its folder."""
        return f"{self.order}-{self.attention}-{self.head}"

    @property
    def model(self) -> dict[str, Any]:
        """The fields of the model that differ from the size `pixel_small`."""
        codes = _CODES if self.head == "vq" else 0
        return {**_MODEL, "attention": self.attention, "order": self.order, "head": self.head, "codebook_size": codes}

    @property
    def iteration_counts(self) -> tuple[int | None, ...]:
        """The numbers of iterations that it is evaluated with; None for as many as tokens."""
        return (None,) if self.attention == "causal" else (None, _MAR_ITERATIONS)


VARIANTS = tuple(
    Variant(attention, order, head)
    for attention, order in (("causal", "raster"), ("causal", "random"), ("bidirectional", "random"))
    for head in ("vq", "diffusion")
)


@click.command()
@click.option("--data", type=PATH, required=True, help="The dataset, with training and test images.")
@click.option("--out", type=PATH, required=True, help="The folder of the runs and artifacts.")
@click.option("--report", "report_file", type=PATH, required=True, help="Write the report to this file as JSON.")
@click.option(
    "--chart", type=PATH, required=True, help="Write an image of each class by each variant to this file as PNG."
)
@click.option("--classifier", type=PATH)
@click.option("--steps", type=int, default=500, show_default=True, help="Training steps of each variant.")
@click.option("--count", type=int, default=1000, show_default=True, help="Images that each variant generates.")
def variants(
    data: pathlib.Path,
    out: pathlib.Path,
    report_file: pathlib.Path,
    chart: pathlib.Path,
    classifier: pathlib.Path | None,
    steps: int,
    count: int,
) -> None:
    """Train every variant of the paper for the same number of steps, and evaluate its images."""
    for file in (report_file, chart):
        check_writable(file)
    for variant in VARIANTS:
        click.echo(f"{variant.name}: training")
        train(variant, data, out / variant.name, steps)
        export(out / variant.name, out / variant.name / "artifact")
    side = Artifact(out / VARIANTS[0].name / "artifact").manifest.model.image_shape[0]
    training, test = (open_dataset(data, side, split) for split in ("train", "test"))
    network = DatasetClassifier.load_or_train(classifier, training)
    real = extract_features(network, labelled_batches(test, np.arange(len(test.labels))))
    rows, shown = [], []
    for variant in VARIANTS:
        for iterations in variant.iteration_counts:
            row, images = _evaluate(variant, out / variant.name, iterations, network, real, count)
            click.echo(
                f"{row['name']}: top-1 accuracy {row['top1_accuracy']:.1%}, Fréchet distance {row['frechet']:.2f}"
            )
            rows.append(row)
            shown.append(images)
    vq_model = load_checkpoint(next(out / variant.name for variant in VARIANTS if variant.head == "vq")).model
    quantized = extract_features(network, _through_codebook(vq_model, training, count))
    value = {
        "images": count,
        "steps": steps,
        "model": _MODEL | {"codebook_size": _CODES},
        "training": _TRAINING,
        "real": _figures(extract_features(network, labelled_batches(training, np.arange(count))), real),
        "real_through_codebook": _figures(quantized, real),
        "rows": rows,
    }
    write_json(report_file, value)
    captions = [
        {0: row["order"], 1: row["attention"], 2: row["head"], 3: f"{row['iterations']} iterations"}.get(column, "")
        for row in rows
        for column in range(len(test.classes))
    ]
    with replacing(chart) as temporary:
        save_grid(temporary, np.concatenate(shown), captions, columns=len(test.classes))


def train(variant: Variant, data: pathlib.Path, run: pathlib.Path, steps: int) -> None:
    """Train a variant for `steps` steps, or resume its run."""
    if (run / CONFIG_FILE).exists():
        trainer = MarTrainer.resume(run, changes={"steps": steps})
    else:
        training = {**_TRAINING, "steps": steps, "checkpoint_every": 500, "sample_every": steps}
        config = {"data": str(data), "model": {"name": "pixel_small", **variant.model}, "training": training}
        trainer = MarTrainer.start(run, RunConfig.from_dict(config, variant.name))
    if trainer.step < steps:
        trainer.train()


def export(run: pathlib.Path, artifact: pathlib.Path) -> None:
    """Export a run, unless its artifact exists."""
    exported = Artifact(artifact).manifest.provenance["checkpoint_sha256"] if is_artifact(artifact) else None
    if exported != sha256(run / WEIGHTS_FILE):
        export_artifact(load_checkpoint(run), artifact, lambda text: None)


def _evaluate(
    variant: Variant,
    run: pathlib.Path,
    iterations: int | None,
    network: DatasetClassifier,
    real: FeatureStatistics,
    count: int,
) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    """Generate `count` images in `iterations`; returns their figures, and an image of each class [classes, H, W, c]."""
    with Generator.load(run / "artifact", threads=torch.get_num_threads()) as generator:
        config = generator.manifest.model
        iterations = iterations or config.tokens
        settings: dict[str, Any] = {"iterations": iterations, **(_CHAIN if variant.head == "diffusion" else {})}
        labels = np.arange(count, dtype=np.int64) % config.class_num
        batches = list(_generated_batches(generator, labels, settings))
        figures = _figures(extract_features(network, batches), real)
    about = {
        "name": f"{variant.name}-{iterations}",
        **dataclasses.asdict(variant),
        "iterations": iterations,
        "sampling": dataclasses.asdict(generator.sampling(**settings)),
        "loss": summarize(run).loss,
    }
    return about | figures, batches[0][0][: config.class_num]


def _generated_batches(
    generator: Generator, labels: NDArray[np.int64], settings: Mapping[str, Any]
) -> Iterator[LabelledBatch]:
    """Generate an image for each of `labels` [n] and yield them in batches."""
    batches = chunks(labels, _BATCH)
    for result in generator.generate_batches(labels.tolist(), _BATCH, **settings):
        assert result.images is not None
        yield result.images, next(batches)


def _figures(statistics: FeatureStatistics, real: FeatureStatistics) -> dict[str, float | None]:
    distance = frechet_distance(statistics.moments, real.moments)
    return {"top1_accuracy": statistics.top1_accuracy, "frechet": distance}


def _through_codebook(model: MAR, dataset: ImageDataset, count: int) -> Iterator[LabelledBatch]:
    """Yield real images with every token replaced by its nearest code: the best possible images of a VQ head."""
    patch, grid = model.config.patch_size, model.config.grid
    codebook = model.diffloss.codebook
    for images, labels in labelled_batches(dataset, np.arange(count)):
        tokens = patchify(from_uint8(images), patch)  # [B, L, D]
        codes = nearest_codes(torch.from_numpy(tokens).flatten(0, 1), codebook)
        yield to_uint8(unpatchify(codebook[codes].numpy().reshape(tokens.shape), (grid, grid), patch)), labels


if __name__ == "__main__":
    try:
        variants(standalone_mode=False)
    except (MarError, click.UsageError) as error:
        sys.exit(f"variants: {error}")
