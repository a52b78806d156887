"""`mar bench`."""

from __future__ import annotations

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator

import click

from mar_export.benchmark.report import Case, Work, measure, report, table, warm_up
from mar_export.benchmark.naive_onnx import naive_specs
from mar_export.benchmark.runners import RUNNERS, RUNTIMES, Entry, Runner, checked_checkpoint, open_checkpoint
from runtime.artifact.artifact_folder import Artifact, is_artifact
from runtime.artifact.manifest import Manifest
from runtime.backends import available_threads
from runtime.checks import check_choice
from runtime.cli.options import PATH, progress_bar, sampling_options, threads_option
from runtime.errors import RequestError
from runtime.files import check_writable, write_json
from runtime.provenance import commit
from runtime.requests.validation import check_batch, check_labels
from runtime.sampling.constraints import check_masked_diffusion
from runtime.sampling.plan import build_plan
from runtime.sampling.presets import OWN, PRESETS
from runtime.sampling.settings import Sampling
from training.models.model_sizes import model_config

_NEED_WEIGHTS = tuple(name for name in RUNNERS if name not in RUNTIMES)
_RANDOM_SAMPLING = Sampling(cfg_scale=2.9)  # the published guidance of MAR-B


@click.command()
@click.argument("artifact", type=PATH, required=False)
@click.option("--checkpoint", type=PATH, help="The weights the artifact was exported from, for the others to run.")
@click.option("--config", "config_file", type=PATH, help="JSON with the constructor arguments, for a published .pth.")
@click.option("--preset", "model", help="Without a checkpoint: a model of this size, such as mar_base.")
@click.option("--random-weights", is_flag=True, help="Draw the weights of that model at random.")
@click.option("--runner", "names", type=click.Choice(list(RUNNERS)), multiple=True, help="Who takes part; repeat it.")
@click.option(
    "--plan",
    "plans",
    metavar="NAME",
    multiple=True,
    help=f"What is drawn: {OWN}, {', '.join(PRESETS)}, or a preset of the artifact; repeat it. Every runtime draws "
    "every plan, the others the first.",
)
@click.option("--class", "label", type=int, default=0, show_default=True)
@click.option("--batch-size", type=int, default=1, show_default=True, help="Images drawn together.")
@sampling_options
@click.option("--repeats", type=int, default=5, show_default=True, help="Draws timed of each runner and plan.")
@threads_option
@click.option("--json", "json_file", type=PATH, help="Where to write the same as JSON.")
@click.option("--chart", type=PATH, help="Where to draw it, as PNG.")
@click.option("--work", type=PATH, help="Keep what is exported for the benchmark in this folder, and use it again.")
def bench(
    artifact: pathlib.Path | None,
    checkpoint: pathlib.Path | None,
    config_file: pathlib.Path | None,
    model: str | None,
    random_weights: bool,
    names: tuple[str, ...],
    plans: tuple[str, ...],
    label: int,
    batch_size: int,
    repeats: int,
    threads: int | None,
    json_file: pathlib.Path | None,
    chart: pathlib.Path | None,
    work: pathlib.Path | None,
    **settings: object,
) -> None:
    """Time ARTIFACT, or a model with random weights, against eager PyTorch and other ways to run it."""
    if not 1 <= repeats <= 1000:
        raise RequestError(f"--repeats must lie in 1..1000, found {repeats}")
    if (artifact is None and not random_weights) or random_weights != (model is not None):
        raise RequestError(
            "give an ARTIFACT, or --preset MODEL with --random-weights, or all three for an artifact of those weights"
        )
    if random_weights and (checkpoint is not None or config_file is not None):
        raise RequestError("--checkpoint and --config belong to an ARTIFACT, not to --random-weights")
    for path in (json_file, chart):
        if path is not None:
            check_writable(path)
    if batch_size < 1:
        raise RequestError(f"--batch-size must be at least 1, found {batch_size}")
    names = tuple(dict.fromkeys(names))  # each takes part once
    if not names:
        names = ("runtime", "naive-onnx", "eager") if random_weights else ("runtime", "eager")[: 1 + bool(checkpoint)]
    if not random_weights and checkpoint is None and set(names) & set(_NEED_WEIGHTS):
        raise RequestError(f"{', '.join(sorted(set(names) & set(_NEED_WEIGHTS)))}: these need --checkpoint")
    with _work_folder(work) as folder:
        made = folder / commit()  # engines of another version of this code are not the same engines
        entry = Entry(
            artifact=artifact or made / f"{model}-random",
            checkpoint=checkpoint,
            config_file=config_file,
            random_model=model,
            naive=made / f"{model or _weights_name(artifact)}-naive",
            labels=(label,) * batch_size,
            threads=threads or available_threads(),
        )
        _export(entry, made=artifact is None, naive="naive-onnx" in names)
        _case(entry, names, plans or (OWN,), settings, repeats, json_file, chart)


