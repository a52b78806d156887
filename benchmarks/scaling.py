"""How the cost of an image grows with the batch, the threads, the iterations and the tokens.

    python -m benchmarks.scaling docs/benchmarks/data/scaling.json batch
    python -m benchmarks.scaling docs/benchmarks/data/scaling.json batch --values 1,16 --precision fp32
    python -m benchmarks.scaling out/example.json tokens --checkpoint examples/fashion-mnist --cfg-scale 2

Each command measures values of one axis, and leaves what the file has of the others; a row that is measured again is
replaced. It writes the file after each generation, and draws the chart beside it at the end. In a round, all runners
generate the first value one after the other, then the next value, and so on. Values that need other engines or other
threads (`tokens`, `threads`) have rounds of their own. A runner that is not there, is not installed or fails is left
out, and the report says why.

The model is MAR-B with random weights, or a checkpoint. Its engines in float32 and int8 are exported to `out/scaling`,
anew for each commit.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.scaling_chart import scaling_chart
from benchmarks.scaling_engines import Engines
from benchmarks.scaling_report import Report
from benchmarks.scaling_rows import AXES, Point, Series
from benchmarks.scaling_tables import TABLES
from mar_export.benchmark.machine_probe import Probe
from mar_export.benchmark.runners import (
    AOT_RUNNER,
    RUNNERS,
    Runner,
    RunnerInputs,
    Stages,
    compile_packages,
    open_checkpoint,
)
from mar_export.torch_backends.torch_cpu import missing_compiler
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import Manifest
from runtime.backends import available_threads
from runtime.cost.operations import plan_costs
from runtime.errors import BackendError, MarError, RequestError
from runtime.model.families import check_supported, family_of, imported
from runtime.model.family_config import FamilyConfig
from runtime.sampling.constraints import default_sampling, plan_for, short_chain_settings
from runtime.sampling.presets import resolve_sampling
from runtime.storage.files import check_writable
from training.checkpoints.checkpoint import Checkpoint

RUNNERS_OF = {
    "fp32": ("runtime", "runtime-openvino-cpu", "eager", "compile", AOT_RUNNER),
    "int8": ("runtime", "runtime-openvino-cpu"),
}
"""The runners of each precision that are measured unless others are named."""

_COMPILED = ("compile",)


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is measured.

    Attributes:
        engines: The artifacts.
        series: What generates.
        rounds: How often each series generates each point.
        deadline: The time of `time.monotonic` by which rounds end, but for the first one of each set of runners.
    """

    engines: Engines
    series: Sequence[Series]
    rounds: int
    deadline: float


class Running:
    """The processes of runners with the same engines and threads. It is a context manager, which ends them."""

    def __init__(self, report: Report) -> None:
        """Start with no process; series that fail are skipped in `report`."""
        self._report, self._runners = report, dict[Series, Runner]()

    def __enter__(self) -> Running:
        """Return the processes."""
        return self

    def __exit__(self, *raised: object) -> None:
        """End all processes."""
        for runner in self._runners.values():
            runner.stop()

    def open(self, series: Series, inputs: RunnerInputs) -> None:
        """Start the process of a series, unless its runner is not there or cannot start."""
        if series.runner not in RUNNERS:
            self._report.skip(series, "there is no such runner")
            return
        try:
            if series.runner == AOT_RUNNER:
                _compile_missing(inputs)
            self._runners[series] = Runner(series.runner, inputs)
        except BackendError as error:
            self._report.skip(series, str(error))

    def warm_up(self, request: Mapping[str, Any], short_chain: Mapping[str, Any]) -> None:
        """Let each series generate something short of the sizes of a request, and so allocate its memory.

        What compiles for sizes gets all iterations, since each can have others.

        Raises:
            BackendError: No series is left.
        """
        for series in list(self._runners):
            iterations = request["iterations"] if series.runner in _COMPILED else 2
            self._take(series, {**request, **short_chain, "iterations": iterations})
        if not self._runners:
            raise BackendError("no runner is left to measure")

    def generate(self, request: Mapping[str, Any]) -> Iterator[tuple[Series, float, Stages]]:
        """Let each series generate a batch, one after the other; one that fails is ended.

        Yields:
            The series, and what `Runner.generate` returns.
        """
        for series in list(self._runners):
            if (taken := self._take(series, request)) is not None:
                yield series, *taken

    def _take(self, series: Series, request: Mapping[str, Any]) -> tuple[float, Stages] | None:
        try:
            return self._runners[series].generate(request)
        except BackendError as error:
            self._report.skip(series, str(error))
            self._runners.pop(series).stop()
            return None


