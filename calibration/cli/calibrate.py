"""The command `mar calibrate`."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Collection, Iterator, Sequence

import click

from calibration.quantization.collect import collect
from calibration.quantization.quantize import (
    QuantizationConfig,
    check_float32,
    check_output,
    is_quantized,
    quantize,
)
from calibration.quantization.sensitivity import LayerSensitivity
from calibration.quantization.statistics import ActivationStatistics
from runtime.artifact.artifact_folder import Artifact
from runtime.backends import available_threads
from runtime.checks import check_int, check_number, pluralize
from runtime.cli.options import PATH, preset_option, sampling_options, threads_option
from runtime.cli.result_files import (
    OUTPUT,
    check_result_file,
    force_option,
    is_forced,
    result_file,
    write_result_json,
)
from runtime.errors import RequestError
from runtime.model.families import check_supported, engine_specs
from runtime.progress import Progress
from runtime.storage.files import check_writable, holding, scratch_folder

_MAX_COUNT = 100_000
_MAX_EVAL_COUNT = 1000
_MAX_SQNR = 200
_LAYERS_SHOWN = 10
_WEIGHT_ONLY = {"int8": "w8", "int4": "w4"}  # the names of weight-only precisions in a manifest


@click.command()
@click.argument("artifact", type=PATH)
@click.option("--out", type=OUTPUT, help="Write the quantized artifact to this folder.")
@click.option(
    "--precision",
    type=click.Choice(["int8", "fp8", "int4"]),
    default="int8",
    show_default=True,
    help="The precision of quantized layers; int4 needs --weights-only.",
)
@click.option("--weights-only", is_flag=True, help="Quantize weights in blocks and leave activations in float32.")
@click.option("--engines", help="The engines to quantize, with commas between them. Default: all of the sampling loop.")
@click.option("--count", type=int, default=128, show_default=True, help="Number of images to collect statistics from.")
@click.option("--statistics", type=PATH, help="Keep statistics in this file and resume from it. Default: beside --out.")
@click.option("--report", type=OUTPUT, help="Write a chart of the activation ranges to this PNG file.")
@click.option("--target-sqnr", type=float, default=15.0, show_default=True, help="The least SQNR of latents, in dB.")
@click.option("--keep-fp", metavar="PERCENT", help="Share of the layers that stays in float32, such as 5%.")
@click.option("--sensitivity", type=OUTPUT, help="Quantize each layer alone and write the ranking to this JSON file.")
@click.option("--eval-count", type=int, default=8, show_default=True, help="Number of images to measure the SQNR on.")
@preset_option
@sampling_options
@threads_option
@force_option("Quantize again, and replace another artifact at --out and files that something else made.")
def calibrate(
    artifact: pathlib.Path,
    out: pathlib.Path | None,
    precision: str,
    weights_only: bool,
    engines: str | None,
    count: int,
    statistics: pathlib.Path | None,
    report: pathlib.Path | None,
    target_sqnr: float,
    keep_fp: str | None,
    sensitivity: pathlib.Path | None,
    eval_count: int,
    threads: int | None,
    **settings: object,
) -> None:
    """Quantize the engines of ARTIFACT, with scales from the activations of real images.

    Statistics hold for one plan, so give the sampling options that the quantized artifact will be used with. The most
    sensitive layers stay in float32 until the latents reach --target-sqnr.
    """
    check_int("--count", count, 1, _MAX_COUNT)
    check_int("--eval-count", eval_count, 1, _MAX_EVAL_COUNT)
    check_number("--target-sqnr", target_sqnr, 0, _MAX_SQNR)
    _check_files(out, report, sensitivity)
    precision = _precision(precision, weights_only, report)
    keep_share, source = _share(keep_fp), _open(artifact, out)
    config = QuantizationConfig(
        precision=precision,
        engines=_engines(engines, engine_specs(source.manifest.model)),
        sampling=source.manifest.resolve_sampling(settings),
        target_sqnr=target_sqnr,
        keep_share=keep_share,
        rank=sensitivity is not None,
        eval_images=eval_count,
        images=0 if weights_only else count,
        threads=threads or available_threads(),
    )
    statistics = statistics or (None if out is None else out.with_name(f"{out.name}.statistics.npz"))
    with _holding(out, statistics):
        finished = out is not None and is_quantized(source, config, out, is_forced())
        if finished:
            click.echo(f"{out} holds this artifact already; --force quantizes again")
            if report is None and sensitivity is None:
                return
        collected = None if weights_only else _collect(source, statistics, config)
        if report is not None and collected is not None:
            _save_chart(collected, report)
        if out is not None and (not finished or sensitivity is not None):
            _quantize(source, collected, out, config, sensitivity)


@contextlib.contextmanager
def _holding(*targets: pathlib.Path | None) -> Iterator[None]:
    """Hold those of the targets that are given."""
    with contextlib.ExitStack() as held:
        for target in targets:
            if target is not None:
                held.enter_context(holding(target))
        yield


def _save_chart(statistics: ActivationStatistics, file: pathlib.Path) -> None:
    from calibration.quantization.range_chart import save_range_chart

    with result_file(file) as temporary:
        save_range_chart(statistics, temporary)
    click.echo(f"chart of activation ranges written to {file}")


def _check_files(out: pathlib.Path | None, report: pathlib.Path | None, sensitivity: pathlib.Path | None) -> None:
    if out is None and report is None:
        raise RequestError("give --out, the quantized artifact to write, or --report, or both")
    for file in (report, sensitivity):
        if file is not None:
            check_result_file(file)


def _precision(precision: str, weights_only: bool, report: pathlib.Path | None) -> str:
    """The precision's name in a manifest."""
    if not weights_only:
        if precision == "int4":
            raise RequestError("--precision int4 quantizes weights only; add --weights-only")
        return precision
    if precision not in _WEIGHT_ONLY:
        raise RequestError(f"--weights-only needs --precision int8 or int4, found {precision}")
    if report is not None:
        raise RequestError("--weights-only collects no statistics of activations; remove --report")
    return _WEIGHT_ONLY[precision]


