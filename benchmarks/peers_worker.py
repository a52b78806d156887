"""A process that runs engines of an artifact with another library than the runtime's, and times them.

`benchmarks.peers` starts it. The first line of standard input is a JSON object with the keys of `Work`. Every further
line is one with the keys of `Calls`, and is answered by a line with the seconds of each call, or with why there are
none.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import sys
import time
from typing import Any

import numpy as np

from benchmarks.peer_libraries.work import Load, Work
from mar_export.onnx_export.example_inputs import example_inputs
from runtime.artifact.artifact_folder import Artifact
from runtime.model.families import imported
from runtime.storage.structured_files import parse_json


@dataclasses.dataclass(frozen=True)
class Calls:
    """Calls of an engine with the same random inputs.

    Attributes:
        engine: The name of the engine.
        sizes: The size of each dynamic axis.
        calls: The number of calls.
        outputs: A file `.npz` to write the outputs to; None for none.
    """

    engine: str
    sizes: dict[str, int]
    calls: int
    outputs: str | None = None


PEERS: dict[str, str] = {
    "onnxruntime": "backends:backend_engines",
    "openvino": "backends:backend_engines",
    "eager": "pytorch:eager_engines",
    "aot-inductor": "pytorch:inductor_engines",
    "iree": "iree:iree_engines",
    "litert": "litert:litert_engines",
    "mnn": "mnn:mnn_engines",
}
"""The module in `benchmarks.peer_libraries` and its function of `Work` that opens each library."""


def main() -> None:
    """Answer calls until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries write to standard output, which is for answers
    work = Work(**parse_json(sys.stdin.readline()))
    load = functools.cache(imported(f"benchmarks.peer_libraries.{PEERS[work.peer]}")(work))
    manifest = Artifact(pathlib.Path(work.artifact)).manifest
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        calls = Calls(**parse_json(line))
        try:
            answer = _timed(load, calls, manifest)
        except Exception as error:  # a peer may refuse a graph or a size with any
            answer = {"refused": str(error).strip().split("\n")[0] or type(error).__name__}
        print(json.dumps(answer), file=answers, flush=True)


def _timed(load: Load, calls: Calls, manifest: Any) -> dict[str, Any]:
    spec = manifest.specs[calls.engine]
    engine, inputs = load(spec), example_inputs(spec, manifest.model, calls.sizes, seed=0)
    seconds = []
    for _ in range(calls.calls):
        started = time.perf_counter()
        outputs = engine(**inputs)
        seconds.append(time.perf_counter() - started)
    if calls.outputs is not None:
        np.savez(calls.outputs, *outputs)
    return {"seconds": seconds}


if __name__ == "__main__":
    main()
