"""The engines of a model in other libraries beside ONNX Runtime, one by one.

    python -m benchmarks.peers docs/benchmarks/data/peers.json --model mar_base --threads 2

exports the model with random weights to `out/peers` if it is not there, compiles what needs it, and takes half
an hour on a quiet machine of two cores, and minutes more where a library compiles each case. Every library has a
process of its own; a library that is not installed is left out. In each case the outputs are compared with those of
ONNX Runtime first; only a library with equal ones is timed, in turns with the others. PyTorch is there twice, with
threads of OpenMP that spin while they wait and with threads that sleep.

IREE, LiteRT and MNN are not among the project's packages. For a part that is not used here, LiteRT asks for an older
typing_extensions than the project has, so its packages are installed without what they depend on:

    pip install --constraint constraints.txt iree-base-compiler==3.13.0 iree-base-runtime==3.13.0 MNN==3.6.1
    pip install --constraint constraints.txt jax==0.10.2 torchao==0.18.0 backports.strenum==1.2.8 immutabledict==4.3.1
    pip install --no-deps litert-torch==0.10.0 litert-converter==0.5.0 ai-edge-litert==2.3.0 ai-edge-quantizer==0.10.0
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import pathlib
import platform
import statistics
import sys
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from benchmarks.peers_tables import peers_table
from benchmarks.workers import Worker
from mar_export.artifact.export import export_artifact
from runtime.artifact.artifact_folder import Artifact, is_artifact
from runtime.backends import available_threads
from runtime.distance import relative_l2
from runtime.errors import BackendError, MarError
from runtime.model.config import ModelConfig
from runtime.model.engine_spec import BACKBONE, CONDITIONING, DENOISE
from runtime.provenance import commit, processor_name
from runtime.storage.files import write_json
from runtime.storage.structured_files import FaultReport, NpzFile
from training.checkpoints.random_weights import random_checkpoint

FOLDER = pathlib.Path("out/peers")
OURS = "onnxruntime"
EQUAL = 1e-5
"""The largest relative L2 from ONNX Runtime's outputs."""

PEERS: dict[str, tuple[tuple[str, ...], str | None]] = {
    OURS: (("onnxruntime",), None),
    "openvino": (("openvino",), None),
    "eager, active": (("torch",), "active"),
    "eager, passive": (("torch",), "passive"),
    "aot-inductor, active": (("torch",), "active"),
    "aot-inductor, passive": (("torch",), "passive"),
    "iree": (("iree-base-compiler", "iree-base-runtime"), None),
    "litert": (("litert-torch", "ai-edge-litert"), None),
    "mnn": (("MNN",), None),
}
"""The packages of each peer, as pip names them, and its OMP_WAIT_POLICY.

A name begins with a key of `peers_worker.PEERS`.
"""

_SECONDS = 0.3  # of a turn, at least
_LEAST_CALLS = 3


