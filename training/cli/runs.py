"""`mar runs`."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import click

from runtime.cli.options import PATH
from runtime.files import check_writable
from training.reporting.loss_curve import save_comparison
from training.reporting.run_comparison import difference_table, find_runs, summarize, summary_table


@click.command()
@click.argument("paths", type=PATH, nargs=-1, required=True)
@click.option("--chart", type=PATH, help="Where to draw the losses of all runs, as PNG.")
def runs(paths: tuple[pathlib.Path, ...], chart: pathlib.Path | None) -> None:
    """Compare the runs at PATHS: runs of mar train, or folders of such runs.

    Loss and gradient are means, images a second a median, over the last hundred steps.
    """
    if chart is not None:
        check_writable(chart)
    summaries = [summarize(run) for run in find_runs(paths)]
    _print(summary_table(summaries), to_the_right=range(1, 8))
    differences = difference_table(summaries)
    if len(differences) > 1:
        click.echo()
        _print(differences, to_the_right=range(0))
    if chart is not None:
        save_comparison({summary.name: summary.steps for summary in summaries}, chart)


def _print(rows: Sequence[Sequence[str]], to_the_right: range) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(width) if number in to_the_right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip())
