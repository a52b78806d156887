"""The command `mar optimize-steps`."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import click

from calibration.steps.held_out_evaluation import EVAL_COUNT, SettingsEvaluation, evaluate_settings, image_count
from calibration.steps.plan_search import StepPlan, find_steps
from calibration.steps.preset_target import PresetTarget
from calibration.steps.solvers import REFERENCE_STEPS
from calibration.steps.timing import StepTimes
from runtime.artifact.manifest import MANIFEST
from runtime.checks import check_int, check_number
from runtime.cli.options import PATH, backend_options, preset_option, schedule_options, threads_option
from runtime.cli.result_files import OUTPUT, check_result_file, force_option, is_forced, write_result_json
from runtime.errors import RequestError
from runtime.generator import Generator
from runtime.progress import Progress
from runtime.sampling.presets import PRESETS
from runtime.sampling.settings import Sampling
from runtime.storage.files import holding

_MAX_COUNT = 10_000
_MAX_MILLISECONDS = 1e9


@click.command()
@click.argument("artifact", type=PATH)
@click.option("--budget-ms", type=float, help="Milliseconds that one image may take on this machine.")
@click.option("--allowed-error", type=float, help="Or: the largest error of latents, as relative L2 distance.")
@click.option("--count", type=int, default=32, show_default=True, help="Number of images to measure errors on.")
@click.option("--name", default="calibrated", show_default=True, help="The name of the new preset.")
@click.option("--out", type=OUTPUT, help="Write a new artifact. Default: add the preset to ARTIFACT.")
@preset_option
@schedule_options
@backend_options
@threads_option
@click.option("--report", "report_file", type=OUTPUT, help="Write the results to this file as JSON.")
@force_option("Replace a preset of the same name, another artifact at --out, and a JSON file that something else made.")
def optimize_steps(
    artifact: pathlib.Path,
    budget_ms: float | None,
    allowed_error: float | None,
    count: int,
    name: str,
    out: pathlib.Path | None,
    backend: str,
    device: str | None,
    cuda_graphs: bool,
    threads: int | None,
    report_file: pathlib.Path | None,
    **settings: Any,
) -> None:
    """Find the best diffusion solver and steps of each iteration for ARTIFACT, and add them to it as a preset.

    The best are those whose images are closest to images of 1,000 steps within the time of --budget-ms, or the
    fastest within --allowed-error. Iterations and guidance come from --preset and the other options.
    """
    _check_limits(budget_ms, allowed_error, count)
    target = PresetTarget(artifact, name, is_forced(), out)
    target.check()
    if report_file is not None:
        check_result_file(report_file)
    budget = None if budget_ms is None else budget_ms / 1e3
    with (
        holding(out or artifact / MANIFEST),
        Generator.load(artifact, backend=backend, device=device, threads=threads, cuda_graphs=cuda_graphs) as generator,
    ):
        schedule = generator.sampling(**settings)
        if schedule.recap:
            raise RequestError("mar optimize-steps has no local iterations; leave out recap_local_iterations")
        plan, times = find_steps(generator, schedule, count, budget, allowed_error, Progress)
        compared = _compared_settings(generator, schedule, name, plan, times)
        images = image_count(compared, generator.manifest.model.tokens)
        with Progress(images, "evaluating", unit="images") as progress:
            evaluations = evaluate_settings(generator, compared, progress.update)
        click.echo(_table(plan, times, evaluations))
        written = target.write(compared[name], click.echo)
    if report_file is not None:
        write_result_json(report_file, _results(count, plan, compared[name], evaluations))
    click.echo(f"preset {name} written to {written}; use it with: mar generate {written} --preset {name}")


def _check_limits(budget_ms: float | None, allowed_error: float | None, count: int) -> None:
    if (budget_ms is None) == (allowed_error is None):
        raise RequestError("give either --budget-ms or --allowed-error, and not both")
    if budget_ms is not None:
        check_number("--budget-ms", budget_ms, 1e-3, _MAX_MILLISECONDS)
    if allowed_error is not None:
        check_number("--allowed-error", allowed_error, 1e-6, 1)
    check_int("--count", count, 1, _MAX_COUNT)


def _compared_settings(
    generator: Generator, schedule: Sampling, name: str, plan: StepPlan, times: StepTimes
) -> dict[str, Sampling]:
    """The plan, uniform steps that take at least the same time, and the built-in presets."""
    uniform = times.uniform_steps(plan.steps)
    return {
        name: plan.solver.sampling(schedule, plan.steps),
        f"uniform-{uniform}": plan.solver.sampling(schedule, uniform),
        **{preset: generator.sampling(preset=preset) for preset in PRESETS},
    }


def _table(plan: StepPlan, times: StepTimes, evaluations: Sequence[SettingsEvaluation]) -> str:
    lines = [
        f"{plan.solver}, steps {','.join(map(str, plan.steps))}: {1e3 * times.seconds(plan.steps):.1f} ms predicted",
        f"\n{'':20}{'head evaluations':>18}{'ms':>10}{'relative L2':>13}{'SQNR dB':>9}{'worst':>9}",
    ]
    for row in evaluations:
        if row.relative_l2 is None:
            error = f"{'noise':>13}"
        else:
            error = f"{row.relative_l2:13.4f}{row.sqnr_db:9.1f}{row.worst:9.4f}"
        lines.append(f"{row.name:20}{row.head_evaluations:18}{row.milliseconds:10.1f}{error}")
    lines.append(
        f"\nErrors are those of the latents of {EVAL_COUNT} held-out images against {REFERENCE_STEPS:,} steps in the "
        "same iterations: geometric mean, and worst. noise: the chain adds noise, so no image is the right one."
    )
    own, uniform = evaluations[0].relative_l2, evaluations[1].relative_l2
    assert own is not None
    assert uniform is not None
    if own >= uniform:
        lines.append(f"On these images {evaluations[1].name} is no worse than {evaluations[0].name}.")
    return "\n".join(lines)


def _results(
    count: int, plan: StepPlan, sampling: Sampling, evaluations: Sequence[SettingsEvaluation]
) -> Mapping[str, Any]:
    """The content of the report."""
    return {
        "count": count,
        "sampling": dataclasses.asdict(sampling),
        "error": plan.error,
        "eval_count": EVAL_COUNT,
        "evaluations": [evaluation.to_dict() for evaluation in evaluations],
    }
