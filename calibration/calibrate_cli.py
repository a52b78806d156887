"""`mar calibrate`."""

from __future__ import annotations

import pathlib
from typing import Any

import click

from calibration.collect import collect
from calibration.quantize import quantize
from runtime.artifact import QUANTIZED_PRECISIONS, Artifact
from runtime.backends import available_threads
from runtime.checks import check_whole
from runtime.errors import RequestError
from runtime.files import check_writable
from runtime.options import PATH, preset_option, progress_bar, sampling_options, threads_option
from runtime.spec import ENGINES

_MAX_SAMPLES = 100_000


class _Calibrate(click.Command):
    """With --steps it is another command, which has options of its own."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if "--steps" in args:
            from calibration.steps_cli import calibrate_steps

            return calibrate_steps.make_context(f"{info_name} --steps", args, parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


@click.command(cls=_Calibrate)
@click.argument("artifact", type=PATH)
@click.option("--out", type=PATH, required=True, help="The quantized artifact.")
@click.option("--precision", type=click.Choice(QUANTIZED_PRECISIONS), default="int8", show_default=True)
@click.option("--engines", default=",".join(ENGINES), show_default=True, help="Which to quantize.")
@click.option("--samples", type=int, default=128, show_default=True, help="Pictures that statistics are of.")
@click.option("--statistics", type=PATH, help="A file to keep statistics in, and to go on with. Default: beside --out.")
@click.option("--target-sqnr", type=float, default=15.0, show_default=True, help="What the latents must keep, in dB.")
@click.option("--steps", is_flag=True, expose_value=False, help="Find diffusion steps instead: --steps --help.")
@preset_option
@sampling_options
@threads_option
def calibrate(
    artifact: pathlib.Path,
    out: pathlib.Path,
    precision: str,
    engines: str,
    samples: int,
    statistics: pathlib.Path | None,
    target_sqnr: float,
    threads: int | None,
    **settings: object,
) -> None:
    """Quantize the engines of ARTIFACT by what passes through them while pictures are drawn.

    The plan of the sampling options is the one that statistics are of, so give those it will be used with.
    """
    check_whole("samples", samples, 1, _MAX_SAMPLES)
    chosen = engines.split(",")
    unknown = sorted(set(chosen) - set(ENGINES))
    if unknown:
        raise RequestError(f"--engines: unknown {', '.join(unknown)}; choose of {', '.join(ENGINES)}")
    file = statistics or out.with_name(f"{out.name}.statistics.npz")
    check_writable(file)
    opened = Artifact(artifact)
    opened.verify()
    manifest = opened.manifest
    sampling = manifest.requested(settings)
    with progress_bar(samples, "collecting") as bar:
        found = collect(opened, samples, file, sampling, threads or available_threads(), bar.update)
    click.echo(f"statistics of {found.pictures} pictures in {file}")
    quantize(opened, found, out, precision, chosen, target_sqnr, threads or available_threads(), click.echo)
    before, after = (sum(entry.bytes for entry in Artifact(path).manifest.files.values()) for path in (artifact, out))
    click.echo(f"artifact written to {out}: {after / 2**20:.1f} MiB, {after / before:.0%} of float32's")
