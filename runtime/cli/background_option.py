"""The option `--background` of the commands that read images."""

from __future__ import annotations

import click

from runtime.image_files import BACKGROUND, Color, parse_color


def _parse(context: click.Context, option: click.Parameter, text: str) -> Color:
    return parse_color("--background", text)


background_option = click.option(
    "--background",
    metavar="COLOR",
    default=BACKGROUND,
    show_default=True,
    callback=_parse,
    help="The colour under transparent pixels: a name, or #rrggbb.",
)
