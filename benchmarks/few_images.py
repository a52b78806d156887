"""Short training runs on few images: their losses, and their last sample images on one sheet.

    python -m benchmarks.few_images RUN... --report few-images.json --chart few-images.png

Each RUN is the folder of a finished run of `mar train`.
"""

from __future__ import annotations

import pathlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import click
from PIL import Image, ImageDraw, ImageFont

from runtime.cli.options import PATH
from runtime.errors import MarError, RequestError
from runtime.storage.files import replacing, write_json
from training.checkpoints.run_folder import read_run_config
from training.reporting.environment import read_sessions
from training.reporting.run_log import LOG_FILE, logged_steps

_LAST_STEPS = 50  # over which the loss is a mean: its masks and noise are random
_SETTINGS = ("steps", "batch_size", "learning_rate", "warmup_steps", "ema_rate", "flip", "seed", "precision")
_MARGIN, _TITLE = 8, 18  # pixels


@click.command()
@click.argument("runs", type=PATH, nargs=-1, required=True)
@click.option("--report", "report_file", type=PATH, required=True, help="The JSON file to write.")
@click.option("--chart", type=PATH, required=True, help="The PNG file to write.")
@click.option("--commit", help="The commit of the code, where the runs do not know it.")
def few_images(
    runs: tuple[pathlib.Path, ...], report_file: pathlib.Path, chart: pathlib.Path, commit: str | None
) -> None:
    """Summarize RUNS as JSON, and show their last sample images."""
    rows = [_row(run) for run in runs]
    sessions = [read_sessions(run)[-1] for run in runs]
    about = {key: sessions[0][key] for key in ("device", "python", "packages")}
    write_json(report_file, {"commit": commit or sessions[0]["commit"], **about, "runs": rows})
    titles = [
        f"{row['data']}: rate {row['learning_rate']:g}, {row['steps']} steps, loss {row['loss']:.3f}" for row in rows
    ]
    with replacing(chart) as temporary:
        _sheet([_last_samples(run) for run in runs], titles).save(temporary, format="PNG")


def _row(run: pathlib.Path) -> dict[str, Any]:
    """Return what a run was trained on, its settings, and its mean loss in the middle and at the end."""
    config = read_run_config(run)
    losses = [entry.loss for entry in logged_steps(run / LOG_FILE) if entry.loss is not None]
    half = len(losses) // 2
    return {
        "name": run.name,
        "data": pathlib.Path(config["data"]).name,
        "image_size": config["model"]["img_size"],
        **{name: config["training"][name] for name in _SETTINGS},
        "loss_at_half": statistics.fmean(losses[max(0, half - _LAST_STEPS) : half]),
        "loss": statistics.fmean(losses[-_LAST_STEPS:]),
    }


def _last_samples(run: pathlib.Path) -> Image.Image:
    samples = sorted((run / "samples").glob("step-*.png"))
    if not samples:
        raise RequestError(f"{run}: no sample images; train the run to its end")
    with Image.open(samples[-1]) as image:
        return image.convert("RGB")


def _sheet(images: Sequence[Image.Image], titles: Sequence[str]) -> Image.Image:
    """Return images below each other, each under its title."""
    width = max(image.width for image in images) + 2 * _MARGIN
    height = sum(image.height + _TITLE + _MARGIN for image in images) + _MARGIN
    sheet = Image.new("RGB", (width, height), "white")
    draw, font, top = ImageDraw.Draw(sheet), ImageFont.load_default(size=13), _MARGIN
    for image, title in zip(images, titles, strict=True):
        draw.text((_MARGIN, top), title, fill="black", font=font)
        sheet.paste(image, (_MARGIN, top + _TITLE))
        top += image.height + _TITLE + _MARGIN
    return sheet


if __name__ == "__main__":
    try:
        few_images(standalone_mode=False)
    except (MarError, click.UsageError) as error:
        sys.exit(f"few_images: {error}")
