"""The time that the backbone takes for an image with and without the local iterations of ReCAP.

    python -m benchmarks.recap docs/benchmarks/data/recap.json --threads 2

exports MAR-B with random weights to `out/recap` if it is not there, and takes a quarter of an hour on a quiet machine
of two cores. Settings run in turn. Diffusion chains have two steps, because only the backbone is measured.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from mar_export.artifact.export import export_artifact
from runtime.backends import available_threads
from runtime.cost.operations import plan_costs
from runtime.engine_clocks import with_clocks
from runtime.generator import Generator
from runtime.model.recap_engines import FULL, LOCAL, RECAP_ENGINES
from runtime.provenance import commit, processor_name, without_secrets
from runtime.storage.files import write_json
from training.checkpoints.random_weights import random_checkpoint

FOLDER = pathlib.Path("out/recap")
BACKBONES = ("backbone", FULL, LOCAL)
REQUEST: dict[str, Any] = {"preset": "exact", "cfg_scale": 2.9, "diffusion_steps": 2, "start_timestep": 900}


def settings_to_compare(iterations: int) -> dict[str, dict[str, Any]]:
    """Return the settings that are compared, by their name: full passes only, and groups of several lengths."""
    compared: dict[str, dict[str, Any]] = {"full passes only": {}}
    for plain, local in ((iterations // 2, 1), (0, 1), (0, 3)):
        for reused in (False, True):
            name = f"p = {plain}, u = {local}, buffer {'reused' if reused else 'anew'}"
            compared[name] = {
                "recap_plain_iterations": plain,
                "recap_local_iterations": local,
                "recap_cache_buffer": reused,
            }
    return compared


def main(out: pathlib.Path, model: str, backend: str, threads: int, iterations: int, rounds: int) -> None:
    """Measure all settings, print them as a table, and write the figures."""
    artifact = FOLDER / model
    if not artifact.exists():
        artifact.parent.mkdir(parents=True, exist_ok=True)
        export_artifact(random_checkpoint(model), artifact, print, optional=RECAP_ENGINES)
    requests = {
        name: {**REQUEST, "iterations": iterations, **settings}
        for name, settings in settings_to_compare(iterations).items()
    }
    with Generator.load(artifact, backend=backend, threads=threads) as generator:
        seconds = measure(generator, requests, rounds)
        compared = [describe(generator, name, requests[name], seconds[name]) for name in requests]
        runs_on = generator.description
    figures = {
        "model": f"{model}, random weights, float32, one image, guidance",
        "iterations": iterations,
        "runs_on": runs_on,
        "processor": processor_name(),
        "commit": commit(),
        "command": without_secrets(sys.argv),
        "compared": compared,
    }
    write_json(out, figures)
    print(recap_table(figures))


def measure(
    generator: Generator, requests: Mapping[str, Mapping[str, Any]], rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Return the seconds in each backbone of each round, by setting and engine. The settings run in turn."""
    timed, clocks = with_clocks(generator)
    timed.generate([0], **{**REQUEST, "iterations": 4, "recap_local_iterations": 1})  # which allocates memory
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in requests}
    for number in range(rounds):
        for name, request in requests.items():
            for clock in clocks.values():
                clock.seconds = 0.0
            timed.generate([0], **request)
            for engine in BACKBONES:
                seconds[name].setdefault(engine, []).append(clocks[engine].seconds)
            total = sum(clocks[engine].seconds for engine in BACKBONES)
            print(f"round {number + 1}, {name}: {total:.2f} s", flush=True)
    return seconds


def describe(
    generator: Generator, name: str, request: Mapping[str, Any], seconds: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """Return the figures of one setting."""
    settings: Any = request
    plan = generator.plan(**settings)
    costs = plan_costs(generator.manifest.model, plan)
    return {
        "name": name,
        "settings": dict(request),
        "full_passes": sum(not iteration.local for iteration in plan.iterations),
        "operations": sum(cost.operations for engine, cost in costs.items() if engine in BACKBONES),
        "seconds": [sum(times) for times in zip(*seconds.values(), strict=True)],
        "seconds_by_engine": dict(seconds),
    }


def recap_table(figures: Mapping[str, Any]) -> str:
    """Return the figures as a table: medians, their spread, and the gain against the first setting."""
    compared, iterations = figures["compared"], figures["iterations"]
    operations, slow = compared[0]["operations"], statistics.median(compared[0]["seconds"])
    lines = [
        f"The backbone of {figures['model']}, {iterations} iterations, {len(compared[0]['seconds'])} rounds in turns. "
        f"{figures['runs_on']}; {figures['processor']}, commit {figures['commit']}.",
        "",
        "| setting | full passes | TFLOP | fewer operations | seconds, least to most | faster |",
        "|---|---|---|---|---|---|",
    ]
    for entry in compared:
        taken = entry["seconds"]
        median = statistics.median(taken)
        lines.append(
            f"| {entry['name']} | {entry['full_passes']} | {entry['operations'] / 1e12:.2f} "
            f"| {operations / entry['operations']:.2f}x | {median:.2f} ({min(taken):.2f} to {max(taken):.2f}) "
            f"| {slow / median:.2f}x |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=pathlib.Path, help="the JSON file to write")
    parser.add_argument("--model", default="mar_base")
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--threads", type=int, default=available_threads())
    parser.add_argument("--iterations", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    main(arguments.out, arguments.model, arguments.backend, arguments.threads, arguments.iterations, arguments.rounds)
