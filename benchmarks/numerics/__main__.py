"""Measurements of how exact the numbers are; each command writes a JSON file and draws its chart beside it.

python -m benchmarks.numerics COMMAND --help
"""

from __future__ import annotations

import datetime
import importlib.metadata
import pathlib
import platform
import sys
from collections.abc import Callable, Mapping
from typing import Any

import click
import numpy as np
import torch

from benchmarks.numerics.charts import CHARTS
from runtime.artifact.artifact_folder import Artifact
from runtime.cli.options import PATH
from runtime.errors import MarError
from runtime.provenance import commit, processor_name
from runtime.sampling.samplers import coefficient_table
from runtime.storage.files import write_json

EXAMPLE = pathlib.Path("examples/fashion-mnist")
DATA = pathlib.Path("/usr/share/datasets/fashion-mnist")
TOKENIZER = pathlib.Path("examples/procgen/tokenizer.safetensors")
_PACKAGES = ("numpy", "onnxruntime", "openvino", "torch")


@click.group()
def numerics() -> None:
    """Measure how exact the numbers are."""
    torch.set_num_threads(1)


def report_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add the option that names the JSON file; the chart is the PNG file beside it."""
    return click.option("--report", type=PATH, required=True, help="The JSON file to write, and a PNG file beside it.")(
        command
    )


def save(name: str, report: pathlib.Path, figures: Mapping[str, Any]) -> None:
    """Write the figures of a command with what they were measured on, and its chart."""
    about = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": commit(),
        "processor": processor_name(),
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in _PACKAGES},
    }
    complete = {"about": about, **figures}
    write_json(report, complete)
    CHARTS[name](complete, report.with_suffix(".png"))


@numerics.command("error-growth")
@click.argument("artifact", type=PATH)
@click.option("--checkpoint", type=PATH, default=EXAMPLE, show_default=True)
@click.option("--tokenizer", type=PATH, default=TOKENIZER, show_default=True)
@click.option("--tokenizer-data", type=PATH, required=True, help="A dataset with a test split for the tokenizer.")
@click.option("--count", type=int, default=4, show_default=True, help="Images.")
@click.option("--preset", default="balanced", show_default=True, help="The generation whose errors are followed.")
@report_option
def error_growth(
    artifact: pathlib.Path,
    checkpoint: pathlib.Path,
    tokenizer: pathlib.Path,
    tokenizer_data: pathlib.Path,
    count: int,
    preset: str,
    report: pathlib.Path,
) -> None:
    """Follow the errors of low precision through a whole generation."""
    from benchmarks.numerics.error_growth import measure_example, measure_tokenizer

    growth, ranked = {"preset": preset}, {"preset": "turbo"}
    opened = Artifact(artifact)
    sampling = opened.manifest.resolve_sampling(growth)
    steps = sampling.diffusion_steps
    assert isinstance(steps, (int, str))
    table = coefficient_table(sampling.sampler, steps)
    decoder = measure_tokenizer(tokenizer, tokenizer_data, 2 * count)
    example = measure_example(opened, checkpoint, growth, ranked, count, click.echo)
    figures = {
        "preset": preset,
        "images": count,
        "timesteps": table.timesteps.tolist(),
        "example": example,
        "tokenizer": decoder,
    }
    save("error-growth", report, figures)


@numerics.command()
@click.argument("artifact", type=PATH)
@click.option("--data", type=PATH, default=DATA, show_default=True)
@click.option("--images", type=PATH, default="out/evaluation", show_default=True, help="The --out of mar evaluate.")
@click.option("--count", type=int, default=10_000, show_default=True, help="Generated images.")
@click.option("--preset", default="fast", show_default=True)
@click.option("--inception", type=int, default=0, show_default=True, help="Real images for features of Inception.")
@report_option
def estimators(
    artifact: pathlib.Path,
    data: pathlib.Path,
    images: pathlib.Path,
    count: int,
    preset: str,
    inception: int,
    report: pathlib.Path,
) -> None:
    """Measure bias and spread of the distances against the number of images; mar evaluate generates them first."""
    from benchmarks.numerics.estimators import FEW_CHOICES, SIZES, measure_set, perfect_images
    from benchmarks.numerics.features import GeneratedImages, classifier_features, inception_features

    training, test = (classifier_features(data, split, images) for split in ("train", "test"))
    drawn = GeneratedImages(artifact, preset, count, images)
    sets = {
        "real training images": measure_set(training, test),
        f"generated images, {preset}": measure_set(drawn.classifier_features(data), test),
    }
    perfect = {"classifier, 64 features": perfect_images(training, SIZES)}
    if inception:
        features = inception_features(data, inception, images)
        chosen, real = np.array_split(features, 2)
        sets["real training images, Inception"] = measure_set(chosen, real, repeats=FEW_CHOICES)
        generated = drawn.inception_features()
        sets[f"generated images, {preset}, Inception"] = measure_set(generated, real, repeats=FEW_CHOICES)
        perfect["Inception, 2,048 features"] = perfect_images(features, SIZES)
    save("estimators", report, {"sets": sets, "perfect": perfect})


@numerics.command()
@click.argument("artifact", type=PATH)
@click.option("--checkpoint", type=PATH, default=EXAMPLE, show_default=True)
@click.option("--flow", type=PATH, required=True, help="A run of mar flow-head for the checkpoint.")
@report_option
def convergence(artifact: pathlib.Path, checkpoint: pathlib.Path, flow: pathlib.Path, report: pathlib.Path) -> None:
    """Measure the order of convergence of every sampler."""
    from benchmarks.numerics.convergence import Sizes, measure_convergence

    save("convergence", report, measure_convergence(artifact, checkpoint, flow, Sizes()))


@numerics.command()
@click.argument("artifact", type=PATH)
@click.option("--int8", type=PATH, required=True, help="The same artifact in int8.")
@click.option("--work", type=PATH, default="out/determinism", show_default=True, help="Environments of other versions.")
@report_option
def determinism(artifact: pathlib.Path, int8: pathlib.Path, work: pathlib.Path, report: pathlib.Path) -> None:
    """Compare the bits of images across threads, batches, processors and versions of libraries."""
    from benchmarks.numerics.determinism import ALL_SETTINGS, measure_determinism

    save("determinism", report, {"rows": measure_determinism({"fp32": artifact, "int8": int8}, ALL_SETTINGS, work)})


if __name__ == "__main__":
    try:
        numerics(standalone_mode=False)
    except (MarError, click.UsageError) as error:
        sys.exit(f"numerics: {error}")
