"""The benchmark of other libraries: its cases, the check of outputs, and its table."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

from benchmarks import peers
from benchmarks.peers_tables import peers_table
from benchmarks.workers import Worker
from runtime.artifact.artifact_folder import Artifact
from runtime.errors import BackendError


def test_a_worker_times_an_engine_and_names_what_it_cannot_run(
    golden_artifacts: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    artifact = golden_artifacts["small"]
    config: Any = Artifact(artifact).manifest.model
    work = {"peer": "onnxruntime", "artifact": str(artifact), "model": "", "threads": 1, "folder": str(tmp_path)}
    worker = Worker("benchmarks.peers_worker", work, None)
    try:
        for engine, sizes in peers.cases(config).values():
            message = {"engine": engine, "sizes": sizes, "calls": 2, "outputs": str(tmp_path / "outputs.npz")}
            assert len(worker.ask(message)["seconds"]) == 2
            assert peers._checked(tmp_path / "outputs.npz", tmp_path / "outputs.npz") == {"distance": 0.0}
        assert worker.ask({"engine": "no-engine", "sizes": {}, "calls": 1}) == {"refused": "'no-engine'"}
        with pytest.raises(BackendError, match="a process has failed"):
            worker.ask({"engine": "of an unknown message"})
    finally:
        worker.stop()


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        (np.full((2, 3), 1.001), "other numbers, relative L2 1e-03"),
        (np.full((2, 3), np.nan), "other numbers, relative L2 inf"),
        (np.ones((0, 3)), "outputs of another shape"),
    ],
)
def test_other_outputs_are_refused(outputs: Any, expected: str, tmp_path: pathlib.Path) -> None:
    np.savez(tmp_path / "ours.npz", np.ones((2, 3)))
    np.savez(tmp_path / "theirs.npz", outputs)
    assert peers._checked(tmp_path / "ours.npz", tmp_path / "theirs.npz")["refused"] == expected


def test_the_table_has_the_ratio_of_every_peer_and_says_whether_the_bar_is_met() -> None:
    ours = {"distance": 0.0, "seconds": [0.001, 0.002, 0.004], "ratios": [1.0, 1.0, 1.0]}
    about = {"model": "mar_base", "threads": 2, "rounds": 3, "processor": "A processor", "load_average": 0.5}
    value: dict[str, Any] = {**about, "commit": "abc", "python": "3.11", "versions": {"torch": "2"}}
    slower = {"distance": 1e-7, "seconds": [1.0], "ratios": [0.96, 1.5, 0.9]}
    faster = {"distance": 1e-7, "seconds": [1.0], "ratios": [0.8, 0.9, 0.7]}
    value["cases"] = [{"case": "denoise", "peers": {"onnxruntime": ours, "a": slower, "b": {"refused": "no"}}}]
    table = peers_table(value)
    assert "| denoise | 2.00 ms, 1.00 to 4.00 | 0.96, 0.90 to 1.50 | no |" in table
    assert table.endswith("The bar, no peer is more than 5% faster: met.")
    value["cases"].append({"case": "backbone", "peers": {"onnxruntime": ours, "a": faster}})
    table = peers_table(value)
    assert "| backbone | 2.00 ms, 1.00 to 4.00 | 0.80, 0.70 to 0.90 | the process has ended |" in table
    assert table.endswith("faster: missed: a at backbone by 20%.")