def _compile_missing(inputs: RunnerInputs) -> None:
    """Compile the packages of `aot-inductor` unless they are there. Raises `BackendError` without a compiler."""
    if inputs.packages.is_dir():
        return
    if (reason := missing_compiler()) is not None:
        raise BackendError(reason)
    print(f"compiling for {AOT_RUNNER}", flush=True)
    compile_packages(inputs)


def measure(workload: Workload, points: Sequence[Point], report: Report) -> None:
    """Measure all points. Those of the same tokens and threads share the processes of the runners."""
    precisions = dict.fromkeys(series.precision for series in workload.series)
    for (tokens, threads), group in itertools.groupby(points, lambda point: (point.tokens, point.threads)):
        artifacts = {precision: workload.engines.artifact(precision, tokens) for precision in precisions}
        manifest = Artifact(next(iter(artifacts.values()))).manifest
        with Running(report) as running:
            for series in workload.series:
                running.open(series, _inputs(workload.engines.source, artifacts[series.precision], threads))
            _measure_rounds(workload, list(group), manifest, running, report)


def _measure_rounds(
    workload: Workload, points: Sequence[Point], manifest: Manifest, running: Running, report: Report
) -> None:
    """Measure points that share the processes of the runners, in rounds."""
    model, threads = manifest.model, points[0].threads
    requests = {point: _request(workload, model, point) for point in points}
    operations = {point: operations_of(manifest, point, workload.engines.settings) for point in points}
    for point, request in requests.items():
        print(f"warming up: {_describe(point)}", flush=True)
        running.warm_up(request, short_chain_settings(model, 2))
    probe, lasted = Probe(threads), 0.0
    for number in range(workload.rounds):
        began = time.monotonic()
        if number and began + lasted > workload.deadline:
            break
        report.add_machine(threads, probe.measure().operations / 1e9)
        for point, request in requests.items():
            for series, seconds, stages in running.generate(request):
                report.add(point, series, operations[point], seconds, stages)
                name = f"{series.runner} in {series.precision}"
                print(f"round {number + 1}, {_describe(point)}, {name}: {seconds:.3g} s", flush=True)
        lasted = time.monotonic() - began
        print(f"round {number + 1} took {lasted / 60:.1f} minutes", flush=True)


def _request(workload: Workload, model: FamilyConfig, point: Point) -> dict[str, Any]:
    """Return what a runner generates for a point."""
    example: dict[str, Any] = imported(family_of(model).example)(model, point.batch)
    return {**example, **workload.engines.settings, "iterations": point.iterations}


def operations_of(manifest: Manifest, point: Point, settings: Mapping[str, Any]) -> dict[str, float]:
    """Return the operations of each engine for a batch.

    Args:
        manifest: The manifest of the artifact.
        point: What is generated.
        settings: The sampling settings, but for the iterations.
    """
    sampling = manifest.resolve_sampling({**settings, "iterations": point.iterations})
    costs = plan_costs(manifest.model, plan_for(manifest.model, sampling), point.batch)
    return {engine: cost.operations for engine, cost in costs.items()}


def _describe(point: Point) -> str:
    return ", ".join(f"{name} {value}" for name, value in point._asdict().items())


def _inputs(source: RunnerInputs, artifact: pathlib.Path, threads: int) -> RunnerInputs:
    """Return what a runner needs to start: an artifact of the weights of `source`."""
    model = Artifact(artifact).manifest.model
    example: dict[str, Any] = imported(family_of(model).example)(model, 1)
    packages = artifact.with_name(f"{artifact.name}-packages-{threads}")
    return dataclasses.replace(source, artifact=artifact, packages=packages, request=example, threads=threads)


