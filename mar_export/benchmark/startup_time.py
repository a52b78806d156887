"""Start-up time: fresh processes timed from their start to the first call of an engine."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from runtime.errors import BackendError

_IMPORT = "import runtime"
# What `mar generate` does up to the first call of the backbone: imports, verification of hashes, loading of engines.
_GENERATE = """
import dataclasses, json, sys, time
started, artifact, threads, backend, device, request = float(sys.argv[1]), sys.argv[2], int(sys.argv[3]), *sys.argv[4:]
import runtime.cli.group, runtime.cli.generate
from runtime.errors import MarError
from runtime.generator import Generator

def first_call(**inputs):
    print(time.time() - started)
    sys.exit()

try:
    loaded = Generator.load(artifact, threads=threads, backend=backend, device=device)
except MarError as error:
    sys.exit(str(error))
asked = json.loads(request)
if asked is None:  # the checkout may be older than the table of families
    from runtime.model.families import family_of, imported
    config = loaded.manifest.model
    asked = imported(family_of(config).example)(config, 1)
engines = dataclasses.replace(loaded.engines, backbone=first_call)
Generator(loaded.manifest, engines, "").generate(**asked)
"""


def startup_seconds(
    artifact: pathlib.Path, threads: int, backend: str, device: str, repeats: int
) -> Mapping[str, float]:
    """Measure start-up times in fresh processes.

    Returns:
        Median seconds by name: `interpreter`, an empty Python process; `import_runtime`, the additional time of
        `import runtime`, 0 where it is less than the scatter; `first_backbone_call`, from the start of a process to its
        first call of the backbone.

    Raises:
        BackendError: A process failed, for example because the backend cannot load the artifact.
    """
    interpreter = [interpreter_seconds() for _ in range(repeats)]
    imports = [import_seconds() for _ in range(repeats)]
    first_calls = [first_call_seconds(artifact, threads, backend, device) for _ in range(repeats)]
    return {
        "interpreter": float(np.median(interpreter)),
        "import_runtime": max(0.0, float(np.median(imports) - np.median(interpreter))),
        "first_backbone_call": float(np.median(first_calls)),
    }


def interpreter_seconds() -> float:
    """Return how long an empty Python process takes."""
    return _timed("")


def import_seconds(checkout: pathlib.Path | None = None) -> float:
    """Return how long a process takes that imports `runtime`; the arguments are those of `run_fresh`."""
    return _timed(_IMPORT, checkout)


def first_call_seconds(
    artifact: pathlib.Path,
    threads: int,
    backend: str,
    device: str,
    checkout: pathlib.Path | None = None,
    request: Mapping[str, Any] | None = None,
) -> float:
    """Return the time from the start of a process to its first call of the backbone, every hash compared.

    Args:
        artifact: The artifact folder.
        threads: The number of processor threads.
        backend: The backend.
        device: The device.
        checkout: As for `run_fresh`.
        request: The arguments of `Generator.generate`, which JSON can hold; None for the example of the family.

    Raises:
        BackendError: The process failed.
    """
    arguments = (str(artifact), str(threads), backend, device, json.dumps(request))
    return float(run_fresh(_GENERATE, str(time.time()), *arguments, checkout=checkout))


def run_fresh(code: str, *arguments: str, checkout: pathlib.Path | None = None) -> str:
    """Run Python code in a fresh process.

    Args:
        code: The code.
        *arguments: What it finds in `sys.argv[1:]`.
        checkout: The folder whose packages it imports; None for those of this process.

    Returns:
        What it printed.

    Raises:
        BackendError: The process failed.
    """
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, cwd=checkout
    )
    if done.returncode:
        message = done.stderr.strip().rpartition("\n")[2]
        raise BackendError(f"a fresh process failed: {message or f'exit status {done.returncode}'}")
    return done.stdout


def _timed(code: str, checkout: pathlib.Path | None = None) -> float:
    started = time.perf_counter()
    run_fresh(code, checkout=checkout)
    return time.perf_counter() - started
