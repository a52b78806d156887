"""The memory and the time of an image by the size of the groups in which the modulation of the head is computed.

    python -m benchmarks.modulation_groups docs/benchmarks/data/modulation-groups.json int8=ARTIFACT fp32=ARTIFACT

draws images of `fast` with groups of 16, 8, 4 and 2 MiB; in `runtime.loops.host_loop` the size is a constant. The peak
of memory is of a new process that draws one image. The times are of one process for all sizes, in turns.
"""

from __future__ import annotations

import argparse
import multiprocessing
import pathlib
import statistics
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from mar_export.benchmark.peak_memory import peak_memory_bytes
from runtime.artifact.artifact_folder import Artifact
from runtime.backends import available_threads
from runtime.generator import Generator
from runtime.loops import host_loop
from runtime.provenance import commit, processor_name, without_secrets
from runtime.storage.files import write_json

SIZES = (16, 8, 4, 2)  # MiB


def main(out: pathlib.Path, artifacts: Mapping[str, pathlib.Path], threads: int, rounds: int) -> None:
    """Measure all artifacts, print the table, and write the figures."""
    figures = {
        "threads": threads,
        "rounds": rounds,
        "processor": processor_name(),
        "commit": commit(),
        "command": without_secrets(sys.argv),
        "artifacts": {name: measure(artifact, threads, rounds) for name, artifact in artifacts.items()},
    }
    write_json(out, figures)
    print(modulation_groups_table(figures))


def measure(artifact: pathlib.Path, threads: int, rounds: int) -> dict[str, Any]:
    """Return the bytes of the engines of an artifact, and the peak and the seconds of an image for each size."""
    peaks = {}
    for size in SIZES:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            peaks[size] = pool.submit(peak_of_an_image, artifact, threads, size).result()
    seconds: dict[int, list[float]] = {size: [] for size in SIZES}
    with Generator.load(artifact, threads=threads) as generator:
        draw(generator, SIZES[0])
        for _ in range(rounds):
            for size, times in seconds.items():
                started = time.perf_counter()
                draw(generator, size)
                times.append(time.perf_counter() - started)
    manifest = Artifact(artifact).manifest
    engines = sum(manifest.graph_bytes(name) for name in manifest.engines)
    return {"engine_bytes": engines, "peaks": peaks, "seconds": seconds}


def peak_of_an_image(artifact: pathlib.Path, threads: int, size: int) -> int:
    """Draw one image, and return the peak of the memory of this process."""
    with Generator.load(artifact, threads=threads) as generator:
        draw(generator, size)
        return peak_memory_bytes()


def draw(generator: Generator, size: int) -> None:
    """Draw one image with groups of `size` MiB."""
    host_loop._MODULATION_BYTES = size * 2**20
    generator.generate([0], preset="fast")


def modulation_groups_table(figures: Mapping[str, Any]) -> str:
    """Return the figures as a table, a line for each size."""
    columns = figures["artifacts"]
    lines = [
        f"One image of `fast`, {figures['threads']} threads; medians of {figures['rounds']} in turns. "
        f"{figures['processor']}, commit {figures['commit']}.",
        "",
        "| most bytes of a group |" + "".join(f" {name}: peak | of the engines | time |" for name in columns),
        "|---|" + "---|---|---|" * len(columns),
    ]
    for size in next(iter(columns.values()))["peaks"]:
        line = f"| {size} MiB |"
        for one in columns.values():
            peak, times = one["peaks"][size], one["seconds"][size]
            spread = f"{statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f})"
            line += f" {peak / 2**20:,.0f} MiB | {peak / one['engine_bytes']:.2f}x | {spread} |"
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("artifacts", nargs="+", metavar="NAME=ARTIFACT")
    parser.add_argument("--threads", type=int, default=available_threads())
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    named = {name: pathlib.Path(path) for name, _, path in (text.partition("=") for text in given.artifacts)}
    main(given.out, named, given.threads, given.rounds)
