"""The command `mar evaluate`."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import click
import torch

from runtime.cli.background_option import background_option
from runtime.cli.json_document import PrintDocument, json_document, json_option
from runtime.cli.options import PATH, backend_options, preset_option, sampling_options, threads_option
from runtime.cli.result_files import OUTPUT, check_result_file, force_option, write_result_json
from runtime.errors import MarError, RequestError
from runtime.image_files import Color
from runtime.progress import Progress
from runtime.storage.files import holding_folder
from training.cli.evaluation_options import evaluation_options
from training.cli.named_checkpoint import take_checkpoint_options
from training.cli.options import checkpoint_options, echo_warnings
from training.cli.run_settings import background_of_run, setting_of_run
from training.evaluation.comparison import compare_job, open_networks
from training.evaluation.comparison_table import GENERATED, comparison_table
from training.evaluation.feature_networks import CLASSIFIER
from training.evaluation.generate_images import GenerationJob, generate_images
from training.evaluation.real_images import RealImages, open_real_images
from training.reporting.progress import print_lines, print_warnings


@click.command()
@click.argument("source", type=PATH, metavar="CHECKPOINT|ARTIFACT")
@click.option("--data", type=PATH, required=True, help="The folder of the dataset that the model was trained on.")
@click.option(
    "--split",
    type=click.Choice(["test", "train"]),
    default="test",
    show_default=True,
    help="The split of the real images that generated images are compared with.",
)
@click.option(
    "--real-count",
    type=click.IntRange(2),
    help="The number of real images to compare with. Default: all images of the split.",
)
@click.option(
    "--validation-share",
    type=click.FloatRange(0, 1, max_open=True),
    help="The share that mar train held out. The held-out images are the test split of a dataset that has none. "
    "Default: that of the run.",
)
@click.option("--count", type=int, default=5000, show_default=True, help="The number of images to generate.")
@evaluation_options
@click.option(
    "--out",
    type=PATH,
    default="out/evaluation",
    show_default=True,
    help="The folder that keeps generated images and statistics of real images for the next evaluation.",
)
@background_option
@backend_options
@preset_option
@sampling_options
@checkpoint_options
@click.option("--seed", type=int, default=0, show_default=True, help="The seed of the generated images.")
@threads_option
@click.option(
    "--min-accuracy",
    type=click.FloatRange(0, 1),
    help="Fail if the top-1 accuracy of the classifier on the generated images is lower than this share.",
)
@click.option("--report", "report_file", type=OUTPUT, help="Write the metrics to this file as JSON.")
@force_option("Replace a report that something else made.")
@json_option
def evaluate(
    source: pathlib.Path,
    data: pathlib.Path,
    split: str,
    real_count: int | None,
    validation_share: float | None,
    count: int,
    features: Sequence[str],
    classifier: pathlib.Path | None,
    out: pathlib.Path,
    processes: int,
    background: Color,
    backend: str,
    device: str | None,
    cuda_graphs: bool,
    seed: int,
    threads: int | None,
    min_accuracy: float | None,
    report_file: pathlib.Path | None,
    print_document: PrintDocument,
    **settings: Any,
) -> None:
    """Compare generated images with real ones.

    An artifact runs with its own engines. A checkpoint runs in eager PyTorch on the CPU. The command can be stopped and
    repeated: it resumes with the images and statistics that are in --out.
    """
    _check_options(features, min_accuracy, report_file, count)
    if threads is not None:
        torch.set_num_threads(threads)
    backend_arguments = {"backend": backend, "device": device, "cuda_graphs": cuda_graphs}
    checkpoint_arguments = take_checkpoint_options(settings)
    arguments = (tuple(values.items()) for values in (settings, backend_arguments, checkpoint_arguments))
    job = GenerationJob(source, seed, *arguments)
    echo_warnings(job.resolved.warnings)
    real = _open_real_images(data, split, real_count, background, validation_share, job)
    networks = open_networks(features, classifier, real.train)
    with holding_folder(out):
        with Progress(count, "generating", unit="images") as progress:
            generate_images(job, count, out, processes, threads, progress.update, progress.skip)
        metrics, doubts = compare_job(networks, job, real, count, out)
    print_warnings([*doubts, *real.train.warnings, *real.compared.warnings])
    click.echo(comparison_table(metrics))
    about = {"data": str(data), "split": split, "count": count, "min_accuracy": min_accuracy, "features": metrics}
    document = json_document("evaluate", {**_describe(job), **about})
    if report_file is not None:
        write_result_json(report_file, document)
    print_document(document)
    _check_accuracy(metrics, min_accuracy)


def _check_options(
    features: Sequence[str], min_accuracy: float | None, report_file: pathlib.Path | None, count: int
) -> None:
    if min_accuracy is not None and CLASSIFIER not in features:
        raise RequestError("--min-accuracy is measured by the classifier; add --features classifier")
    if count < 2:
        raise RequestError(f"--count must be at least 2, found {count}")
    if report_file is not None:
        check_result_file(report_file)


def _check_accuracy(metrics: Mapping[str, Any], least: float | None) -> None:
    if least is not None and (accuracy := metrics[CLASSIFIER][GENERATED]["top1_accuracy"]) < least:
        raise MarError(f"the top-1 accuracy is {accuracy:.1%}, and --min-accuracy requires {least:.1%}")


def _held_out_share(source: pathlib.Path, validation_share: float | None) -> float:
    """Return the share of the images that training held out: the given one, or that of a run.

    Raises:
        RequestError: The run held out another share than the given one.
    """
    saved = setting_of_run(source, "validation_share")
    if validation_share is None:
        return saved if isinstance(saved, float) else 0.0
    if isinstance(saved, float) and saved != validation_share:
        raise RequestError(f"{source} held out a share of {saved}, found --validation-share {validation_share}")
    return validation_share


def _open_real_images(
    data: pathlib.Path,
    split: str,
    real_count: int | None,
    background: Color,
    validation_share: float | None,
    job: GenerationJob,
) -> RealImages:
    """Open the dataset of a job's model, as its run did, and say what is to be said of it."""
    real = open_real_images(
        data,
        job.source,
        job.resolved.config,
        job.resolved.class_names,
        split=split,
        count=real_count,
        background=background_of_run(job.source, background),
        validation_share=_held_out_share(job.source, validation_share),
    )
    print_lines(dict.fromkeys([*real.train.notes, *real.compared.notes]))
    return real


def _describe(job: GenerationJob) -> dict[str, Any]:
    """Return what decides the generated images, for the JSON document."""
    sampling = dataclasses.asdict(job.resolved.sampling)
    return {"source": str(job.source), "seed": job.seed, "sampling": sampling}
