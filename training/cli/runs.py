"""The command `mar runs`."""

from __future__ import annotations

import pathlib

import click

from runtime.cli.json_document import PrintDocument, json_document, json_option
from runtime.cli.options import PATH
from runtime.cli.result_files import OUTPUT, check_result_file, force_option, result_file
from runtime.text_table import aligned
from training.reporting.run_comparison import difference_table, different_settings, find_runs, summarize, summary_table


@click.command()
@click.argument("paths", type=PATH, nargs=-1, required=True)
@click.option("--chart", type=OUTPUT, help="Write a chart of the losses of all runs to this PNG file.")
@force_option("Replace a chart that something else made.")
@json_option
def runs(paths: tuple[pathlib.Path, ...], chart: pathlib.Path | None, print_document: PrintDocument) -> None:
    """Compare training runs, and the settings in which they differ.

    PATHS are run folders, or folders that contain run folders. Loss and gradient norm are means over the last hundred
    steps, images per second is a median over them.
    """
    if chart is not None:
        from training.reporting.loss_curve import save_comparison  # needs matplotlib, which no other part does

        check_result_file(chart)
    summaries = [summarize(run) for run in find_runs(paths)]
    click.echo("\n".join(aligned(summary_table(summaries), right=range(1, 8))))
    differences = difference_table(summaries)
    if len(differences) > 1:
        click.echo()
        click.echo("\n".join(aligned(differences, right=())))
    if chart is not None:
        with result_file(chart) as temporary:
            save_comparison({summary.name: summary.steps for summary in summaries}, temporary)
    content = {
        "runs": [summary.to_dict() for summary in summaries],
        "different_settings": different_settings(summaries),
    }
    print_document(json_document("runs", content))