def cases(config: ModelConfig) -> dict[str, tuple[str, dict[str, int]]]:
    """Return the cases by what they are: an engine, and the size of each dynamic axis, with guidance."""
    length = config.tokens
    count = max(1, length // 16)
    found: dict[str, tuple[str, dict[str, int]]] = {}
    for known in (0, length // 2, length - count):
        sizes = {"B": 1, "GB": 2, "V": known, "K": count, "R": length - count - known}
        found[f"backbone, {known} of {length} tokens known"] = BACKBONE, sizes
    for tokens in (1, 4, count):
        found[f"denoise, {2 * tokens} rows"] = DENOISE, {"N": tokens, "GN": 2 * tokens}
    found["conditioning, 8 rows, 10 steps"] = CONDITIONING, {"GN": 8, "T": 10}
    return found


def compare(model: str, threads: int, rounds: int) -> list[dict[str, Any]]:
    """Compare and time every case; return their figures."""
    artifact, folder = FOLDER / model, FOLDER / f"{model}-{threads}"
    folder.mkdir(parents=True, exist_ok=True)
    if not is_artifact(artifact):
        export_artifact(random_checkpoint(model), artifact, print)
    work = {"artifact": str(artifact), "model": model, "threads": threads, "folder": str(folder)}
    workers: dict[str, Worker] = {}
    try:
        for name, wait_policy in installed_peers().items():
            try:
                workers[name] = Worker("benchmarks.peers_worker", {**work, "peer": name.split(",")[0]}, wait_policy)
            except BackendError as error:
                print(f"{name}: {error}")
        config: Any = Artifact(artifact).manifest.model
        return [
            {"case": what, "engine": engine, "sizes": sizes, "peers": _case(workers, engine, sizes, rounds, folder)}
            for what, (engine, sizes) in cases(config).items()
        ]
    finally:
        for worker in workers.values():
            worker.stop()


def installed_peers() -> dict[str, str | None]:
    """Return the OMP_WAIT_POLICY of each peer that is installed; say which are not."""
    found = {}
    for name, (packages, wait_policy) in PEERS.items():
        missing = [package for package in packages if _version(package) is None]
        if missing:
            print(f"{name}: not installed: {', '.join(missing)}")
        else:
            found[name] = wait_policy
    return found


def _version(package: str) -> str | None:
    """Return the version of a package by pip's name for it; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _case(
    workers: dict[str, Worker], engine: str, sizes: Mapping[str, int], rounds: int, folder: pathlib.Path
) -> dict[str, dict[str, Any]]:
    """Return what each peer does in a case: its distance, seconds and ratios, or why there are none."""
    message = {"engine": engine, "sizes": dict(sizes)}
    results: dict[str, dict[str, Any]] = {}
    for name in list(workers):
        outputs = folder / "outputs.npz" if name != OURS else folder / "expected.npz"
        try:
            answer = workers[name].ask({**message, "calls": _LEAST_CALLS, "outputs": str(outputs)})
        except BackendError as error:
            answer = {"refused": str(error)}
            workers.pop(name).stop()
        results[name] = answer if "refused" in answer else _checked(folder / "expected.npz", outputs)
        if name == OURS:
            calls = max(_LEAST_CALLS, round(_SECONDS / min(answer["seconds"])))
    timed = [name for name in results if "refused" not in results[name]]
    taken: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(rounds):
        for name in timed:
            answer = workers[name].ask({**message, "calls": calls})
            taken[name].append(statistics.median(answer["seconds"]))
    for name, seconds in taken.items():
        results[name]["seconds"] = seconds
        results[name]["ratios"] = [peer / ours for peer, ours in zip(seconds, taken[OURS], strict=True)]
        print(f"{engine} {dict(sizes)}, {name}: {1e3 * statistics.median(seconds):.2f} ms", flush=True)
    return results


def _checked(expected: pathlib.Path, found: pathlib.Path) -> dict[str, Any]:
    """Return the distance of outputs from those that are expected, and that they are refused if it is large."""
    ours, theirs = _arrays(expected), _arrays(found)
    if {name: array.shape for name, array in ours.items()} != {name: array.shape for name, array in theirs.items()}:
        return {"refused": "outputs of another shape"}
    distance = max(relative_l2(theirs[name], ours[name]) for name in ours)
    if not distance <= EQUAL:
        return {"refused": f"other numbers, relative L2 {distance:.0e}"}
    return {"distance": distance}


def _arrays(path: pathlib.Path) -> dict[str, NDArray[Any]]:
    """Return the outputs that a worker wrote."""
    with NpzFile(path, FaultReport(MarError, "measure again")) as file:
        return {name: file.read(name, "f") for name in file.names}


def main() -> None:
    """Measure, print the table, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path, help="the JSON file to write")
    parser.add_argument("--model", default="mar_base")
    parser.add_argument("--threads", type=int, default=available_threads())
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    compared = compare(arguments.model, arguments.threads, arguments.rounds)
    versions = {package: _version(package) for packages, _ in PEERS.values() for package in packages}
    figures = {
        "model": arguments.model,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "load_average": load,
        "commit": commit(),
        "processor": processor_name(),
        "python": platform.python_version(),
        "versions": {package: version for package, version in versions.items() if version is not None},
        "cases": compared,
    }
    write_json(arguments.out, figures)
    print(peers_table(figures))


if __name__ == "__main__":
    try:
        main()
    except MarError as error:
        sys.exit(f"peers: {error}")
