"""The command `mar bench`."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import click

from mar_export.benchmark.naive_onnx import naive_specs
from mar_export.benchmark.report import Workload, build_report, format_report
from mar_export.benchmark.runners import (
    AOT_RUNNER,
    NAIVE_RUNNER,
    RUNNERS,
    RUNTIMES,
    Runner,
    RunnerInputs,
    checked_checkpoint,
    compile_packages,
    open_checkpoint,
    wait_policies,
)
from mar_export.benchmark.timing import Case, Measurement, better_wait_policies, measure, warm_up_settings
from runtime.artifact.artifact_folder import Artifact, is_artifact
from runtime.artifact.manifest import Manifest
from runtime.backends import available_threads
from runtime.checks import check_choice, pluralize
from runtime.cli.calibration_note import tell_other_plan
from runtime.cli.json_document import PrintDocument, json_document, json_option
from runtime.cli.options import CLASS_HELP, PATH, sampling_options, threads_option
from runtime.cli.result_files import OUTPUT, check_result_file, force_option, result_file, write_result_json
from runtime.cost.operations import Machine
from runtime.errors import BackendError, RequestError
from runtime.model.engine_spec import DECODER
from runtime.model.families import check_supported, family_of, imported
from runtime.model.family_config import FamilyConfig
from runtime.progress import Progress
from runtime.provenance import commit
from runtime.requests.validation import check_batch, check_labels, parse_class
from runtime.sampling.constraints import default_sampling, plan_for
from runtime.sampling.presets import OWN, PRESETS
from runtime.storage.files import holding_folder, scratch_folder
from training.models.model_sizes import MODEL_SIZES, model_config

_NEED_WEIGHTS = tuple(name for name in RUNNERS if name not in RUNTIMES)
_MAR_B_GUIDANCE = 2.9  # as published; random weights of other families have their own
_STARTUP_REPEATS = 3


@click.command()
@click.argument("artifact", type=PATH, required=False)
@click.option(
    "--checkpoint", type=PATH, help="The weights that the artifact was exported from. Runners in PyTorch need them."
)
@click.option(
    "--model-config",
    "config_file",
    type=PATH,
    help="A JSON file with the constructor arguments of a published .pth checkpoint.",
)
@click.option("--model", metavar="SIZE", help="Time a model of this size, such as mar_base; with --random-weights.")
@click.option("--random-weights", is_flag=True, help="Give the model of --model random weights.")
@click.option(
    "--runner", "names", type=click.Choice(list(RUNNERS)), multiple=True, help="What to time. Repeat it for several."
)
@click.option(
    "--preset",
    "presets",
    metavar="NAME",
    multiple=True,
    help=f"The sampling preset to time: {OWN} (the artifact's own settings), {', '.join(PRESETS)}, or a preset of the "
    "artifact. Repeat it for several: runners of this runtime are timed with all presets, others with the first.",
)
@click.option(
    "--class",
    "label",
    metavar="NUMBER|NAME",
    help=f"The class of all images, {CLASS_HELP}. Default: the first. A model that draws from text is timed with "
    "random embeddings.",
)
@click.option("--batch-size", type=int, default=1, show_default=True, help="Number of images generated together.")
@sampling_options
@click.option(
    "--repeats", type=int, default=5, show_default=True, help="How many times each runner is timed with each preset."
)
@threads_option
@click.option("--report", "report_file", type=OUTPUT, help="Write the report to this file as JSON.")
@click.option("--chart", type=OUTPUT, help="Write a chart of the report to this file as PNG.")
@click.option("--work", type=PATH, help="Keep what is exported for the benchmark in this folder, and use it again.")
@force_option("Replace reports and charts that something else made.")
@json_option
def bench(
    artifact: pathlib.Path | None,
    checkpoint: pathlib.Path | None,
    config_file: pathlib.Path | None,
    model: str | None,
    random_weights: bool,
    names: tuple[str, ...],
    presets: tuple[str, ...],
    label: str | None,
    batch_size: int,
    repeats: int,
    threads: int | None,
    report_file: pathlib.Path | None,
    chart: pathlib.Path | None,
    work: pathlib.Path | None,
    print_document: PrintDocument,
    **settings: object,
) -> None:
    """Time ARTIFACT, or a model with random weights, against eager PyTorch and other runners."""
    _check_source(artifact, model, random_weights, checkpoint or config_file)
    _check_numbers(repeats, batch_size)
    _check_outputs(report_file, chart)
    names = tuple(dict.fromkeys(names)) or _default_runners(random_weights, checkpoint is not None)
    _check_runners(set(names) & set(_NEED_WEIGHTS), random_weights, checkpoint)
    manifest = None if artifact is None else Artifact(artifact).manifest
    config = check_supported(manifest.model if manifest is not None else model_config(str(model)), "mar bench")
    if "naive-onnx" in names:
        check_supported(config, NAIVE_RUNNER)
    names = _without_uncompiled(names)
    with _work_folder(work) as folder:
        exports = folder / commit()  # engines of another version of this code are not the same engines
        inputs = RunnerInputs(
            artifact=artifact or exports / f"{model}-random",
            checkpoint=checkpoint,
            config_file=config_file,
            random_model=model,
            naive=exports / f"{model or _weights_name(artifact)}-naive",
            packages=exports / f"{model or _weights_name(artifact)}-packages-{threads or available_threads()}",
            request=_request(config, () if manifest is None else manifest.class_names, label, batch_size),
            batch=batch_size,
            threads=threads or available_threads(),
        )
        _export_missing(inputs, config, artifact is None, names)
        presets = presets or (OWN,)
        report = _benchmark(
            inputs, names, {name: {**settings, "preset": None if name == OWN else name} for name in presets}, repeats
        )
        document = json_document("bench", report)
        _write(document, report_file, chart)
    print_document(document)


def _check_source(
    artifact: pathlib.Path | None, model: str | None, random_weights: bool, weights: pathlib.Path | None
) -> None:
    """Check that the options name one source of the weights."""
    if (artifact is None and not random_weights) or random_weights != (model is not None):
        raise RequestError(
            "give an ARTIFACT, or --model SIZE with --random-weights, or all three for an artifact of those weights"
        )
    if random_weights and weights is not None:
        raise RequestError("--checkpoint and --model-config belong to an ARTIFACT, not to --random-weights")


def _request(config: FamilyConfig, class_names: Sequence[str], label: str | None, batch: int) -> dict[str, Any]:
    """Return the named arguments of a request for a batch: of one class, or examples where a model has no classes."""
    if config.class_num:
        labels = (parse_class(label or "index:0", class_names),) * batch
        check_labels(labels, config)
        return {"labels": labels}
    if label is not None:
        raise RequestError("this model draws from text, not from classes; leave --class out")
    return dict(imported(family_of(config).example)(config, batch))


def _check_numbers(repeats: int, batch_size: int) -> None:
    if not 1 <= repeats <= 1000:
        raise RequestError(f"--repeats must lie in 1..1000, found {repeats}")
    if batch_size < 1:
        raise RequestError(f"--batch-size must be at least 1, found {batch_size}")


def _check_runners(names: set[str], random_weights: bool, checkpoint: pathlib.Path | None) -> None:
    """Check that there are weights for the runners `names`, which need them, and PyTorch, which reads them."""
    if names and not random_weights and checkpoint is None:
        raise RequestError(f"give --checkpoint, the weights for {', '.join(sorted(names))}")
    if (names or random_weights) and importlib.util.find_spec("torch") is None:
        which = ", ".join(sorted(names)) or "--random-weights"
        raise BackendError(f"{which}: the Python package torch is needed; pip install 'mar-runtime[export]'")


def _without_uncompiled(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the runners that can be had here: without a C++ compiler, `aot-inductor` is skipped with one line."""
    if AOT_RUNNER not in names:
        return names
    from mar_export.torch_backends.torch_cpu import missing_compiler

    if (reason := missing_compiler()) is None:
        return names
    others = tuple(name for name in names if name != AOT_RUNNER)
    if not others:
        raise BackendError(f"{AOT_RUNNER}: {reason}")
    click.echo(f"{AOT_RUNNER} is skipped: {reason}")
    return others


