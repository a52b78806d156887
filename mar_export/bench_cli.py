"""`mar bench`."""

from __future__ import annotations

import pathlib

import click

from mar_export.bench import eager_contestant, measure, report, runtime_contestant, table
from runtime.backends import available_threads
from runtime.errors import RequestError
from runtime.files import check_writable, write_json
from runtime.generator import Generator
from runtime.options import PATH, progress_bar, sampling_options, threads_option


@click.command()
@click.argument("artifact", type=PATH)
@click.option("--checkpoint", type=PATH, help="Measure against the eager PyTorch loop on this checkpoint.")
@click.option("--config", "config_file", type=PATH, help="JSON with the constructor arguments, for a published .pth.")
@click.option("--class", "label", type=int, default=0, show_default=True)
@sampling_options
@click.option("--repeats", type=int, default=5, show_default=True, help="Pictures timed for each contestant.")
@threads_option
@click.option("--json", "json_file", type=PATH, help="Where to write the same as JSON.")
def bench(
    artifact: pathlib.Path,
    checkpoint: pathlib.Path | None,
    config_file: pathlib.Path | None,
    label: int,
    repeats: int,
    threads: int | None,
    json_file: pathlib.Path | None,
    **settings: object,
) -> None:
    """Time ARTIFACT a picture at a time, batch 1, stage by stage."""
    if not 1 <= repeats <= 1000:
        raise RequestError(f"--repeats must lie in 1..1000, found {repeats}")
    if json_file is not None:
        check_writable(json_file)
    threads = threads or available_threads()
    with Generator.load(artifact, threads=threads) as generator:
        plan = generator.plan(**settings)
        contestants = [runtime_contestant(generator, label, settings)]
        if checkpoint is not None:
            import torch

            torch.set_num_threads(threads)
            contestants.append(eager_contestant(checkpoint, config_file, generator.manifest, label, plan))
        click.echo(
            f"{generator.description}; {plan.length} tokens, {len(plan.iterations)} iterations, "
            f"{plan.head_evaluations} head evaluations, guidance up to {plan.guidance_scale:.2f}, batch 1, "
            f"{repeats} times each"
        )
        with progress_bar((repeats + 1) * len(contestants), "timing") as bar:
            measurements = measure(contestants, repeats, lambda: bar.update(1))
    click.echo(table(measurements))
    if json_file is not None:
        write_json(json_file, report(measurements, generator, settings, repeats, threads))
        click.echo(f"written to {json_file}")