def points_of(axis: str, values: Sequence[int], base: Point) -> list[Point]:
    """Return the points of an axis.

    Args:
        axis: The field of the points that changes.
        values: Its values.
        base: The other fields.

    Raises:
        RequestError: The tokens are no square, or fewer than the iterations.
    """
    points = [base._replace(**{axis: value}) for value in values]
    for point in points:
        if math.isqrt(point.tokens) ** 2 != point.tokens:
            raise RequestError(f"--values: the tokens must be a square such as 64, found {point.tokens}")
        if point.iterations > point.tokens:
            raise RequestError(
                f"--values: {point.tokens} tokens have at most {point.tokens} iterations, found {point.iterations}"
            )
    return points


def wanted_series(precisions: Sequence[str], names: Sequence[str]) -> list[Series]:
    """Return the series of some precisions: those of `RUNNERS_OF`, or the runners `names`, of which int8 has fewer.

    Raises:
        RequestError: There are none.
    """
    found = [
        Series(precision, name)
        for precision in precisions
        for name in dict.fromkeys(names or RUNNERS_OF[precision])
        if precision == "fp32" or name in RUNNERS_OF[precision]
    ]
    if not found:
        raise RequestError(f"--runner: int8 has {', '.join(RUNNERS_OF['int8'])}, found {', '.join(names)}")
    return found


def main(arguments: argparse.Namespace) -> None:
    """Measure what the arguments ask for, print its table, and draw the chart."""
    deadline = time.monotonic() + 60 * arguments.minutes
    check_writable(arguments.report)
    threads = arguments.threads or available_threads()
    source = RunnerInputs(
        artifact=pathlib.Path(),
        checkpoint=arguments.checkpoint,
        config_file=None,
        random_model=None if arguments.checkpoint else arguments.model,
        naive=pathlib.Path(),
        packages=pathlib.Path(),
        request={},
        batch=arguments.batch,
        threads=threads,
    )
    checkpoint = open_checkpoint(source)
    model, name = check_supported(checkpoint.model.config, "mar export --image-size"), _name(source, checkpoint)
    settings = {"preset": arguments.preset, "cfg_scale": arguments.cfg_scale}
    report = Report(arguments.report, arguments.axis, {"model": checkpoint.source, **settings})
    del checkpoint
    iterations = resolve_sampling(default_sampling(model), model, settings).iterations
    base = Point(arguments.batch, threads, iterations or model.tokens, model.tokens)
    points = points_of(arguments.axis, arguments.values or AXES[arguments.axis], base)
    series = wanted_series(arguments.precision or list(RUNNERS_OF), arguments.runner)
    measure(Workload(Engines(source, name, settings), series, arguments.rounds, deadline), points, report)
    scaling_chart(report.value, arguments.report.with_suffix(".png"))
    print(TABLES[arguments.axis](report.value))


def _name(source: RunnerInputs, checkpoint: Checkpoint) -> str:
    """Return the name of the weights for folders."""
    return source.random_model or f"{pathlib.Path(checkpoint.source).stem}-{checkpoint.sha256[:8]}"


def _numbers(text: str) -> tuple[int, ...]:
    """Return the numbers of an option, which has commas between them."""
    numbers = tuple(int(part) for part in text.split(","))
    if min(numbers) < 1:
        raise ValueError
    return numbers


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("report", type=pathlib.Path, help="the JSON file; other rows in it are kept")
    found.add_argument("axis", choices=AXES, help="what changes from row to row")
    found.add_argument("--values", type=_numbers, metavar="N,N", help="its values; by default those of the page")
    found.add_argument("--model", default="mar_base", help="a named size, with random weights")
    found.add_argument("--checkpoint", type=pathlib.Path, help="a checkpoint in place of random weights")
    found.add_argument("--precision", action="append", choices=RUNNERS_OF, help="by default both")
    found.add_argument(
        "--runner", action="append", default=[], metavar="NAME", help="a runner of mar bench; repeatable"
    )
    found.add_argument("--preset", default="fast")
    found.add_argument("--cfg-scale", type=float, default=2.9, help="by default that of the published MAR-B")
    found.add_argument("--batch", type=int, default=1, help="the images of a batch, for the other axes")
    found.add_argument("--threads", type=int, help="the processor threads, for the other axes; by default all")
    found.add_argument("--rounds", type=int, default=3)
    found.add_argument(
        "--minutes", type=float, default=math.inf, help="begin no round that would end later, but for a first one"
    )
    return found


if __name__ == "__main__":
    try:
        main(parser().parse_args())
    except MarError as error:
        sys.exit(f"scaling: {error}")
