"""The start of a process that generates, and its memory: this checkout beside another one, in turns.

    python -m benchmarks.startup OUT.json ARTIFACT --before ../before --rounds 15

In each round, fresh processes of both checkouts start, up to the first call of the backbone with every hash compared.
Afterwards one process of each generates an image with the preset `fast`. The files should be in the page cache: a round
before the first is not counted.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import sys
from collections.abc import Callable, Mapping
from typing import Any

import click
import numpy as np

from mar_export.benchmark.startup_time import first_call_seconds, import_seconds, interpreter_seconds, run_fresh
from mar_export.benchmark.timing import Timing
from runtime.artifact.artifact_folder import Artifact
from runtime.cli.options import PATH
from runtime.errors import MarError
from runtime.storage.files import write_json
from runtime.storage.structured_files import parse_json

CHECKOUT = pathlib.Path(__file__).resolve().parents[1]
"""The folder of this code."""
_COMMIT = "from runtime.provenance import commit; print(commit())"
# The kernel's account of the whole process, in which pages of mapped files count.
_MEMORY = """
import json, pathlib, re, sys
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
from runtime.generator import Generator
generator = Generator.load(sys.argv[1], threads=int(sys.argv[2]))
loaded = peak()
generator.generate([0], preset="fast")
print(json.dumps({"loaded": loaded, "with_image": peak()}))
"""


@click.command()
@click.argument("out", type=PATH)
@click.argument("artifact", type=PATH)
@click.option("--before", type=PATH, required=True, help="The folder of the other checkout.")
@click.option(
    "--artifact-before",
    type=PATH,
    help="The model as the other checkout exports it, if it reads another format version.",
)
@click.option("--rounds", type=click.IntRange(1), default=15, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
def startup(
    out: pathlib.Path,
    artifact: pathlib.Path,
    before: pathlib.Path,
    artifact_before: pathlib.Path | None,
    rounds: int,
    threads: int,
) -> None:
    """Measure the starts and the memory of both checkouts with ARTIFACT, and write OUT as JSON."""
    artifacts = {before.resolve(): (artifact_before or artifact).resolve(), CHECKOUT: artifact.resolve()}
    figures = compare(artifacts, rounds, threads)
    write_json(out, figures)
    print(json.dumps({name: figures[name] for name in ("load", "checkouts", "ratio")}, indent=2))


def compare(artifacts: Mapping[pathlib.Path, pathlib.Path], rounds: int, threads: int) -> dict[str, Any]:
    """Return the starts of both checkouts, in seconds, and their memory, in bytes.

    Args:
        artifacts: The absolute path of the other checkout and of this one, each with that of its artifact.
        rounds: The number of starts of each.
        threads: The number of processor threads.
    """
    load = os.getloadavg()
    checkouts = dict(zip(("before", "now"), artifacts, strict=True))

    def first_call(checkout: pathlib.Path) -> float:
        return first_call_seconds(artifacts[checkout], threads, "onnxruntime", "cpu", checkout, {"labels": [0]})

    def import_runtime(checkout: pathlib.Path) -> float:
        return import_seconds(checkout) - interpreter_seconds()

    measures: dict[str, Callable[[pathlib.Path], float]] = {
        "first_backbone_call": first_call,
        "import_runtime": import_runtime,
    }
    taken = _in_turns(checkouts, measures, rounds)
    engine_bytes = sum(entry.bytes for entry in Artifact(artifacts[CHECKOUT]).manifest.files.values())
    return {
        "load": {"before": load, "after": os.getloadavg()},
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": importlib.metadata.version("onnxruntime"),
        "rounds": rounds,
        "threads": threads,
        "engine_bytes": engine_bytes,
        "checkouts": {
            name: {
                "commit": run_fresh(_COMMIT, checkout=checkout).strip(),
                "seconds": {measure: vars(Timing.of(taken[name][measure])) for measure in measures},
                "peak_bytes": parse_json(run_fresh(_MEMORY, str(artifacts[checkout]), str(threads), checkout=checkout)),
            }
            for name, checkout in checkouts.items()
        },
        "ratio": _ratios(*(taken[name]["first_backbone_call"] for name in checkouts)),
    }


def _in_turns(
    checkouts: dict[str, pathlib.Path], measures: dict[str, Callable[[pathlib.Path], float]], rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Return what each measure gave for each checkout in every round but the first."""
    taken: dict[str, dict[str, list[float]]] = {name: {measure: [] for measure in measures} for name in checkouts}
    for number in range(rounds + 1):
        for measure, measured in measures.items():
            for name, checkout in checkouts.items():
                seconds = measured(checkout)
                if number:
                    taken[name][measure].append(seconds)
    return taken


def _ratios(before: list[float], now: list[float]) -> dict[str, float]:
    """Return this checkout's share of the other's time, round by round."""
    ratios = [b / a for a, b in zip(before, now, strict=True)]
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


if __name__ == "__main__":
    try:
        startup()
    except MarError as error:
        sys.exit(f"startup: {error}")