def _open(path: pathlib.Path, out: pathlib.Path | None) -> Artifact:
    artifact = Artifact(path)
    if out is not None:
        check_output(artifact, out)
    artifact.verify()
    check_float32(artifact)
    check_supported(artifact.manifest.model, "mar calibrate")
    return artifact


def _collect(artifact: Artifact, file: pathlib.Path | None, config: QuantizationConfig) -> ActivationStatistics:
    with contextlib.ExitStack() as stack:
        if file is None:
            file = stack.enter_context(scratch_folder()) / "statistics.npz"
        check_writable(file)
        with Progress(config.images, "collecting statistics", unit="images") as progress:
            statistics = collect(
                artifact, config.images, file, config.sampling, config.threads, progress.update, progress.skip
            )
    images = pluralize(statistics.images, "image")
    click.echo(f"statistics of {images}" + (f" in {file}" if file.exists() else ""))
    return statistics


def _quantize(
    artifact: Artifact,
    statistics: ActivationStatistics | None,
    out: pathlib.Path,
    config: QuantizationConfig,
    sensitivity: pathlib.Path | None,
) -> None:
    result = quantize(artifact, statistics, out, config, click.echo)
    _print_ranking(result.ranking)
    if sensitivity is not None:
        layers = [layer.to_dict() for layer in result.ranking]
        write_result_json(sensitivity, {"precision": config.precision, "layers": layers})
        click.echo(f"sensitivity of every layer written to {sensitivity}")
    before, after = (sum(entry.bytes for entry in Artifact(at).manifest.files.values()) for at in (artifact.path, out))
    click.echo(f"artifact written to {out}: {after / 2**20:.1f} MiB, {after / before:.0%} of the float32 artifact")


def _print_ranking(ranking: Sequence[LayerSensitivity]) -> None:
    if ranking:
        width = max(len(layer.layer) for layer in ranking[:_LAYERS_SHOWN])
        click.echo(f"{'most sensitive layers':{width}}  {'SQNR dB':>7}")
        for layer in ranking[:_LAYERS_SHOWN]:
            click.echo(f"{layer.layer:{width}}  {layer.to_dict()['sqnr_db']:7.1f}")


def _engines(text: str | None, known: Collection[str]) -> list[str]:
    """Return the engines that an option names, of those that the model has."""
    names = [*known] if text is None else text.split(",")
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise RequestError(f"--engines: unknown {', '.join(unknown)}; choose from {', '.join(known)}")
    return list(dict.fromkeys(names))


def _share(text: str | None) -> float:
    """A percentage such as "5%" as a share, 0.05."""
    if text is None:
        return 0.0
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise RequestError(f"--keep-fp must be a share of the layers from 0% to below 100%, such as 5%, found {text}")
    return share
