"""Time, memory and parity of exports of the published sizes with their autoencoder, with weights from a formula.

    python -m benchmarks.exports docs/benchmarks/data/exports.json mar_base:fp16 nova-d48w768:fp32 uva:fp32

Each export runs in a process of its own, whose peak of memory the kernel reports. Results in the file stay there unless
they are measured again.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from runtime.artifact.artifact_folder import Artifact
from runtime.errors import MarError
from runtime.provenance import commit
from runtime.storage.files import write_json
from runtime.storage.structured_files import FaultReport, read_json_object
from tests.helpers.formula_families import NOVA_WIDTHS, write_published_nova, write_published_uva
from tests.helpers.formula_weights import write_published_mar, write_published_vae


def main(out: pathlib.Path, names: list[str]) -> None:
    """Measure the exports `names`, each `MODEL:PRECISION`, and update the JSON file `out`."""
    report = read_json_object(out, FaultReport(MarError, "remove it")) if out.exists() else {"exports": {}}
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as root:
        published: dict[str, list[str]] = {}
        for name in names:
            model, precision = name.split(":")
            if model not in published:
                published[model] = in_new_process(write_published, pathlib.Path(root) / model, model)
            figures = measure(published[model], precision, pathlib.Path(root) / model / precision)
            report["exports"][name] = {"commit": commit(), **figures}
            report["versions"] = {"python": platform.python_version(), "torch": torch.__version__}
            write_json(out, report)
            print(name, json.dumps(report["exports"][name]))


def in_new_process(function: Callable[[pathlib.Path, str], list[str]], folder: pathlib.Path, model: str) -> list[str]:
    """Return what a function returns in a new process, so that this one stays small.

    The peak that the kernel reports of an export begins with the memory of the process that starts it.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, folder, model).result()


def write_published(folder: pathlib.Path, model: str) -> list[str]:
    """Write what is published of a model into a new folder; returns the arguments that export it."""
    folder.mkdir()
    if model in NOVA_WIDTHS:
        write_published_nova(folder / "pipeline", model)
        return [str(folder / "pipeline")]
    if model == "uva":
        write_published_uva(folder / "latest.ckpt")
        return [str(folder / "latest.ckpt")]
    write_published_mar(folder / "checkpoint-last.pth", model)
    write_published_vae(folder / "kl16.ckpt")
    return [str(folder / "checkpoint-last.pth"), "--tokenizer", str(folder / "kl16.ckpt")]


def measure(published: list[str], precision: str, artifact: pathlib.Path) -> dict[str, Any]:
    """Export what `write_published` wrote in a new process; returns its time, memory, size and parity."""
    command = [sys.executable, "-m", "runtime.cli", "export", *published]
    started = time.perf_counter()
    process = subprocess.Popen([*command, "--precision", precision, "--out", str(artifact)])
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        sys.exit(f"the export of {published[0]} in {precision} failed")
    manifest = Artifact(artifact).manifest
    return {
        "seconds": seconds,
        "processor_seconds": usage.ru_utime + usage.ru_stime,
        "peak_memory_bytes": 1024 * usage.ru_maxrss,
        "artifact_bytes": sum(entry.bytes for entry in manifest.files.values()),
        "parity": dict(manifest.parity),
    }


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2:])
