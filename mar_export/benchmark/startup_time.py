"""How long a device waits before anything happens: fresh processes, timed from their start."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping

import numpy as np

from runtime.errors import BackendError

_IMPORT = "import runtime"
# What `mar generate` does, up to the first call of the backbone: its imports, every hash, every session.
_GENERATE = """
import dataclasses, pathlib, sys, time
started, artifact, threads, backend, device = float(sys.argv[1]), sys.argv[2], int(sys.argv[3]), *sys.argv[4:]
import runtime.cli.main, runtime.cli.generate
from runtime.errors import MarError
from runtime.generator import Generator

def first_call(**inputs):
    print(time.time() - started)
    sys.exit()

try:
    loaded = Generator.load(artifact, threads=threads, backend=backend, device=device)
except MarError as error:
    sys.exit(str(error))
Generator(loaded.manifest, dataclasses.replace(loaded.engines, backbone=first_call), "").generate([0])
"""


def startup_seconds(
    artifact: pathlib.Path, threads: int, backend: str, device: str, repeats: int
) -> Mapping[str, float]:
    """Medians: `interpreter` starting and ending, `import_runtime` beyond that, and `first_backbone_call`."""
    interpreter = [_timed("") for _ in range(repeats)]
    imports = [_timed(_IMPORT) for _ in range(repeats)]
    asked = (str(artifact), str(threads), backend, device)
    first_calls = [float(_run(_GENERATE, str(time.time()), *asked)) for _ in range(repeats)]
    return {
        "interpreter": float(np.median(interpreter)),
        "import_runtime": float(np.median(imports) - np.median(interpreter)),
        "first_backbone_call": float(np.median(first_calls)),
    }


def _timed(code: str) -> float:
    started = time.perf_counter()
    _run(code)
    return time.perf_counter() - started


def _run(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().rpartition("\n")[2]
        raise BackendError(f"a fresh process failed: {said or f'exit status {done.returncode}'}")
    return done.stdout
