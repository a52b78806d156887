"""`make gpu-check` as far as it goes without a GPU: every golden case by its own artifact, and the verdict."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from benchmarks import gpu_check
from benchmarks.gpu_check import Backends, Check
from runtime.artifact.artifact_folder import Artifact
from runtime.errors import ParityError
from runtime.model.config import ModelConfig
from tests.fakes.simulated_cuda import SimulatedCuda
from tests.fakes.simulated_onnxruntime import Simulation, simulated_onnxruntime
from tests.helpers.golden_cases import GOLDEN, golden_cases
from training.checkpoints.checkpoint import Checkpoint, load_checkpoint

MODELS = ("small", "patch2")
CASES = [str(case) for case in golden_cases()]


class Exports:
    """In place of the exporter, which takes seconds: what it made of the golden models, but of those in `failing`."""

    def __init__(self, artifacts: Mapping[str, pathlib.Path]) -> None:
        self._made = {Artifact(path).manifest.model: (name, path) for name, path in artifacts.items()}
        self.failing: set[str] = set()

    def __call__(self, checkpoint: Checkpoint, out: pathlib.Path, say: Any, *, precision: str) -> None:
        name, path = self._made[checkpoint.model.config]
        if name in self.failing:
            raise ParityError(f"{name} differs; nothing was written")
        shutil.copytree(path, out)


@pytest.fixture
def exports(golden_artifacts: dict[str, pathlib.Path], monkeypatch: pytest.MonkeyPatch) -> Exports:
    exports = Exports(golden_artifacts)
    monkeypatch.setattr("mar_export.artifact.export.export_artifact", exports)
    return exports


@pytest.fixture
def provider(cuda: SimulatedCuda, exports: Exports, monkeypatch: pytest.MonkeyPatch) -> Simulation:
    """This machine has a GPU, an ONNX Runtime that serves it, and no TensorRT."""
    simulation = Simulation(cuda)
    monkeypatch.setitem(sys.modules, "onnxruntime", simulated_onnxruntime(simulation))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr(gpu_check, "ceilings", lambda cuda: {})  # PyTorch's own products
    return simulation


def checked(folder: pathlib.Path, *names: str) -> tuple[Check, dict[str, Any]]:
    """The golden cases on the backends `names`, and what was written of them."""
    (folder / "work").mkdir()
    check = Check(folder, Backends(folder / "work"), names, repeats=1)
    for model in MODELS:
        check.golden(model)
    return check, json.loads((folder / "gpu.json").read_text())


@pytest.mark.usefixtures("provider")
def test_every_golden_case_is_drawn_and_right(tmp_path: pathlib.Path) -> None:
    check, found = checked(tmp_path, "onnxruntime")
    assert found["skipped"] == {}
    assert [(row["case"], row["right"]) for row in found["golden"]] == [(case, True) for case in CASES]
    assert not check.wrong


@pytest.mark.usefixtures("provider")
def test_a_backend_that_is_not_here_is_told_and_no_fault(tmp_path: pathlib.Path) -> None:
    check, found = checked(tmp_path, "onnxruntime", "tensorrt")
    assert list(found["skipped"]) == ["tensorrt"]
    assert not check.wrong


@pytest.mark.usefixtures("provider")
def test_without_any_backend_nothing_is_right(tmp_path: pathlib.Path) -> None:
    check, found = checked(tmp_path, "tensorrt")
    assert found["golden"] == []
    assert check.wrong


@pytest.mark.usefixtures("provider")
@pytest.mark.parametrize("model", MODELS)
def test_cases_that_a_backend_which_is_here_could_not_draw_are_a_fault(
    tmp_path: pathlib.Path, exports: Exports, model: str
) -> None:
    exports.failing = {model}
    check, found = checked(tmp_path, "onnxruntime")
    assert found["skipped"] == {
        f"golden cases of {model}, onnxruntime": f"ParityError: {model} differs; nothing was written"
    }
    assert {row["case"] for row in found["golden"]} == {case for case in CASES if not case.startswith(model)}
    assert all(row["right"] for row in found["golden"])
    assert check.wrong


@pytest.mark.usefixtures("provider")
def test_a_wrong_image_is_a_fault(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = golden_cases()
    cases[-1] = dataclasses.replace(cases[-1], latents=1.001 * cases[-1].latents)
    monkeypatch.setattr(gpu_check, "golden_cases", lambda: cases)
    check, found = checked(tmp_path, "onnxruntime")
    assert [row["right"] for row in found["golden"]] == [True] * (len(cases) - 1) + [False]
    assert check.wrong


@pytest.mark.usefixtures("provider")
@pytest.mark.parametrize("alike", ["source", "sha256"])
def test_models_with_files_of_one_name_or_without_a_hash_have_their_own_artifacts(
    tmp_path: pathlib.Path, alike: str
) -> None:
    """As the golden ones have, and those of random weights."""
    backends, opened = Backends(tmp_path), list[ModelConfig]()
    checkpoints = [
        load_checkpoint(GOLDEN / name / "checkpoint-last.pth", GOLDEN / name / "meta.json") for name in MODELS
    ]
    checkpoints[1] = dataclasses.replace(
        checkpoints[1], **{"source": "another", "sha256": "0" * 64, alike: getattr(checkpoints[0], alike)}
    )
    for checkpoint in (*checkpoints, *checkpoints):
        with backends.open("onnxruntime", checkpoint, "fp32", True, [], 1) as generator:
            opened.append(generator.manifest.model)
    assert opened == [checkpoint.model.config for checkpoint in checkpoints] * 2
    assert len(list(tmp_path.iterdir())) == 2
