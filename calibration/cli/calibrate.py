"""The command `mar calibrate`."""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Sequence

import click

from calibration.quantization.collect import collect
from calibration.quantization.quantize import Quantization, check_apart, check_float32, quantize
from calibration.quantization.sensitivity import Sensitivity
from calibration.quantization.statistics import Statistics
from runtime.artifact.artifact_folder import Artifact
from runtime.backends import available_threads
from runtime.checks import check_int, check_number
from runtime.cli.options import PATH, preset_option, progress_bar, sampling_options, threads_option
from runtime.errors import RequestError
from runtime.files import check_writable, write_json
from runtime.model.engine_spec import ENGINES
from runtime.sampling.constraints import check_masked_diffusion
from runtime.sampling.settings import Sampling

_MAX_SAMPLES = 100_000
_MAX_JUDGED = 1000
_MOST_DECIBELS = 200
_TOLD = 10  # of the most sensitive layers
_WEIGHTS = {"int8": "w8", "int4": "w4"}


@click.command()
@click.argument("artifact", type=PATH)
@click.option("--out", type=PATH, help="The quantized artifact.")
@click.option("--precision", type=click.Choice(["int8", "fp8", "int4"]), default="int8", show_default=True)
@click.option("--weights-only", is_flag=True, help="Leave activations as they are; int8 or int4, in blocks.")
@click.option("--engines", default=",".join(ENGINES), show_default=True, help="Which to quantize.")
@click.option("--count", type=int, default=128, show_default=True, help="Images that statistics are of.")
@click.option("--statistics", type=PATH, help="A file to keep statistics in, and to go on with. Default: beside --out.")
@click.option("--report", type=PATH, help="Draw the ranges of activations, as PNG.")
@click.option("--target-sqnr", type=float, default=15.0, show_default=True, help="What the latents must keep, in dB.")
@click.option("--keep-fp", metavar="PERCENT", help="Share of the layers that stays in float32, such as 5%.")
@click.option("--sensitivity", type=PATH, help="Rank the layers, each quantized alone; where to write it, as JSON.")
@click.option("--eval-count", type=int, default=8, show_default=True, help="Images that a form is judged by.")
@preset_option
@sampling_options
@threads_option
def calibrate(
    artifact: pathlib.Path,
    out: pathlib.Path | None,
    precision: str,
    weights_only: bool,
    engines: str,
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
    """Quantize the engines of ARTIFACT by what passes through them while images are drawn.

    The plan of the sampling options is the one that statistics are of, so give those it will be used with. The
    layers that lose most stay in float32 until the latents keep what --target-sqnr asks for.
    """
    check_int("--count", count, 1, _MAX_SAMPLES)
    check_int("--eval-count", eval_count, 1, _MAX_JUDGED)
    check_number("--target-sqnr", target_sqnr, 0, _MOST_DECIBELS)
    if out is None and report is None:
        raise RequestError("give --out, the quantized artifact to make, or --report, or both")
    if weights_only and (precision not in _WEIGHTS or report is not None):
        raise RequestError("--weights-only is for --precision int8 or int4, and has no activations to --report of")
    if not weights_only and precision == "int4":
        raise RequestError("int4 is for weights alone; add --weights-only")
    asked = Quantization(
        precision=_WEIGHTS[precision] if weights_only else precision,
        engines=_engines(engines),
        sampling={name: value for name, value in settings.items() if value is not None},
        target_sqnr=target_sqnr,
        keep_share=_share(keep_fp),
        rank=sensitivity is not None,
        images=eval_count,
        threads=threads or available_threads(),
    )
    for file in (report, sensitivity):
        if file is not None:
            check_writable(file)
    opened = Artifact(artifact)
    if out is not None:
        check_apart(opened, out)
    opened.verify()
    check_float32(opened)
    check_masked_diffusion(opened.manifest.model, "mar calibrate")
    sampling = opened.manifest.resolve_sampling(settings)
    found = None if weights_only else _collected(opened, out, statistics, count, sampling, asked.threads)
    if report is not None and found is not None:
        from calibration.quantization.range_chart import save_report

        save_report(found, report)
        click.echo(f"ranges of activations drawn to {report}")
    if out is not None:
        _quantize(opened, found, out, asked, sensitivity)


def _collected(
    artifact: Artifact,
    out: pathlib.Path | None,
    file: pathlib.Path | None,
    samples: int,
    sampling: Sampling,
    threads: int,
) -> Statistics:
    with tempfile.TemporaryDirectory() as folder:
        if file is None:
            file = out.with_name(f"{out.name}.statistics.npz") if out else pathlib.Path(folder) / "statistics.npz"
        check_writable(file)
        with progress_bar(samples, "collecting") as bar:
            found = collect(artifact, samples, file, sampling, threads, bar.update)
    click.echo(f"statistics of {found.images} images" + (f" in {file}" if file.exists() else ""))
    return found


def _quantize(
    artifact: Artifact,
    statistics: Statistics | None,
    out: pathlib.Path,
    asked: Quantization,
    sensitivity: pathlib.Path | None,
) -> None:
    with progress_bar(1000, "ranking layers") as bar:

        def advance(done: int, of: int) -> None:
            bar.update(1000 * done // of - 1000 * (done - 1) // of)

        made = quantize(artifact, statistics, out, asked, click.echo, advance)
    _tell(made.ranking)
    if sensitivity is not None:
        write_json(sensitivity, {"precision": asked.precision, "layers": [each.to_dict() for each in made.ranking]})
        click.echo(f"every layer in {sensitivity}")
    before, after = (sum(entry.bytes for entry in Artifact(at).manifest.files.values()) for at in (artifact.path, out))
    click.echo(f"artifact written to {out}: {after / 2**20:.1f} MiB, {after / before:.0%} of float32's")


def _tell(ranking: Sequence[Sensitivity]) -> None:
    if ranking:
        wide = max(len(each.layer) for each in ranking[:_TOLD])
        click.echo(f"{'most sensitive alone':{wide}}  {'dB':>6}")
    for each in ranking[:_TOLD]:
        click.echo(f"{each.layer:{wide}}  {each.to_dict()['sqnr_db']:6.1f}")


def _engines(text: str) -> list[str]:
    chosen = text.split(",")
    unknown = sorted(set(chosen) - set(ENGINES))
    if unknown:
        raise RequestError(f"--engines: unknown {', '.join(unknown)}; choose of {', '.join(ENGINES)}")
    return list(dict.fromkeys(chosen))


def _share(text: str | None) -> float:
    """5% as 0.05."""
    if text is None:
        return 0.0
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise RequestError(f"--keep-fp must be a share of the layers such as 5%, from 0% to below 100%, found {text}")
    return share
