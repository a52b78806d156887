"""The command `mar optimize-steps`."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
from collections.abc import Sequence

import click

from calibration.steps.held_out_evaluation import IMAGES, Judged, judged, judgements
from calibration.steps.plan_search import StepPlan, find_steps
from calibration.steps.solvers import REFERENCE_STEPS
from calibration.steps.timing import StepTimes
from runtime.artifact.artifact_folder import Artifact, check_artifact_target
from runtime.artifact.manifest import MANIFEST
from runtime.checks import check_int, check_number
from runtime.cli.options import PATH, backend_options, preset_option, progress_bar, schedule_options, threads_option
from runtime.errors import RequestError
from runtime.files import check_writable, replacing_folder, write_json
from runtime.generator import Generator
from runtime.sampling.constraints import check_masked_diffusion
from runtime.sampling.presets import PRESETS, check_preset_name
from runtime.sampling.settings import Sampling

_MOST_IMAGES = 10_000
_MOST_MILLISECONDS = 1e9


@click.command()
@click.argument("artifact", type=PATH)
@click.option("--budget-ms", type=float, help="Milliseconds that an image may take here, drawn alone.")
@click.option("--allowed-error", type=float, help="Or: what a typical image's latents may be off by, relative L2.")
@click.option("--count", type=int, default=32, show_default=True, help="Number of images to measure errors on.")
@click.option("--name", default="calibrated", show_default=True, help="What the preset is called.")
@click.option("--replace", is_flag=True, help="Take the place of a preset of that name.")
@click.option("--out", type=PATH, help="A new artifact. Default: ARTIFACT itself gets the preset.")
@preset_option
@schedule_options
@backend_options
@threads_option
@click.option("--json", "json_file", type=PATH, help="Where to write what was found, too.")
def optimize_steps(
    artifact: pathlib.Path,
    budget_ms: float | None,
    allowed_error: float | None,
    count: int,
    name: str,
    replace: bool,
    out: pathlib.Path | None,
    backend: str,
    device: str | None,
    cuda_graphs: bool,
    threads: int | None,
    json_file: pathlib.Path | None,
    **settings: object,
) -> None:
    """Find the diffusion steps of each iteration, and their solver, that keep the images of ARTIFACT nearest to
    those of a thousand steps, and write them into it as a preset of its own.

    The iterations and the guidance are those of the other options and --preset.
    """
    if (budget_ms is None) == (allowed_error is None):
        raise RequestError("give either --budget-ms or --allowed-error, and not both")
    if budget_ms is not None:
        check_number("--budget-ms", budget_ms, 1e-3, _MOST_MILLISECONDS)
    if allowed_error is not None:
        check_number("--allowed-error", allowed_error, 1e-6, 1)
    check_int("--count", count, 1, _MOST_IMAGES)
    opened = Artifact(artifact)
    check_masked_diffusion(opened.manifest.model, "mar optimize-steps")
    _check_target(opened, name, replace, out)
    if json_file is not None:
        check_writable(json_file)
    budget = None if budget_ms is None else budget_ms / 1e3
    with Generator.load(
        artifact, backend=backend, device=device, threads=threads, cuda_graphs=cuda_graphs
    ) as generator:
        schedule = generator.sampling(**settings)
        found, times = find_steps(generator, schedule, count, budget, allowed_error, progress_bar)
        ways = _ways(generator, schedule, name, found, times)
        with progress_bar(judgements(ways, generator.manifest.model.tokens), "judging") as bar:
            rows = judged(generator, ways, bar.update)
    click.echo(_table(found, times, rows))
    if json_file is not None:
        about = {"images": count, "sampling": dataclasses.asdict(ways[name]), "error_found": found.error}
        write_json(json_file, {**about, "judged_images": IMAGES, "judged": [row.to_dict() for row in rows]})
    written = _write_preset(artifact, name, ways[name], replace, out)
    click.echo(f"preset {name} written to {written}; draw with it: mar generate {written} --preset {name}")


def _check_target(artifact: Artifact, name: str, replace: bool, out: pathlib.Path | None) -> None:
    """Refuse before the work what could not be written after it."""
    check_preset_name(name)
    if artifact.manifest.model.head != "diffusion":
        raise RequestError(f"{artifact.path} has a flow head; mar optimize-steps needs a diffusion head")
    if name in artifact.manifest.presets and not replace:
        raise RequestError(f"{artifact.path} has a preset {name!r} already; give another --name, or --replace")
    if out is None:
        check_writable(artifact.path / MANIFEST)
    else:
        check_artifact_target(out)


def _ways(
    generator: Generator, schedule: Sampling, name: str, found: StepPlan, times: StepTimes
) -> dict[str, Sampling]:
    """What is judged: the plan, uniform steps that take no less time, and the built-in presets."""
    uniform = times.uniform_steps(found.steps)
    return {
        name: found.solver.sampling(schedule, found.steps),
        f"uniform-{uniform}": found.solver.sampling(schedule, uniform),
        **{preset: generator.sampling(preset=preset) for preset in PRESETS},
    }


def _table(found: StepPlan, times: StepTimes, rows: Sequence[Judged]) -> str:
    """The plan, and how it does, for people."""
    lines = [
        f"{found.solver}, steps {','.join(map(str, found.steps))}: {1e3 * times.seconds(found.steps):.1f} ms predicted",
        f"\n{'':20}{'head evaluations':>18}{'ms':>10}{'relative L2':>13}{'dB':>8}{'worst':>9}",
    ]
    for row in rows:
        told = row.relative_l2 is not None
        error = f"{row.relative_l2:13.4f}{row.decibels:8.1f}{row.worst:9.4f}" if told else f"{'noise':>13}"
        lines.append(f"{row.name:20}{row.head_evaluations:18}{row.milliseconds:10.1f}{error}")
    lines.append(
        f"\nErrors of the latents of {IMAGES} other images, geometric mean and worst, each way against "
        f"{REFERENCE_STEPS:,} steps in its own iterations; noise: the chain has fresh noise, so no image is right."
    )
    own, uniform = rows[0].relative_l2, rows[1].relative_l2
    assert own is not None
    assert uniform is not None
    if own >= uniform:
        lines.append(f"On these images {rows[1].name} is no worse than {rows[0].name}.")
    return "\n".join(lines)


def _write_preset(
    path: pathlib.Path, name: str, sampling: Sampling, replace: bool, out: pathlib.Path | None
) -> pathlib.Path:
    """Where the artifact now lies that has the preset; read anew, since others may have built engines meanwhile."""
    artifact = Artifact(path)
    _check_target(artifact, name, replace, out)
    manifest = dataclasses.replace(artifact.manifest, presets={**artifact.manifest.presets, name: sampling})
    if out is None:
        write_json(path / MANIFEST, manifest.to_dict())
        return path
    with replacing_folder(out) as folder:
        for file in manifest.files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path / file, folder / file)
        write_json(folder / MANIFEST, manifest.to_dict())
        Artifact(folder).verify(builds=True)
    return out
