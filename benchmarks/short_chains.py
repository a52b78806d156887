"""How far short diffusion chains of one grid move an image from that of a very long chain.

    python -m benchmarks.short_chains ARTIFACT --report short-chains.json --chart short-chains.png

The latents of every image are compared with those of the same image by `dpm++2m` with 400 steps. Every image has one
iteration, so one chain for all tokens, and every chain starts with the same noise at the same timestep. So the error
of its steps alone is measured. All other settings are those of the preset. Of a Hi-MAR this is the chain of the full
grid, and the low-resolution grid stays as it is.
"""

from __future__ import annotations

import pathlib
import statistics
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import click
import numpy as np
from numpy.typing import NDArray

from runtime.cli.options import PATH, threads_option
from runtime.distance import relative_l2
from runtime.errors import MarError
from runtime.generator import Generator
from runtime.image_grid import check_image_file, save_grid
from runtime.provenance import commit, processor_name
from runtime.result import Result
from runtime.storage.files import check_writable, write_json


class Chain(NamedTuple):
    """A sampler and its number of steps."""

    sampler: str
    steps: int

    def __str__(self) -> str:
        return f"{self.sampler}, {self.steps}"


START = 980
"""The first timestep of every chain. The samplers' own starts differ, and with them their limits."""

REFERENCE = Chain("dpm++2m", 400)
CHAINS = (
    *(Chain("ddim", steps) for steps in (250, 100, 50, 25, 16, 8)),
    *(Chain("dpm++2m", steps) for steps in (100, 50, 25, 16, 12, 8, 6)),
    Chain("ddpm", 250),
)
_SHOWN = (REFERENCE, Chain("ddpm", 250), Chain("ddim", 25), Chain("dpm++2m", 12), Chain("dpm++2m", 8))


@click.command()
@click.argument("artifact", type=PATH)
@click.option("--preset", default="fast", show_default=True, help="All other settings.")
@click.option("--images", type=click.IntRange(2), default=20, show_default=True, help="Images for each chain.")
@click.option("--report", "report_file", type=PATH, required=True, help="The JSON file to write.")
@click.option("--chart", type=PATH, required=True, help="The PNG file to write: some images by five of the chains.")
@threads_option
def short_chains(
    artifact: pathlib.Path,
    preset: str,
    images: int,
    report_file: pathlib.Path,
    chart: pathlib.Path,
    threads: int | None,
) -> None:
    """Compare short chains with a long one."""
    check_writable(report_file)
    check_image_file(chart)
    with Generator.load(artifact, threads=threads) as generator:
        generator.manifest.check_decoder(str(artifact))
        classes = [number % generator.manifest.model.class_num for number in range(images)]

        def draw(chain: Chain, seed: int = 0) -> Result:
            return generator.generate(
                classes,
                seed=seed,
                preset=preset,
                iterations=1,
                cfg_scale=1.0,
                start_timestep=START,
                sampler=chain.sampler,
                diffusion_steps=chain.steps,
            )

        drawn = {chain: draw(chain) for chain in (REFERENCE, *CHAINS)}
        reference = drawn[REFERENCE].latents
        rows = [{**chain._asdict(), **distances(drawn[chain].latents, reference)} for chain in CHAINS]
        others = distances(draw(REFERENCE, seed=1).latents, reference)
    report: dict[str, Any] = {"preset": preset, "images": images, "start": START, "reference": REFERENCE._asdict()}
    about = {"processor": processor_name(), "commit": commit()}
    write_json(report_file, {**about, **report, "rows": rows, "another_seed": others})
    save_chart(chart, drawn)
    for row in rows:
        click.echo(row)


def distances(found: NDArray[np.float32], reference: NDArray[np.float32]) -> dict[str, float]:
    """Return the median and the largest relative L2 distance of the latents [B, ...] of an image from the reference."""
    relative = [relative_l2(image, expected) for image, expected in zip(found, reference, strict=True)]
    return {"median": statistics.median(relative), "largest": max(relative)}


def short_chains_table(value: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    reference, other = Chain(**value["reference"]), value["another_seed"]
    lines = [
        f"{value['processor']}, commit {value['commit']}. {value['images']} images in one iteration without guidance, "
        f"chains from t = {value['start']}: the relative L2 distance of their latents from those by {reference} steps.",
        "",
        "| sampler | steps | median | largest |",
        "|---|---|---|---|",
    ]
    for row in value["rows"]:
        lines.append(f"| {row['sampler']} | {row['steps']} | {row['median']:.3f} | {row['largest']:.3f} |")
    lines += ["", f"Images of another seed are {other['median']:.2f} away (largest {other['largest']:.2f})."]
    return "\n".join(lines)


def save_chart(path: pathlib.Path, drawn: dict[Chain, Result]) -> None:
    """Write the first ten images by each of five chains, one row a chain."""
    shown = [(chain, image) for chain in _SHOWN for image in _pixels(drawn[chain])[:10]]
    captions = [str(chain) if place % 10 == 0 else "" for place, (chain, _) in enumerate(shown)]
    save_grid(path, np.stack([image for _, image in shown]), captions, columns=10)


def _pixels(result: Result) -> NDArray[np.uint8]:
    assert result.images is not None  # `short_chains` has checked that there is a decoder
    return result.images


if __name__ == "__main__":
    try:
        short_chains()
    except MarError as error:
        sys.exit(f"short_chains: {error}")
