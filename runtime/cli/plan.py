"""The command `mar plan`."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import click

from runtime.artifact.artifact_folder import Artifact
from runtime.checks import pluralize
from runtime.cli.json_document import PrintDocument, json_document, json_option
from runtime.cli.options import PATH, backend_options, preset_option, sampling_options, threads_option
from runtime.cost.operations import backbone_cost, iteration_costs, plan_costs
from runtime.cost.predict import predicted_seconds
from runtime.generator import Generator
from runtime.model.families import check_supported
from runtime.model.family_config import FamilyConfig
from runtime.requests.validation import check_batch
from runtime.sampling.constraints import plan_for
from runtime.sampling.plan import Iteration, Plan

_FULL = "full"


@click.command()
@click.argument("artifact", type=PATH)
@preset_option
@sampling_options
@click.option("--batch-size", type=int, default=1, show_default=True, help="Number of images generated together.")
@click.option("--time/--no-time", "timed", default=True, help="Load the engines, and predict the time on this machine.")
@backend_options
@threads_option
@json_option
def plan(
    artifact: pathlib.Path,
    batch_size: int,
    timed: bool,
    backend: str,
    device: str | None,
    cuda_graphs: bool,
    threads: int | None,
    print_document: PrintDocument,
    **settings: object,
) -> None:
    """Show the iterations of a generation with ARTIFACT: their settings, their cost and their predicted time."""
    manifest = Artifact(artifact).manifest
    config = check_supported(manifest.model, "mar plan")
    sampling = manifest.resolve_sampling(settings)
    planned = plan_for(config, sampling)
    check_batch(batch_size, planned.noise_steps, config)
    seconds = where = None
    if timed:
        with Generator.load(
            artifact, backend=backend, device=device, threads=threads, cuda_graphs=cuda_graphs
        ) as generator:
            seconds = predicted_seconds(generator, planned, batch_size)
            where = generator.description
    click.echo(sampling.describe() + "\n")
    _print_iterations(config, planned, batch_size, seconds)
    _print_totals(config, planned, batch_size)
    if seconds:
        names = dict.fromkeys(name for iteration in seconds for name in iteration)
        totals = {name: sum(iteration.get(name, 0.0) for iteration in seconds) for name in names}
        parts = ", ".join(f"{name} {value:.2f}" for name, value in totals.items())
        click.echo(f"predicted time {sum(totals.values()):.2f} s ({parts}) on {where}")
    content = {
        "artifact": str(artifact),
        "runs_on": where,
        "batch_size": batch_size,
        "sampling": dataclasses.asdict(sampling),
        **_figures(config, planned, batch_size, seconds),
    }
    print_document(json_document("plan", content))


def _print_iterations(config: FamilyConfig, plan: Plan, batch: int, seconds: list[dict[str, float]] | None) -> None:
    """Print one line for each iteration, with its time if that was predicted."""
    passes = any(_pass(iteration) != _FULL for iteration in plan.iterations)
    click.echo(
        f"{'iteration':>9}"
        + (f"{'pass':>7}" if passes else "")
        + f"{'known':>7}{'tokens':>8}{'guidance':>10}{'steps':>7}"
        f"{'head evaluations so far':>25}{'GFLOP':>9}" + (f"{'ms':>9}" if seconds else "")
    )
    evaluations = 0
    for number, iteration in enumerate(plan.iterations):
        evaluations += iteration.table.steps
        costs = iteration_costs(config, iteration, batch).values()
        operations = sum(calls * cost.operations for calls, cost in costs)
        guidance = f"{iteration.guidance_scale:.2f}" if iteration.guided else "none"
        click.echo(
            f"{number + 1:9}"
            + (f"{_pass(iteration):>7}" if passes else "")
            + f"{iteration.known:7}{iteration.count:8}{guidance:>10}{iteration.table.steps:7}"
            f"{evaluations:25}{operations / 1e9:9.1f}"
            + (f"{1e3 * sum(seconds[number].values()):9.1f}" if seconds else "")
        )


def _pass(iteration: Iteration) -> str:
    """Return the kind of an iteration's pass of the backbone."""
    if iteration.of_class:
        return "kept"
    return "local" if iteration.local else _FULL


def _figures(
    config: FamilyConfig, plan: Plan, batch: int, seconds: Sequence[dict[str, float]] | None
) -> dict[str, Any]:
    """Return the cost and the predicted time of each iteration and of the whole plan, for the JSON document."""
    iterations = [
        {
            "pass": _pass(iteration),
            "known_tokens": iteration.known,
            "tokens": iteration.count,
            "guidance_scale": float(iteration.guidance_scale) if iteration.guided else None,
            "diffusion_steps": iteration.table.steps,
            "operations": {
                name: calls * cost.operations
                for name, (calls, cost) in iteration_costs(config, iteration, batch).items()
            },
            "seconds": seconds[number] if seconds else None,
        }
        for number, iteration in enumerate(plan.iterations)
    ]
    return {
        "backbone_passes": len(plan.iterations),
        "head_evaluations": plan.head_evaluations,
        "operations": {name: cost.operations for name, cost in plan_costs(config, plan, batch).items()},
        "seconds": sum(sum(iteration.values()) for iteration in seconds) if seconds else None,
        "iterations": iterations,
    }


def _other_passes(plan: Plan) -> str:
    """Return how many of the passes are kept by class or local, if any is."""
    kinds = collections.Counter(map(_pass, plan.iterations))
    others = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if kind != _FULL)
    return f" ({others})" if others else ""


def _print_totals(config: FamilyConfig, plan: Plan, batch: int) -> None:
    """Print the cost of the whole plan, in all and by engine."""
    costs = plan_costs(config, plan, batch)
    parts = ", ".join(f"{name} {cost.operations / 1e12:.3f}" for name, cost in costs.items())
    click.echo(
        f"\n{pluralize(batch, 'image')}: "
        f"{pluralize(len(plan.iterations), 'backbone pass')}{_other_passes(plan)}, "
        f"{pluralize(plan.head_evaluations, 'head evaluation')}, "
        f"{sum(cost.operations for cost in costs.values()) / 1e12:.3f} TFLOP ({parts})"
    )
    if plan.iterations[0].of_class:
        once = backbone_cost(check_supported(config, "mar plan"), 1, 1, 0, plan.length)
        click.echo(f"the first pass is kept by class: {once.operations / 1e9:.1f} GFLOP more for a class not yet drawn")
