"""`mar plan`."""

from __future__ import annotations

import pathlib

import click

from runtime.artifact.artifact_folder import Artifact
from runtime.checks import pluralize
from runtime.cli.options import PATH, backend_options, preset_option, sampling_options, threads_option
from runtime.cost.operations import iteration_costs, plan_costs
from runtime.cost.predict import predicted_seconds
from runtime.generator import Generator
from runtime.requests.validation import check_batch
from runtime.sampling.constraints import check_masked_diffusion
from runtime.sampling.plan import build_plan


@click.command()
@click.argument("artifact", type=PATH)
@preset_option
@sampling_options
@click.option("--batch-size", type=int, default=1, show_default=True, help="Images drawn together.")
@click.option("--time/--no-time", "timed", default=True, help="Load the engines and predict the time here.")
@backend_options
@threads_option
def plan(
    artifact: pathlib.Path,
    batch_size: int,
    timed: bool,
    backend: str,
    device: str | None,
    cuda_graphs: bool,
    threads: int | None,
    **settings: object,
) -> None:
    """Show how ARTIFACT would draw: every iteration, what it costs and how long it takes."""
    manifest = Artifact(artifact).manifest
    config = manifest.model
    check_masked_diffusion(config, "mar plan")
    sampling = manifest.resolve_sampling(settings)
    planned = build_plan(config.tokens, sampling)
    check_batch(batch_size, planned.diffusion_steps, config)
    seconds = None
    if timed:
        with Generator.load(
            artifact, backend=backend, device=device, threads=threads, cuda_graphs=cuda_graphs
        ) as generator:
            seconds = predicted_seconds(generator, planned, batch_size)
            where = generator.description
    click.echo(sampling.describe() + "\n")
    click.echo(
        f"{'iteration':>9}{'known':>7}{'tokens':>8}{'guidance':>10}{'steps':>7}"
        f"{'head evaluations so far':>25}{'GFLOP':>9}" + (f"{'ms':>9}" if seconds else "")
    )
    evaluations = 0
    for number, iteration in enumerate(planned.iterations):
        evaluations += iteration.table.steps
        costs = iteration_costs(config, iteration, batch_size).values()
        operations = sum(calls * cost.operations for calls, cost in costs)
        guidance = f"{iteration.guidance_scale:.2f}" if iteration.guided else "none"
        click.echo(
            f"{number + 1:9}{iteration.known:7}{iteration.count:8}{guidance:>10}{iteration.table.steps:7}"
            f"{evaluations:25}{operations / 1e9:9.1f}"
            + (f"{1e3 * sum(seconds[number].values()):9.1f}" if seconds else "")
        )
    total = plan_costs(config, planned, batch_size)
    click.echo(
        f"\n{pluralize(batch_size, 'image')}: {len(planned.iterations)} backbone passes, "
        f"{planned.head_evaluations} head evaluations, "
        f"{sum(cost.operations for cost in total.values()) / 1e12:.3f} TFLOP ("
        + ", ".join(f"{name} {cost.operations / 1e12:.3f}" for name, cost in total.items())
        + ")"
    )
    if seconds:
        of_engine = {name: sum(one[name] for one in seconds) for name in seconds[0]}
        click.echo(
            f"predicted time {sum(of_engine.values()):.2f} s ("
            + ", ".join(f"{name} {value:.2f}" for name, value in of_engine.items())
            + f") on {where}"
        )
