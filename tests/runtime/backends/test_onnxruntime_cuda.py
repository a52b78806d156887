"""ONNX Runtime's CUDA provider as a backend: the images of the host, its graphs, and no way to the CPU."""

from __future__ import annotations

import inspect
import pathlib
import re
import shutil
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest

from runtime.backends import onnxruntime_cuda
from runtime.errors import BackendError
from runtime.generator import Generator
from runtime.model.engine_spec import ENGINES
from runtime.storage.files import sha256
from tests.fakes import simulated_onnxruntime as simulated
from tests.fakes.real_library import parameters
from tests.fakes.simulated_cuda import SimulatedCuda
from tests.fakes.simulated_onnxruntime import CPU, CUDA, Simulation, simulated_onnxruntime
from tests.helpers.damaged_artifacts import change_manifest, read_manifest
from tests.helpers.simulated_gpu import left_on

QUICK: dict[str, Any] = {"iterations": 2, "diffusion_steps": 2, "cfg_scale": 2.0}
REQUESTS: list[dict[str, Any]] = [
    {"iterations": 4, "diffusion_steps": 5, "cfg_scale": 2.0},
    {"iterations": 8, "diffusion_steps": 2, "cfg_scale": 3.0, "cfg_interval": (0.2, 0.8)},
    {"iterations": 5, "diffusion_steps": 9, "last_diffusion_steps": 2, "sampler": "dpm++2m", "cfg_scale": 1.5},
    {"iterations": 1, "diffusion_steps": 3, "sampler": "ddim", "eta": 0.5},
    QUICK,
]


@pytest.fixture(scope="module")
def host(golden_artifacts: dict[str, pathlib.Path]) -> Generator:
    return Generator.load(golden_artifacts["small"], threads=1)


@pytest.fixture
def provider(host: Generator, cuda: SimulatedCuda, monkeypatch: pytest.MonkeyPatch) -> Simulation:
    """This machine has a GPU, and an ONNX Runtime that serves it; what the host does was loaded before."""
    simulation = Simulation(cuda)
    monkeypatch.setitem(sys.modules, "onnxruntime", simulated_onnxruntime(simulation))
    return simulation


def load(path: pathlib.Path, **arguments: Any) -> Generator:
    return Generator.load(path, backend="onnxruntime", device="cuda", **arguments)


def refusal(work: Callable[[], Any]) -> str:
    """The error of `work`, in one line."""
    with pytest.raises(BackendError) as caught:
        work()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("integrated", [False, True], ids=["own memory", "shared memory"])
@pytest.mark.parametrize("cuda_graphs", [True, False], ids=["graphs", "calls"])
def test_an_image_is_the_one_of_the_host_whatever_was_generated_before(
    golden_artifacts: dict[str, pathlib.Path],
    host: Generator,
    cuda: SimulatedCuda,
    provider: Simulation,
    cuda_graphs: bool,
    integrated: bool,
) -> None:
    """More forms of plans than are kept, each twice: first captured, or captured again, then replayed."""
    cuda.attributes[18] = int(integrated)
    with load(golden_artifacts["small"], cuda_graphs=cuda_graphs) as generator:
        for labels in ([3], [0, 5]):
            for request in REQUESTS:
                for seed in range(2):
                    asked = {"seed": seed, **request}
                    expected = host.generate(labels, **asked).latents
                    assert generator.generate(labels, **asked).latents.tobytes() == expected.tobytes()
    assert left_on(cuda) == []
    assert ("cuGraphLaunch" in cuda.history) is cuda_graphs
    assert {number == "-1" for _, number in provider.runs} == {not cuda_graphs}


def test_a_size_is_captured_once_and_replayed_afterwards(
    golden_artifacts: dict[str, pathlib.Path], cuda: SimulatedCuda, provider: Simulation
) -> None:
    with load(golden_artifacts["small"]) as generator:
        generator.generate([0], **QUICK)
        captured = cuda.history.count("cuStreamBeginCapture_v2")
        numbers = set(provider.runs)
        assert captured == len(numbers)  # an engine, a size and its graph
        generator.generate([1], seed=4, **{**QUICK, "cfg_scale": 3.0, "temperature": 0.7})
        assert cuda.history.count("cuStreamBeginCapture_v2") == captured
        assert set(provider.runs) == numbers


