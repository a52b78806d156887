"""The command `mar build`."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import click

from mar_export.tensorrt.artifact_builds import BuildOptions, build_engines, plans_to_build
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
@click.option("--target", type=click.Choice(list(TARGETS)), required=True, help="The library to build engines for.")
@click.option(
    "--architecture",
    "architectures",
    multiple=True,
    help="A GPU that tensorrt-rtx builds for, such as sm_89. Repeat it for more. Default: the GPU of this machine.",
)
@click.option(
    "--batch",
    default="1:1:8",
    show_default=True,
    metavar="MIN:OPT:MAX",
    help="How many images are generated together: the minimum, the number to optimize for, and the maximum.",
)
@preset_option
@sampling_options
@click.option(
    "--hardware-compatible",
    type=click.Choice(list(HARDWARE)),
    help="Build engines that run on other GPUs too, but slower.",
)
@click.option("--version-compatible", is_flag=True, help="Build engines that newer versions of TensorRT can load.")
@click.option("--refit", is_flag=True, help="Build engines whose weights can be replaced later.")
@click.option("--strip-weights", is_flag=True, help="Build engines without weights, which are loaded from the graph.")
@click.option("--tf32", is_flag=True, help="Round float32 products to TF32, which is faster but changes the images.")
@click.option(
    "--workspace", type=click.IntRange(1, 2**20), help="The memory in MiB that a layer may use for temporary data."
)
@click.option(
    "--builder-level",
    type=click.IntRange(0, 5),
    help="The optimization level of the builder. A higher level searches longer for fast kernels.",
)
@click.option(
    "--timing-cache",
    type=PATH,
    help="A file that keeps the kernel timings of builds for later builds. tensorrt-rtx has none.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Build engines again that are built already, and replace those that were built with other settings.",
)
def build(
    artifact: pathlib.Path,
    target: str,
    architectures: tuple[str, ...],
    batch: str,
    timing_cache: pathlib.Path | None,
    force: bool,
    **options: Any,
) -> None:
    """Build TensorRT engines for an NVIDIA GPU from the graphs of ARTIFACT.

    The engines run the plan of the sampling options and of --preset. Without these options, they run the artifact's own
    plan and those of all presets. The precision is that of the artifact.
    """
    opened = Artifact(artifact)
    flags = BuilderFlags(**{name: options.pop(name) for name in _FLAGS})
    plans = plans_to_build(opened, options)
    build_engines(
        opened,
        TensorRTBuilder(target, architectures),
        plans,
        BuildOptions(_range(batch), flags, timing_cache, force),
        click.echo,
    )


def _range(text: str) -> Range:
    try:
        minimum, optimum, maximum = (int(part) for part in text.split(":"))
    except ValueError:
        raise RequestError(f"--batch must be MIN:OPT:MAX, such as 1:1:8, found {truncate(text)}") from None
    if not 1 <= minimum <= optimum <= maximum <= MAX_BATCH:
        raise RequestError(f"--batch must be 1 <= MIN <= OPT <= MAX <= {MAX_BATCH}, found {truncate(text)}")
    return minimum, optimum, maximum