def _check_outputs(report_file: pathlib.Path | None, chart: pathlib.Path | None) -> None:
    """Check before the work that every output can be written, and that what draws the chart is installed."""
    for path in (report_file, chart):
        if path is not None:
            check_result_file(path)
    if chart is not None:
        importlib.import_module("matplotlib")


def _default_runners(random_weights: bool, has_checkpoint: bool) -> tuple[str, ...]:
    if random_weights:
        return ("runtime", "naive-onnx", "eager")
    return ("runtime", "eager") if has_checkpoint else ("runtime",)


def _benchmark(
    inputs: RunnerInputs, names: Sequence[str], settings: Mapping[str, Mapping[str, Any]], repeats: int
) -> dict[str, Any]:
    """Time the runners `names` with the sampling settings of each preset; print the report and return it."""
    from mar_export.benchmark.startup_time import startup_seconds

    manifest = Artifact(inputs.artifact).manifest
    _check_presets(settings, manifest)
    workload = _workload(manifest, settings, inputs)
    presets = list(settings)
    cases = [
        Case(name, preset, wait_policy)
        for name in names
        for preset in (presets if name in RUNTIMES else presets[:1])
        for wait_policy in wait_policies(name)
    ]
    for name, plan in workload.plans.items():
        click.echo(
            f"{name}: {pluralize(plan.length, 'token')}, {pluralize(len(plan.iterations), 'iteration')}, "
            f"{pluralize(plan.head_evaluations, 'head evaluation')}, guidance up to {plan.guidance_scale:.2f}"
        )
    threads = pluralize(inputs.threads, "thread")
    undecoded = ", without the decoder" if DECODER in manifest.engines else ""
    click.echo(f"batch {workload.batch}, {threads}, {pluralize(repeats, 'time')} each{undecoded}")
    started = next((name for name in names if name in RUNTIMES), "runtime")
    startup = startup_seconds(inputs.artifact, inputs.threads, *RUNTIMES[started], repeats=_STARTUP_REPEATS)
    measurements, machine, runners = _measure(inputs, cases, settings, repeats)
    engine_bytes = sum(entry.bytes for entry in manifest.files.values())
    about = {
        "title": f"{manifest.provenance.get('checkpoint', inputs.artifact)}, batch {workload.batch}, "
        f"{manifest.precision}, {threads}",
        "provenance": dict(manifest.provenance),
        "repeats": repeats,
        "threads": inputs.threads,
        "engine_bytes": engine_bytes,
        "startup_of": started,
        "startup_seconds": dict(startup),
    }
    better = better_wait_policies(measurements)
    about["slower_wait_policies"] = [_slower(one) for one in measurements if one not in better]
    shown = {one.case.runner: runners[one.case.process] for one in better}
    report = build_report(better, machine, workload, shown, about)
    click.echo(format_report(report))
    click.echo(
        f"engine files {engine_bytes / 2**20:,.0f} MiB; import of runtime {startup['import_runtime']:.2f} s, "
        f"from the start of a process of {started} to the first call of the backbone "
        f"{startup['first_backbone_call']:.2f} s"
    )
    return report


