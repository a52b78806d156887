"""`mar build`."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from typing import Any

import click

from mar_export.tensorrt.artifact_builds import build_engines, wanted_plans
from mar_export.tensorrt.engine_builder import HARDWARE, BuilderFlags, TensorRTBuilder
from mar_export.tensorrt.optimization_profiles import Range
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.engine_builds import TARGETS
from runtime.checks import truncate
from runtime.cli.options import PATH, preset_option, sampling_options
from runtime.errors import RequestError
from runtime.requests.validation import MAX_BATCH

_FLAGS = tuple(field.name for field in dataclasses.fields(BuilderFlags))


@click.command()
@click.argument("artifact", type=PATH)
@click.option("--target", type=click.Choice(list(TARGETS)), required=True, help="The library to build with.")
@click.option(
    "--architecture", "architectures", multiple=True, help="A GPU for tensorrt-rtx, as sm_89; again for more."
)
@click.option("--batch", default="1:1:8", show_default=True, metavar="LEAST:USUAL:MOST", help="Images together.")
@preset_option
@sampling_options
@click.option("--hardware-compatible", type=click.Choice(list(HARDWARE)), help="For other GPUs too; slower.")
@click.option("--version-compatible", is_flag=True, help="For newer TensorRT too.")
@click.option("--refit", is_flag=True, help="Weights can be replaced later.")
@click.option("--strip-weights", is_flag=True, help="Leave the weights out; they come from the graph on loading.")
@click.option("--tf32", is_flag=True, help="Let float32 products round to TF32: faster, but other images.")
@click.option("--workspace", type=click.IntRange(1, 2**20), help="MiB that a layer may use beside its tensors.")
@click.option("--builder-level", type=click.IntRange(0, 5), help="How hard to search for fast kernels.")
@click.option("--timing-cache", type=PATH, help="A file to keep what building measures in; not for tensorrt-rtx.")
@click.option("--force", is_flag=True, help="Build what is built already, too.")
def build(
    artifact: pathlib.Path,
    target: str,
    architectures: tuple[str, ...],
    batch: str,
    timing_cache: pathlib.Path | None,
    force: bool,
    **options: Any,
) -> None:
    """Turn the graphs of ARTIFACT into engines for an NVIDIA GPU.

    They serve the plan of the sampling options and --preset; where none is given, the artifact's own and
    those of all presets. Precision is the artifact's.
    """
    opened = Artifact(artifact)
    flags = BuilderFlags(**{name: options.pop(name) for name in _FLAGS})
    plans = wanted_plans(opened, options)
    build_engines(
        opened,
        TensorRTBuilder(target, architectures),
        plans,
        _range(batch),
        flags,
        timing_cache,
        force,
        click.echo,
        _show if sys.stderr.isatty() else None,
    )


def _range(text: str) -> Range:
    try:
        least, usual, most = (int(part) for part in text.split(":"))
    except ValueError:
        raise RequestError(f"--batch must be LEAST:USUAL:MOST, such as 1:1:8, found {truncate(text)}") from None
    if not 1 <= least <= usual <= most <= MAX_BATCH:
        raise RequestError(f"--batch must grow from 1 to at most {MAX_BATCH}, found {truncate(text)}")
    return least, usual, most


def _show(phase: str, done: int, of: int) -> None:
    """The phase TensorRT is in, on one line that is written over."""
    click.echo(f"\r{phase[:60]:60} {done}/{of}\033[K", nl=False, err=True)
