"""The benchmark of other libraries: its cases, the check of outputs, and its table."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from benchmarks import peers, peers_worker
from benchmarks.peer_libraries.work import compiled_by_sizes, sizes_name
from benchmarks.peers_tables import peers_table
from benchmarks.workers import Worker
from runtime.artifact.artifact_folder import Artifact
from runtime.errors import BackendError
from runtime.model.engine_spec import FLOAT, Array, Engine, EngineSpec, TensorSpec


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


def test_a_peer_without_one_of_its_packages_is_left_out_with_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"torch, passive": (("numpy",), "passive"), "other": (("numpy", "no-such-package"), None)}
    monkeypatch.setattr(peers, "PEERS", found)
    assert peers.installed_peers() == {"torch, passive": "passive"}
    assert capsys.readouterr().out == "other: not installed: no-such-package\n"


def test_every_peer_names_a_function_that_opens_its_library() -> None:
    assert {name.split(",")[0] for name in peers.PEERS} == peers_worker.PEERS.keys()
    folder = pathlib.Path(peers_worker.__file__).parent / "peer_libraries"
    for entry in peers_worker.PEERS.values():
        module, function = entry.split(":")
        assert f"\ndef {function}(work: Work) -> Load:\n" in (folder / f"{module}.py").read_text()


def test_a_library_with_fixed_sizes_compiles_once_for_each_of_them() -> None:
    rows, table = TensorSpec("rows", FLOAT, ("N", 2)), TensorSpec("table", FLOAT, (3, "GN"))
    spec, compiled = EngineSpec("denoise", (rows, table), ()), []

    def load(sizes: Mapping[str, int]) -> Engine:
        name = sizes_name(spec, sizes)
        compiled.append(name)

        def run(rows: Array, table: Array) -> tuple[Array, ...]:
            return np.array(name), rows @ np.ones(2), table

        return run

    engine = compiled_by_sizes(spec, load)
    for count, double in ((1, 2), (4, 8), (1, 2), (1, 1)):
        name, sums, _ = engine(table=np.zeros((3, double)), rows=np.ones((count, 2)))
        assert (str(name), sums.shape) == (f"denoise-N{count}-GN{double}", (count,))
    assert compiled == ["denoise-N1-GN2", "denoise-N4-GN8", "denoise-N1-GN1"]


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