def executables(cuda: SimulatedCuda) -> int:
    return list(cuda.handles.values()).count("executable")


def test_graphs_are_kept_by_size_when_plan_shapes_are_dropped(
    golden_artifacts: dict[str, pathlib.Path], host: Generator, cuda: SimulatedCuda, provider: Simulation
) -> None:
    """More forms in turn than the loop keeps: a session never lets a graph go, so no size may have two."""
    with load(golden_artifacts["small"]) as generator:
        held = []
        for _ in range(2):
            for batch in range(1, 7):
                labels = [1] * batch
                expected = host.generate(labels, **QUICK).latents
                assert generator.generate(labels, **QUICK).latents.tobytes() == expected.tobytes()
            held.append((executables(cuda), len(cuda.memory)))
        assert held[0] == held[1]
    assert left_on(cuda) == []


def test_beyond_the_largest_number_of_graphs_new_sizes_run_without_one(
    golden_artifacts: dict[str, pathlib.Path],
    host: Generator,
    cuda: SimulatedCuda,
    provider: Simulation,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(onnxruntime_cuda, "_MOST_GRAPHS", 2)
    with load(golden_artifacts["small"]) as generator:
        for _ in range(2):
            for batch in range(1, 7):
                labels = [1] * batch
                expected = host.generate(labels, **QUICK).latents
                assert generator.generate(labels, **QUICK).latents.tobytes() == expected.tobytes()
            assert executables(cuda) == 2 * len(ENGINES)
        assert {number for _, number in provider.runs} == {"1", "2", "-1"}
    assert left_on(cuda) == []


def test_sessions_run_only_on_the_stream_of_the_generator(
    golden_artifacts: dict[str, pathlib.Path], cuda: SimulatedCuda, provider: Simulation
) -> None:
    with load(golden_artifacts["small"]):
        (stream,) = [handle for handle, kind in cuda.handles.items() if kind == "stream"]
        assert len(provider.settings) == len(ENGINES)
        assert provider.settings[0] == {
            "device_id": "0",
            "user_compute_stream": str(stream),
            "enable_cuda_graph": "1",
            "use_tf32": "0",
        }
        assert {settings["user_compute_stream"] for settings in provider.settings} == {str(stream)}
        with load(golden_artifacts["small"], cuda_graphs=False):
            others = provider.settings[len(ENGINES) :]
            assert {settings["enable_cuda_graph"] for settings in others} == {"0"}
            assert not {settings["user_compute_stream"] for settings in others} & {str(stream), "0"}
    assert left_on(cuda) == []


def test_the_host_waits_only_at_the_end(
    golden_artifacts: dict[str, pathlib.Path], cuda: SimulatedCuda, provider: Simulation
) -> None:
    with load(golden_artifacts["small"]) as generator:
        generator.generate([0], **QUICK)
        before = cuda.history.count("cuStreamSynchronize")
        generator.generate([0], **QUICK)
        assert cuda.history.count("cuStreamSynchronize") == before + 1


def test_a_library_without_the_provider_is_refused(
    golden_artifacts: dict[str, pathlib.Path], cuda: SimulatedCuda, provider: Simulation
) -> None:
    provider.providers = ["AzureExecutionProvider", CPU]
    version = onnxruntime.__version__
    message = f"this onnxruntime {version} has no {CUDA}, only AzureExecutionProvider, {CPU}"
    assert refusal(lambda: load(golden_artifacts["small"])) == message
    assert provider.settings == []
    assert left_on(cuda) == []


def test_a_provider_that_does_not_load_is_refused(
    golden_artifacts: dict[str, pathlib.Path], cuda: SimulatedCuda, provider: Simulation
) -> None:
    """Of which the real library only warns, before it runs everything on the CPU."""
    provider.loads = [CPU]
    assert refusal(lambda: load(golden_artifacts["small"])) == f"onnxruntime loaded {CPU} instead of {CUDA}"
    assert provider.runs == []
    assert left_on(cuda) == []


@pytest.mark.parametrize("cuda_graphs", [True, False], ids=["graphs", "calls"])
def test_the_error_of_a_graph_that_does_not_load_mentions_cuda_graphs(
    golden_artifacts: dict[str, pathlib.Path], cuda: SimulatedCuda, provider: Simulation, cuda_graphs: bool
) -> None:
    provider.failing = {"InferenceSession"}
    path = golden_artifacts["small"] / "backbone.onnx"
    remedy = "use --no-cuda-graphs, or export again" if cuda_graphs else "export again"
    assert refusal(lambda: load(golden_artifacts["small"], cuda_graphs=cuda_graphs)) == (
        f"{path}: onnxruntime cannot load it (InferenceSession broke); {remedy}"
    )
    assert left_on(cuda) == []


def test_a_graph_with_other_tensors_is_refused(
    golden_artifacts: dict[str, pathlib.Path],
    tmp_path: pathlib.Path,
    cuda: SimulatedCuda,
    provider: Simulation,
) -> None:
    path = pathlib.Path(shutil.copytree(golden_artifacts["small"], tmp_path / "artifact"))
    other = shutil.copyfile(golden_artifacts["patch2"] / "backbone.onnx", path / "backbone.onnx")
    entry = {"bytes": other.stat().st_size, "sha256": sha256(other)}
    change_manifest(path, "files", {**read_manifest(path)["files"], "backbone.onnx": entry})
    assert re.search(
        r"backbone\.onnx: the graph has .* where its spec has .*; export again$", refusal(lambda: load(path))
    )
    assert left_on(cuda) == []


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_a_run_that_fails_is_an_error_and_the_next_image_is_generated(
    golden_artifacts: dict[str, pathlib.Path],
    host: Generator,
    cuda: SimulatedCuda,
    provider: Simulation,
    cuda_graphs: bool,
) -> None:
    with load(golden_artifacts["small"], cuda_graphs=cuda_graphs) as generator:
        for _ in range(2):  # before its form is known, and after
            provider.failing = {"run_with_iobinding"}
            message = refusal(lambda: generator.generate([0], **QUICK))
            assert message == "engine backbone failed in onnxruntime: run_with_iobinding broke"
            provider.failing = set()
            expected = host.generate([0], **QUICK).latents
            assert generator.generate([0], **QUICK).latents.tobytes() == expected.tobytes()
    assert left_on(cuda) == []


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_a_closed_generator_has_freed_everything_and_refuses_calls(
    golden_artifacts: dict[str, pathlib.Path], cuda: SimulatedCuda, provider: Simulation, cuda_graphs: bool
) -> None:
    generator = load(golden_artifacts["small"], cuda_graphs=cuda_graphs)
    generator.generate([0], **QUICK)
    z = np.zeros((1, generator.manifest.model.decoder_embed_dim), np.float32)
    generator.engines.conditioning(z=z, timesteps=np.ones(1, np.float32))
    generator.close()
    assert cuda.leaks == []  # though the generator is still there
    assert refusal(lambda: generator.generate([0], **QUICK)) == "this generator was closed; load its artifact again"
    generator.close()


# Against the real library.


@pytest.mark.parametrize("name", ["InferenceSession", "IOBinding"])
def test_a_class_of_the_fake_has_the_parameters_of_the_real_class(name: str) -> None:
    ours, theirs = getattr(simulated, name), getattr(onnxruntime, name)
    for attribute in (each for each, value in vars(ours).items() if inspect.isfunction(value) and each[0] != "_"):
        assert parameters(getattr(ours, attribute)) == parameters(getattr(theirs, attribute)), attribute
    if name == "InferenceSession":  # the other is made by it
        assert parameters(ours.__init__) == parameters(theirs.__init__)


def test_every_name_of_the_fake_module_exists_in_the_real_one(provider: Simulation) -> None:
    offered = {name for name in vars(sys.modules["onnxruntime"]) if not name.startswith("__")}
    assert {"InferenceSession", "RunOptions", "SessionOptions", "get_available_providers"} == offered
    assert all(hasattr(onnxruntime, name) for name in offered)


def test_every_name_that_the_backend_calls_exists_in_the_real_library() -> None:
    """Options are those of the library itself; this is what their text values name."""
    options = onnxruntime.RunOptions()
    for name in ("gpu_graph_id", "disable_synchronize_execution_providers"):
        options.add_run_config_entry(name, "1")
        assert options.get_run_config_entry(name) == "1"
    assert CPU in onnxruntime.get_available_providers()
    assert CUDA in onnxruntime.get_all_providers()