def _case(
    entry: Entry,
    names: tuple[str, ...],
    plans: tuple[str, ...],
    settings: dict[str, object],
    repeats: int,
    json_file: pathlib.Path | None,
    chart: pathlib.Path | None,
) -> None:
    from mar_export.benchmark.machine_probe import Probe
    from mar_export.benchmark.startup_time import startup_seconds

    manifest = Artifact(entry.artifact).manifest
    config = manifest.model
    for name in plans:
        check_choice("--plan", name, [OWN, *PRESETS, *manifest.presets])
    asked = {name: {**settings, "preset": None if name == OWN else name} for name in plans}
    work = _work(manifest, asked, entry)
    cases = [Case(name, plan) for name in names for plan in (plans if name in RUNTIMES else plans[:1])]
    for name, plan in work.plans.items():
        click.echo(
            f"{name}: {plan.length} tokens, {len(plan.iterations)} iterations, {plan.head_evaluations} head "
            f"evaluations, guidance up to {plan.guidance_scale:.2f}"
        )
    click.echo(f"batch {work.batch}, {entry.threads} threads, {repeats} times each")
    started = next((name for name in names if name in RUNTIMES), "runtime")
    startup = startup_seconds(entry.artifact, entry.threads, *RUNTIMES[started], repeats=3)
    runners: dict[str, Runner] = {}
    try:
        for name in names:
            runners[name] = Runner(name, entry)
        with progress_bar(repeats * len(cases), "timing") as bar:
            measurements, machine = measure(
                runners,
                cases,
                asked,
                warm_up(config),
                repeats,
                Probe(entry.threads).measure,
                lambda: bar.update(1),
            )
        descriptions = {name: runner.description for name, runner in runners.items()}
        peaks = {name: runner.finish() for name, runner in runners.items()}
    finally:
        for runner in runners.values():
            runner.stop()
    engines = sum(entry.bytes for entry in manifest.files.values())
    about = {
        "title": f"{manifest.provenance.get('checkpoint', entry.artifact)}, batch {work.batch}, {manifest.precision}, "
        f"{entry.threads} threads",
        "provenance": dict(manifest.provenance),
        "repeats": repeats,
        "threads": entry.threads,
        "engine_bytes": engines,
        "startup_of": started,
        "startup_seconds": dict(startup),
    }
    value = report(measurements, machine, work, descriptions, peaks, about)
    click.echo(table(value))
    click.echo(
        f"engine files {engines / 2**20:,.0f} MiB; import of runtime {startup['import_runtime']:.2f} s, "
        f"from the start of a process of {started} to the first call of the backbone "
        f"{startup['first_backbone_call']:.2f} s"
    )
    if json_file is not None:
        write_json(json_file, value)
        click.echo(f"written to {json_file}")
    if chart is not None:
        from mar_export.benchmark.bench_chart import save_chart

        save_chart(value, chart)
        click.echo(f"drawn to {chart}")


def _work(manifest: Manifest, asked: dict[str, dict[str, object]], entry: Entry) -> Work:
    """The plans that are drawn, checked before anything is loaded."""
    config = manifest.model
    check_masked_diffusion(config, "mar bench")
    check_labels(entry.labels, config)
    samplings = {name: manifest.resolve_sampling(settings) for name, settings in asked.items()}
    plans = {name: build_plan(config.tokens, sampling) for name, sampling in samplings.items()}
    for plan in plans.values():
        check_batch(len(entry.labels), plan.diffusion_steps, config)
    return Work(config, len(entry.labels), samplings, plans)


def _weights_name(artifact: pathlib.Path | None) -> str:
    """What tells the weights of one artifact from those of another, as a name for a folder."""
    assert artifact is not None
    return str(Artifact(artifact).manifest.provenance.get("checkpoint_sha256", "unknown"))[:16]


@contextlib.contextmanager
def _work_folder(work: pathlib.Path | None) -> Iterator[pathlib.Path]:
    if work is not None:
        if work.exists() and not work.is_dir():
            raise RequestError(f"--work must be a folder, found the file {work}")
        yield work
        return
    with tempfile.TemporaryDirectory(prefix="mar-bench-") as folder:
        yield pathlib.Path(folder)


def _export(entry: Entry, *, made: bool, naive: bool) -> None:
    """Make the engines that an entry names and that are not there yet; `made` is whether the artifact is ours."""
    if made and entry.random_model is not None and not is_artifact(entry.artifact):
        from mar_export.artifact.export import export_artifact

        check_labels(entry.labels, model_config(entry.random_model))
        export_artifact(open_checkpoint(entry), entry.artifact, click.echo, _RANDOM_SAMPLING)
    config = Artifact(entry.artifact).manifest.model
    files = [entry.naive / f"{name}.onnx" for name in naive_specs(config)]
    if naive and not all(file.is_file() for file in files):
        from mar_export.benchmark.naive_graphs import export_naive

        check_labels(entry.labels, config)
        click.echo("naive-onnx: exporting")
        export_naive(checked_checkpoint(entry)[1].model, entry.naive)
