"""`mar serve` under load: how fast it is, what it leaves behind, and whether it loses anything.

    python -m benchmarks.serving out/demo/artifact --report docs/benchmarks/data/serving.json
    python -m benchmarks.serving out/demo/artifact --report docs/benchmarks/data/serving.json --pairs 200
    python -m benchmarks.serving out/demo/artifact --report docs/benchmarks/data/serving.json --soak-minutes 20
    python -m benchmarks.serving out/demo/artifact --report docs/benchmarks/data/serving.json --chaos-requests 10000

The first command measures images a second and latencies of `mar serve`, of `mar serve --max-batch 1` and of
`benchmarks.plain_handler` at 1, 4, 8 and 16 clients, in turns, and of `Generator.generate` alone. The second one asks
`mar serve` and `Generator.generate` for the same image, one right after the other, so that a machine whose speed drifts
does so for both. The others measure one service. Each command writes its own part of the report and leaves the others.
It writes while it measures: the speed after each round, the soak and the faulty requests every few seconds into a part
named `unfinished`, which the finished one replaces.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks import serving_tables as tables
from benchmarks.faulty_requests import PATH as GENERATIONS
from benchmarks.faulty_requests import AskedImage, FaultyRequests, images_asked
from benchmarks.load import Load, Target, ask, draw_alone, open_session, put_under_load
from benchmarks.server_processes import Settings, plain, service, usage
from benchmarks.serving_tables import ALONE, MANY, PLAIN, SERVICE, UNBATCHED
from mar_export.benchmark.report import provenance
from runtime.backends import available_threads
from runtime.cli.options import PATH, threads_option
from runtime.errors import MarError
from runtime.generator import Generator
from runtime.progress import Progress
from runtime.storage.files import check_writable, write_json
from runtime.storage.structured_files import FaultReport, read_json_object
from tests.helpers.running_services import figures

CLIENTS = (1, 4, MANY, 16)
CHAOS_CLIENTS = 16
SETTLE_SECONDS = 120.0
"""The first part of a soak, in which memory may grow."""

_LIBRARIES = ("numpy", "onnxruntime", "starlette", "uvicorn", "fastapi", "aiohttp")
_TURN_SECONDS, _WARM_UP_SECONDS, _SAMPLE_SECONDS, _WRITE_SECONDS = 8.0, 2.0, 5.0, 10.0
_WARM_UP_PAIRS = 5
_LONGEST_CHAOS, _LONGEST_DRAIN = 3600.0, 60.0  # seconds


class Writer:
    """Writes one part of a report file, and leaves the others."""

    def __init__(self, file: pathlib.Path, name: str, about: Mapping[str, Any]) -> None:
        """Read what the file has.

        Args:
            file: The JSON file.
            name: The name of the part.
            about: What the part begins with.

        Raises:
            MarError: The file is no report.
        """
        self._file, self._name, self._about = file, name, about
        self.report = read_json_object(file, FaultReport(MarError, "remove it")) if file.exists() else {}
        self._written = -math.inf

    def write(self, measured: Mapping[str, Any]) -> None:
        """Write the part with what was measured."""
        self.report.pop(f"{self._name}_unfinished", None)
        self.report[self._name] = {**self._about, **measured}
        write_json(self._file, self.report)

    def write_unfinished(self, measured: Mapping[str, Any]) -> None:
        """Write what was measured so far beside the part, unless that was done a moment ago."""
        if (now := time.monotonic()) > self._written + _WRITE_SECONDS:
            self._written = now
            self.report[f"{self._name}_unfinished"] = {**self._about, **measured}
            write_json(self._file, self.report)


class Turn(NamedTuple):
    """A server that is asked by some clients, in a round; round -1 warms up."""

    round: int
    clients: int
    server: str


def turns(rounds: int) -> list[Turn]:
    """Return all turns: in each round each number of clients asks each server. The first one changes by round."""
    found = []
    for number in range(-1, rounds):
        for clients in CLIENTS:
            servers = [SERVICE, UNBATCHED, PLAIN, *([ALONE] if clients == 1 else [])]
            first = number % len(servers)
            found += [Turn(number, clients, name) for name in (*servers[first:], *servers[:first])]
    return found


def measure_speed(settings: Settings, generator: Generator, rounds: int, writer: Writer) -> None:
    """Put all servers under load in turns, and write the part `speed` of the report after each round."""
    classes, runs = generator.manifest.model.class_num, []
    with contextlib.ExitStack() as started:
        ours, unbatched, other = (
            started.enter_context(context)
            for context in (service(settings), service(settings, "--max-batch", "1"), plain(settings))
        )
        targets = {
            SERVICE: service_target(SERVICE, ours.url, classes),
            UNBATCHED: service_target(UNBATCHED, unbatched.url, classes),
            PLAIN: Target(PLAIN, f"{other.url}/images", lambda number: {"label": number % classes, "seed": number}),
        }
        draw = functools.partial(_draw, generator, settings.preset)
        schedule = turns(rounds)
        turns_of_round = len(schedule) // (rounds + 1)
        progress = started.enter_context(Progress(len(schedule), "measuring", unit="turns"))
        for turn in schedule:
            time_limit = _WARM_UP_SECONDS if turn.round < 0 else _TURN_SECONDS
            load = _take(turn, targets, draw, time_limit)
            if turn.round >= 0:
                runs.append({**turn._asdict(), **load.figures()})
            progress.update()
            if turn.round >= 0 and len(runs) % turns_of_round == 0:
                writer.write({"rounds": turn.round + 1, "seconds": _TURN_SECONDS, "runs": runs})


def _take(turn: Turn, targets: Mapping[str, Target], draw: Callable[[int], object], seconds: float) -> Load:
    if turn.server == ALONE:
        return draw_alone(draw, seconds)
    return asyncio.run(put_under_load(targets[turn.server], turn.clients, seconds))


def _draw(generator: Generator, preset: str, number: int) -> None:
    generator.generate([number % generator.manifest.model.class_num], seed=number, preset=preset)


def service_target(name: str, url: str, classes: int) -> Target:
    """Return what clients ask a service of this project: each time one image of the next class and seed."""
    return Target(name, f"{url}{GENERATIONS}", lambda number: {"prompt": str(number % classes), "seed": number})


def measure_pairs(settings: Settings, generator: Generator, count: int, writer: Writer) -> None:
    """Draw images by `mar serve` for one client and by `Generator.generate`, and write the part `pairs` of the report.

    Each image is drawn by both, one right after the other; which comes first changes from image to image.
    """
    draw = functools.partial(_draw, generator, settings.preset)
    with service(settings) as running:
        target = service_target(SERVICE, running.url, generator.manifest.model.class_num)
        seconds = asyncio.run(draw_in_pairs(target, draw, count))
    writer.write({"seconds": seconds})


async def draw_in_pairs(target: Target, draw: Callable[[int], object], count: int) -> list[dict[str, float]]:
    """Return the seconds of the images 0 to `count` - 1 by `SERVICE`, the target, and by `ALONE`, which `draw` is."""

    async def served(number: int) -> float:
        began = time.perf_counter()
        await ask(session, target, number)
        return time.perf_counter() - began

    async def alone(number: int) -> float:
        began = time.perf_counter()
        draw(number)
        return time.perf_counter() - began

    pairs, both = list[dict[str, float]](), {SERVICE: served, ALONE: alone}
    async with open_session() as session:
        with Progress(count, "measuring", unit="pairs") as progress:
            for number in range(-_WARM_UP_PAIRS, count):
                order = list(both) if number % 2 else list(reversed(both))
                pairs.append({name: await both[name](abs(number)) for name in order})
                progress.update(int(number >= 0))
    return pairs[_WARM_UP_PAIRS:]


async def soak(
    target: Target,
    pid: int,
    seconds: float,
    every: float = _SAMPLE_SECONDS,
    seen: Callable[[list[dict[str, float]]], None] = lambda samples: None,
) -> tuple[Load, list[dict[str, float]]]:
    """Put a service under load, and look at its process all the time.

    Args:
        target: The service.
        pid: Its process.
        seconds: How long.
        every: After how many seconds each sample is taken.
        seen: Called with all samples after each one.

    Returns:
        What the clients saw, and the samples: `usage` of the process, each with its second.
    """
    samples: list[dict[str, float]] = []
    with Progress(math.ceil(seconds), "soaking", unit="seconds") as progress:

        async def watch() -> None:
            started = time.monotonic()
            while True:
                await asyncio.sleep(every)
                samples.append({"second": time.monotonic() - started, **usage(pid)})
                seen(samples)
                progress.update(math.ceil(every))

        watching = asyncio.create_task(watch())
        try:
            load = await put_under_load(target, MANY, seconds)
        finally:
            watching.cancel()
    if watching.done() and not watching.cancelled():
        watching.result()
    return load, samples


def growth(samples: Sequence[Mapping[str, float]], settle_seconds: float) -> dict[str, dict[str, float]]:
    """Return, for what is sampled, the medians of the first and of the last fifth of the samples after settling."""
    settled = [sample for sample in samples if sample["second"] >= settle_seconds]
    if not settled:
        raise MarError(f"a soak of less than {settle_seconds:g} s has nothing to compare; give more --soak-minutes")
    count = max(1, len(settled) // 5)
    names = [name for name in settled[0] if name != "second"]

    def medians(part: Sequence[Mapping[str, float]]) -> dict[str, float]:
        return {name: statistics.median(sample[name] for sample in part) for name in names}

    first, last = medians(settled[:count]), medians(settled[-count:])
    return {name: {"first": first[name], "last": last[name]} for name in names}


def measure_soak(settings: Settings, generator: Generator, seconds: float, writer: Writer) -> None:
    """Put `mar serve` under load for long, and write the part `soak` of the report."""

    def seen(samples: list[dict[str, float]]) -> None:
        writer.write_unfinished({"samples": samples})

    with service(settings) as running:
        target = service_target(SERVICE, running.url, generator.manifest.model.class_num)
        load, samples = asyncio.run(soak(target, running.process.pid, seconds, seen=seen))
    writer.write(
        {
            "clients": MANY,
            "seconds": load.seconds,
            "settle_seconds": SETTLE_SECONDS,
            **load.figures(),
            "growth": growth(samples, SETTLE_SECONDS),
            "samples": samples,
        }
    )


def measure_chaos(settings: Settings, generator: Generator, requests: int, writer: Writer) -> None:
    """Send requests of all kinds to `mar serve`, for an hour at most, and write the part `chaos` of the report."""
    classes = generator.manifest.model.class_num
    asked = {each for number in range(requests) for each in images_asked(number, classes)}
    expected = draw_each(generator, settings.preset, sorted(asked))
    with service(settings) as running:
        clients = FaultyRequests(running.port, classes, expected)
        with Progress(requests, "asking", unit="requests") as progress:

            def ended() -> None:
                progress.update()
                writer.write_unfinished(clients.report())

            asyncio.run(clients.run(requests, CHAOS_CLIENTS, _LONGEST_CHAOS, ended))
        left = left_over(running.port)
    writer.write({"clients": CHAOS_CLIENTS, "left": left, "exit_code": running.process.returncode, **clients.report()})


def draw_each(
    generator: Generator, preset: str | None, asked: Sequence[AskedImage]
) -> dict[AskedImage, NDArray[np.uint8]]:
    """Draw images one by one, as `Generator.generate` does without a service."""
    drawn = {}
    with Progress(len(asked), "drawing what is expected", unit="images") as progress:
        for label, seed, index in asked:
            images = generator.generate([label], seed=seed, index=[index], preset=preset).images
            if images is None:
                raise MarError("the artifact has no decoder, so it makes no images; export it with --tokenizer")
            drawn[label, seed, index] = images[0]
            progress.update()
    return drawn


def left_over(port: int) -> dict[str, float]:
    """Return how many requests and images a service still has in hand, after a time in which it can finish them."""
    deadline = time.monotonic() + _LONGEST_DRAIN
    while True:
        found = figures(port)
        queued = sum(value for name, value in found.items() if name.startswith("mar_queue_depth{"))
        left = {"in_progress": found["mar_requests_in_progress"], "queued": queued}
        if not any(left.values()) or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


@click.command()
@click.argument("artifact", type=PATH)
@click.option("--report", "report_file", type=PATH, required=True, help="The JSON file; other parts in it are kept.")
@click.option("--preset", default="fast", show_default=True, help="The preset of all images.")
@click.option(
    "--rounds", type=click.IntRange(1), default=5, show_default=True, help="How often each server is measured."
)
@click.option("--pairs", type=click.IntRange(1), help="Measure one client beside Generator.generate instead.")
@click.option("--soak-minutes", type=click.FloatRange(3), help=f"Measure what grows under {MANY} clients instead.")
@click.option("--chaos-requests", type=click.IntRange(10), help="Count lost and wrong answers instead.")
@threads_option
def serving(
    artifact: pathlib.Path,
    report_file: pathlib.Path,
    preset: str,
    rounds: int,
    pairs: int | None,
    soak_minutes: float | None,
    chaos_requests: int | None,
    threads: int | None,
) -> None:
    """Measure `mar serve` with ARTIFACT under load."""
    check_writable(report_file)
    settings = Settings(artifact, preset, threads)
    about = provenance(_LIBRARIES)
    machine = {**about["machine"], "threads": threads or available_threads()}
    asked = {"pairs": pairs, "soak": soak_minutes, "chaos": chaos_requests}
    name = next((name for name, value in asked.items() if value is not None), "speed")
    writer = Writer(report_file, name, {**about, "machine": machine, "preset": preset})
    with Generator.load(artifact, threads=threads) as generator:
        if pairs is not None:
            measure_pairs(settings, generator, pairs, writer)
        elif soak_minutes is not None:
            measure_soak(settings, generator, 60 * soak_minutes, writer)
        elif chaos_requests is not None:
            measure_chaos(settings, generator, chaos_requests, writer)
        else:
            measure_speed(settings, generator, rounds, writer)
    click.echo(tables.TABLES[name](writer.report))


if __name__ == "__main__":
    try:
        serving(standalone_mode=False)
    except (MarError, click.UsageError) as error:
        sys.exit(f"serving: {error}")
