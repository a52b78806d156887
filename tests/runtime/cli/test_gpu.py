"""`mar generate` on a GPU, as its users see it."""

from __future__ import annotations

import ctypes
import pathlib
import sys
from typing import Any, NoReturn

import pytest
from PIL import Image

from runtime.image_records.encoding import read_records
from runtime.image_records.record import ImageRecord
from tests.fakes.simulated_cuda import SimulatedCuda
from tests.fakes.simulated_onnxruntime import Simulation, simulated_onnxruntime
from tests.helpers.command_line import Ended, Mar
from tests.helpers.simulated_gpu import VERSION, install_tensorrt

Drawn = tuple[bytes, tuple[ImageRecord, ...]]
QUICK = "--iterations 4 --diffusion-steps ddim5 --count 3 --batch-size 2 --seed 7"
EDIT = "--image {folder}/known.png --mask {folder}/mask.png --class 1 --iterations 3 --diffusion-steps ddim5"


@pytest.fixture
def artifact(built_artifacts: dict[str, pathlib.Path]) -> pathlib.Path:
    """The model of images."""
    return built_artifacts["pixel"]


@pytest.fixture
def expected(mar: Mar, artifact: pathlib.Path, tmp_path: pathlib.Path) -> Drawn:
    """What is drawn on the CPU."""
    assert mar(f"generate {artifact} --out {tmp_path / 'cpu.png'} --threads 1 {QUICK}").code == 0
    return drawn(tmp_path / "cpu.png")


def drawn(file: pathlib.Path) -> Drawn:
    """The pixels of an image, and how each part of it was made."""
    with Image.open(file) as image:
        return image.tobytes(), read_records(file)


@pytest.mark.usefixtures("tensorrt")
@pytest.mark.parametrize("option", ["", "--no-cuda-graphs", "--device cuda"])
def test_tensorrt_draws_the_same_as_the_cpu(
    mar: Mar, artifact: pathlib.Path, expected: Drawn, tmp_path: pathlib.Path, cuda: SimulatedCuda, option: str
) -> None:
    ended = mar(f"generate {artifact} --backend tensorrt {option} --out {tmp_path / 'gpu.png'} {QUICK}")
    assert (ended.code, ended.err) == (0, "")
    assert f"(tensorrt {VERSION}, Simulated)" in ended.out
    assert drawn(tmp_path / "gpu.png") == expected
    assert ("cuGraphLaunch" in cuda.history) is (option != "--no-cuda-graphs")
    assert cuda.leaks == []


@pytest.mark.parametrize("option", ["", "--no-cuda-graphs"])
def test_onnxruntime_on_a_gpu_draws_the_same_too(
    mar: Mar,
    artifact: pathlib.Path,
    expected: Drawn,
    tmp_path: pathlib.Path,
    cuda: SimulatedCuda,
    monkeypatch: pytest.MonkeyPatch,
    option: str,
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", simulated_onnxruntime(Simulation(cuda)))
    ended = mar(f"generate {artifact} --device cuda {option} --out {tmp_path / 'gpu.png'} {QUICK}")
    assert (ended.code, ended.err) == (0, "")
    assert drawn(tmp_path / "gpu.png") == expected
    assert ("cuGraphLaunch" in cuda.history) is (option == "")
    assert cuda.leaks == []


@pytest.mark.usefixtures("tensorrt")
@pytest.mark.parametrize(
    ("line", "iterations"), [(f"generate {{artifact}} {QUICK}", 2 * 4), (f"edit {{artifact}} {EDIT}", 3)]
)
def test_iterations_wait_only_if_a_progress_bar_is_shown(
    mar: Mar,
    artifact: pathlib.Path,
    tmp_path: pathlib.Path,
    cuda: SimulatedCuda,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    iterations: int,
) -> None:
    for name, shade in (("known", 90), ("mask", 255)):
        Image.new("L", (8, 8), shade).save(tmp_path / f"{name}.png")

    def waits() -> int:
        before = cuda.history.count("cuStreamSynchronize")
        asked = line.format(artifact=artifact, folder=tmp_path)
        assert mar(f"{asked} --backend tensorrt --no-cuda-graphs --out {tmp_path / 'gpu.png'}").code == 0
        return cuda.history.count("cuStreamSynchronize") - before

    unseen = waits()
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert waits() == unseen + iterations


def refused(ended: Ended) -> tuple[Any, str]:
    """Exit code and the only line of an error."""
    assert ended.out == ""
    assert ended.err.count("\n") == 1
    return ended.code, ended.err.strip()


@pytest.mark.usefixtures("tensorrt")
def test_tensorrt_does_not_run_on_a_cpu(mar: Mar, artifact: pathlib.Path, tmp_path: pathlib.Path) -> None:
    ended = mar(f"generate {artifact} --backend tensorrt --device cpu --out {tmp_path / 'a.png'}")
    assert refused(ended) == (2, "mar: backend tensorrt runs on cuda in this version, not on 'cpu'")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("backend", ["tensorrt", "onnxruntime"])
def test_without_a_driver_the_error_says_so(
    mar: Mar, artifact: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    def missing(name: str) -> NoReturn:
        raise OSError(f"{name}: cannot open shared object file")

    install_tensorrt(monkeypatch, SimulatedCuda())
    monkeypatch.setattr(ctypes, "CDLL", missing)
    ended = mar(f"generate {artifact} --backend {backend} --device cuda --out {tmp_path / 'a.png'}")
    message = "mar: no NVIDIA GPU here: libcuda.so.1, a part of its driver, is not installed"
    assert refused(ended) == (1, message)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("tensorrt")
def test_a_failure_of_the_gpu_is_one_line(
    mar: Mar, artifact: pathlib.Path, tmp_path: pathlib.Path, cuda: SimulatedCuda
) -> None:
    cuda.failing["cuMemAlloc_v2"] = (20, 2)
    ended = mar(f"generate {artifact} --backend tensorrt --out {tmp_path / 'a.png'} {QUICK}")
    assert refused(ended) == (1, "mar: cuMemAlloc failed: error 2 (2)")
    assert not list(tmp_path.iterdir())
    assert cuda.leaks == []