def _slower(measurement: Measurement) -> dict[str, Any]:
    """Return the entry of a measurement with the slower wait policy in the report."""
    return {**dataclasses.asdict(measurement.case), "seconds": dataclasses.asdict(measurement.total)}


def _measure(
    inputs: RunnerInputs, cases: list[Case], settings: Mapping[str, Mapping[str, Any]], repeats: int
) -> tuple[list[Measurement], Machine, dict[tuple[str, str | None], dict[str, Any]]]:
    """Start the runners of `cases`, time them and stop them.

    Returns:
        The measurements, the rates of this machine, and the entry of each runner in the report, by `Case.process`.
    """
    from mar_export.benchmark.machine_probe import Probe

    manifest = Artifact(inputs.artifact).manifest
    warm_ups = {
        name: warm_up_settings(manifest.model, manifest.resolve_sampling(chosen)) for name, chosen in settings.items()
    }
    runners: dict[tuple[str, str | None], Runner] = {}
    try:
        for name, wait_policy in dict.fromkeys(case.process for case in cases):
            runners[name, wait_policy] = Runner(name, inputs, wait_policy)
        with Progress(repeats * len(cases), "timing") as progress:
            measurements, machine = measure(
                runners,
                cases,
                settings,
                warm_ups,
                repeats,
                Probe(inputs.threads).measure,
                progress.update,
            )
        entries = {
            process: {"runs_on": runner.description, "peak_memory_bytes": runner.finish()}
            for process, runner in runners.items()
        }
    finally:
        for runner in runners.values():
            runner.stop()
    return measurements, machine, entries


