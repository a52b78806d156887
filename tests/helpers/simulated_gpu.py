"""Machines with a simulated GPU, and artifacts with engines built for it."""

from __future__ import annotations

import ctypes
import gc
import json
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest

from mar_export.tensorrt.artifact_builds import BuildOptions, build_engines, plans_to_build
from mar_export.tensorrt.engine_builder import BuilderFlags
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.engine_builds import Shapes
from runtime.errors import BackendError, MarError
from runtime.sampling.constraints import plan_for
from tests.fakes.simulated_cuda import SimulatedCuda
from tests.fakes.tensorrt import fake_tensorrt
from tests.fakes.tensorrt.script import TensorRTScript

VERSION = "10.13.3"
BATCH = (1, 2, 4)


class PlanWriter:
    """A builder whose plans name the graph that the fake TensorRT is to run."""

    def __init__(self, target: str = "tensorrt", version: str = VERSION, architecture: str = "sm_89") -> None:
        self.target, self.version, self.architectures = target, version, (architecture,)

    def build(self, graph: pathlib.Path, profile: Mapping[str, Shapes], *rest: Any) -> bytes:
        return json.dumps({"engine": graph.stem, "graph": str(graph), "profile": profile}).encode()


def build(
    path: pathlib.Path, flags: BuilderFlags | None = None, requests: Iterable[dict[str, Any]] = (), **builder: str
) -> None:
    """Build every engine of the artifact for its own plans, those of the presets, of a single iteration, and others."""
    artifact = Artifact(path)
    plans = [*plans_to_build(artifact, {}), *plans_to_build(artifact, {"iterations": 1, "diffusion_steps": 2})]
    plans += [plan_for(artifact.manifest.model, artifact.manifest.resolve_sampling(each)) for each in requests]
    written: Any = PlanWriter(**builder)
    build_engines(artifact, written, plans, BuildOptions(BATCH, flags or BuilderFlags(), force=True), lambda text: None)


def install_cuda(patch: pytest.MonkeyPatch, library: Any) -> None:
    """Let `library` be what is loaded as the driver's."""
    patch.setattr(ctypes, "CDLL", lambda name: {"libcuda.so.1": library}[name])


def install_tensorrt(patch: pytest.MonkeyPatch, cuda: SimulatedCuda) -> TensorRTScript:
    script = TensorRTScript(cuda)
    patch.setitem(sys.modules, "tensorrt", fake_tensorrt(script, VERSION))
    return script


def refusal(work: Callable[[], Any], kind: type[MarError] = BackendError) -> str:
    """The error of `work`, in one line."""
    with pytest.raises(MarError) as caught:
        work()
    assert type(caught.value) is kind
    message = str(caught.value)
    assert "\n" not in message
    return message


def left_on(cuda: SimulatedCuda) -> list[str]:
    """What nobody gave back, nor an error that nobody holds any more."""
    if cuda.leaks:
        gc.collect()  # an error has the frames that it passed, and they what they held
    return cuda.leaks


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> SimulatedCuda:
    """This machine has a GPU of its own memory."""
    simulated = SimulatedCuda()
    install_cuda(monkeypatch, simulated)
    return simulated


@pytest.fixture
def tensorrt(cuda: SimulatedCuda, monkeypatch: pytest.MonkeyPatch) -> TensorRTScript:
    """And TensorRT is installed."""
    return install_tensorrt(monkeypatch, cuda)


@pytest.fixture(scope="session")
def built_artifacts(
    golden_artifacts: dict[str, pathlib.Path],
    pixel_artifact: pathlib.Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, pathlib.Path]:
    """The golden models and that of images, with engines built. Read only."""
    folder = tmp_path_factory.mktemp("built")
    for name, path in {**golden_artifacts, "pixel": pixel_artifact}.items():
        shutil.copytree(path, folder / name)
        build(folder / name)
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def unbuilt(golden_artifacts: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of the smallest golden model's artifact without engines, to change."""
    return pathlib.Path(shutil.copytree(golden_artifacts["small"], tmp_path / "artifact"))


@pytest.fixture
def built(built_artifacts: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of the smallest, to change; its plans name the graphs that they were built from."""
    return pathlib.Path(shutil.copytree(built_artifacts["small"], tmp_path / "artifact"))