def _check_presets(names: Iterable[str], manifest: Manifest) -> None:
    for name in names:
        if name in MODEL_SIZES:
            raise RequestError(f"{name} is the size of a model, not a sampling preset: use --model {name}")
        check_choice("--preset", name, [OWN, *PRESETS, *manifest.presets])


def _workload(manifest: Manifest, settings: Mapping[str, Mapping[str, Any]], inputs: RunnerInputs) -> Workload:
    """Resolve the sampling settings of each preset to a plan, and check them before anything is loaded."""
    config = manifest.model
    samplings = {name: manifest.resolve_sampling(overrides) for name, overrides in settings.items()}
    plans = {name: plan_for(config, sampling) for name, sampling in samplings.items()}
    for sampling in samplings.values():
        tell_other_plan(manifest, sampling)
    for plan in plans.values():
        check_batch(inputs.batch, plan.noise_steps, config)
    return Workload(config, inputs.batch, samplings, plans)


def _write(report: dict[str, Any], report_file: pathlib.Path | None, chart: pathlib.Path | None) -> None:
    if report_file is not None:
        write_result_json(report_file, report)
        click.echo(f"report written to {report_file}")
    if chart is not None:
        from mar_export.benchmark.bench_chart import save_chart

        with result_file(chart) as temporary:
            save_chart(report, temporary)
        click.echo(f"chart written to {chart}")


def _weights_name(artifact: pathlib.Path | None) -> str:
    """Return the name of a folder for exports of the weights of an artifact: the start of their hash."""
    assert artifact is not None
    return str(Artifact(artifact).manifest.provenance.get("checkpoint_sha256", "unknown"))[:16]


@contextlib.contextmanager
def _work_folder(work: pathlib.Path | None) -> Iterator[pathlib.Path]:
    """Yield the folder for exports: `work`, or a temporary one that is deleted afterwards."""
    if work is not None:
        if work.exists() and not work.is_dir():
            raise RequestError(f"--work must be a folder, found the file {work}")
        with holding_folder(work):
            yield work
        return
    with scratch_folder() as folder:
        yield folder


def _export_missing(inputs: RunnerInputs, config: Any, owns_artifact: bool, names: Sequence[str]) -> None:
    """Export what the runners need and is not there yet.

    Args:
        inputs: The paths, and the weights to export.
        config: The model.
        owns_artifact: Whether the artifact is the benchmark's, so that it may be made.
        names: The runners.
    """
    if owns_artifact and inputs.random_model is not None and not is_artifact(inputs.artifact):
        from mar_export.artifact.export import export_artifact

        sampling = default_sampling(config)
        if sampling.cfg_scale == 1:
            sampling = dataclasses.replace(sampling, cfg_scale=_MAR_B_GUIDANCE)
        export_artifact(open_checkpoint(inputs), inputs.artifact, click.echo, sampling)
    if AOT_RUNNER in names and not inputs.packages.is_dir():
        click.echo(f"{AOT_RUNNER}: compiling")
        compile_packages(inputs)
    if "naive-onnx" not in names:
        return
    files = [inputs.naive / f"{name}.onnx" for name in naive_specs(config)]
    if not all(file.is_file() for file in files):
        from mar_export.benchmark.naive_graphs import export_naive

        click.echo("naive-onnx: exporting")
        export_naive(checked_checkpoint(inputs)[1].model, inputs.naive)
