"""TensorRT as a backend: its calls that fail, and the requests that its engines serve."""

from __future__ import annotations

import inspect
import json
import pathlib
import re
import sys
from typing import Any

import numpy as np
import pytest

from mar_export.tensorrt.artifact_builds import BuildOptions, build_engines, plans_to_build
from mar_export.tensorrt.engine_builder import BuilderFlags
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import MANIFEST
from runtime.generator import Generator
from runtime.model.engine_spec import ENGINES
from runtime.storage.files import write_json
from tests.fakes.simulated_cuda import SimulatedCuda
from tests.fakes.tensorrt import TensorRTScript, fake_tensorrt
from tests.fakes.tensorrt import runtime as fake_runtime
from tests.fakes.tensorrt.runtime import SCRATCH
from tests.helpers.simulated_gpu import BATCH, VERSION, PlanWriter, build, left_on, refusal

REQUEST: dict[str, Any] = {"iterations": 2, "diffusion_steps": 2, "cfg_scale": 2.0}
COMMAND = "mar build ARTIFACT --target tensorrt"


def load(path: pathlib.Path, target: str = "tensorrt") -> Generator:
    return Generator.load(path, backend=target)


# Calls that fail.

NO_OBJECT = r"pybind11::init\(\): factory function returned nullptr"
LOADING = {
    "Runtime": rf"cannot create a Runtime \({NO_OBJECT}\)",
    "deserialize_cuda_engine": r"cannot load \S+/backbone-\w+\.plan",
    "Refitter": rf"cannot create a Refitter \({NO_OBJECT}\)",
    "OnnxParserRefitter": rf"cannot create a OnnxParserRefitter \({NO_OBJECT}\)",
    "refit_from_file": r"cannot read the weights of \S+/backbone-\w+\.plan from \S+/backbone\.onnx",
    "refit_cuda_engine": r"cannot give \S+/backbone-\w+\.plan its weights",
}
DRAWING = {
    "create_execution_context": "backbone: cannot create an execution context",
    "set_input_shape": r"backbone: refused tokens of \(\d+, \d+, \d+\)",
    "infer_shapes": "backbone: the shapes of x are missing",
    "infer_shapes raises": r"backbone: cannot infer its shapes \(Shape inference failed\)",
    "set_tensor_address": "backbone: refused the address of tokens",
    "execute_async_v3": "engine backbone failed",
}


def test_every_call_that_can_fail_is_tested() -> None:
    source = inspect.getsource(fake_runtime)
    assert set(re.findall(r'(?:fails|constructed)\("([\w ]+)"', source)) == LOADING.keys() | DRAWING.keys()


@pytest.mark.parametrize("call", LOADING)
def test_a_failure_while_loading_is_an_error_with_the_lines_of_the_log(
    unbuilt: pathlib.Path, cuda: SimulatedCuda, tensorrt: TensorRTScript, call: str
) -> None:
    build(unbuilt, BuilderFlags(strip_weights=True))
    tensorrt.failing = {call}
    message = refusal(lambda: load(unbuilt))
    assert re.fullmatch(rf"tensorrt {VERSION}: {LOADING[call]} \| {call} broke", message), message
    assert left_on(cuda) == []


@pytest.mark.parametrize("call", DRAWING)
def test_a_failure_while_generating_is_an_error_and_the_next_image_is_generated(
    built: pathlib.Path, cuda: SimulatedCuda, tensorrt: TensorRTScript, call: str
) -> None:
    with load(built) as generator:
        expected = generator.generate([1], **REQUEST).latents.tobytes()
    with load(built) as generator:
        for _ in range(2):  # of which the second tells nothing of the first
            tensorrt.failing = {call}
            message = refusal(lambda: generator.generate([1], **REQUEST))
            assert re.fullmatch(rf"tensorrt {VERSION}: ({DRAWING[call]}) \| {call} broke", message), message
        tensorrt.failing = set()
        assert generator.generate([1], **REQUEST).latents.tobytes() == expected
    assert left_on(cuda) == []


def test_an_engine_that_fails_in_a_capture_leaves_the_stream_usable(
    built: pathlib.Path, cuda: SimulatedCuda, tensorrt: TensorRTScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = tensorrt.fails

    def fails_in_a_capture(call: str, *arguments: Any) -> bool:
        if cuda.capturing is not None and call == "execute_async_v3" and arguments[0] == "denoise":
            tensorrt.failing = {call}
        return fails(call, *arguments)

    monkeypatch.setattr(tensorrt, "fails", fails_in_a_capture)
    with load(built) as generator:
        assert refusal(lambda: generator.generate([1], **REQUEST)).endswith(
            "engine denoise failed | execute_async_v3 broke"
        )
        assert cuda.capturing is None
        monkeypatch.setattr(tensorrt, "fails", fails)
        tensorrt.failing = set()
        generator.generate([1], **REQUEST)
    assert left_on(cuda) == []


# Requests.


@pytest.mark.parametrize("case", ["images", "tokens", "steps"])
def test_the_error_of_a_request_outside_the_built_sizes_names_both(
    unbuilt: pathlib.Path, cuda: SimulatedCuda, tensorrt: TensorRTScript, case: str
) -> None:
    artifact = Artifact(unbuilt)
    plans = plans_to_build(artifact, REQUEST)
    writer: Any = PlanWriter()
    build_engines(artifact, writer, plans, BuildOptions(BATCH, force=True), lambda text: None)
    profiles = {each.engine: each.profile for each in Artifact(unbuilt).manifest.builds}
    config = artifact.manifest.model
    labels, changes, engine, tensor, need = {
        "images": ([0] * 5, {}, "backbone", "tokens", [0, 5, config.token_channels]),
        "tokens": ([0] * 4, {"iterations": 1}, "backbone", "predict", [config.tokens, 4]),
        "steps": ([0], {"diffusion_steps": 3}, "conditioning", "timesteps", [3]),
    }[case]
    with load(unbuilt) as generator:
        message = refusal(lambda: generator.generate(labels, **{**REQUEST, **changes}))
        least, _, most = profiles[engine][tensor]
        found = re.fullmatch(
            rf"engine {engine} was built for {tensor} of (\[.*\]) to (\[.*\]), and this request needs (\[.*\]); "
            rf"call {COMMAND} with the sampling options of this request and a --batch that includes it",
            message,
        )
        assert found, message
        assert found[1] == str(list(least))
        assert found[2] == str(list(most))
        assert found[3] == str(need)
        assert "execution context" not in left_on(cuda)
        generator.generate([0, 1, 2, 3], **REQUEST)
    assert left_on(cuda) == []


def test_all_engines_share_scratch_memory_of_the_largest_size(
    built: pathlib.Path, cuda: SimulatedCuda, tensorrt: TensorRTScript
) -> None:
    with load(built) as generator:
        assert "device" not in cuda.leaks  # it is made with the first size
        z = np.zeros((1, generator.manifest.model.decoder_embed_dim), np.float32)
        generator.engines.conditioning(z=z, timesteps=np.ones(1, np.float32))
        generator.generate([0], **REQUEST)
        generator.generate([0, 1], **REQUEST)
        given = tensorrt.calls("set_device_memory")
        assert len(given) == len(tensorrt.calls("create_execution_context")) > len(ENGINES)
        ((address, size),) = set(given)
        assert size == SCRATCH + max(map(len, ENGINES))
        assert len(cuda.memory[address][0]) == size
    assert left_on(cuda) == []


def test_every_set_of_sizes_has_its_own_context(built: pathlib.Path, tensorrt: TensorRTScript) -> None:
    with load(built) as generator:
        plan = generator.generate([0, 1], **REQUEST).plan
        iterations = plan.iterations
        # a pass has a size of its own, chains as long as each other share theirs
        sizes = len(iterations) + 2 * len({iteration.count for iteration in iterations})
        assert len(tensorrt.calls("create_execution_context")) == sizes
        shapes = tensorrt.calls("set_input_shape")
        inputs = {name: len(spec.inputs) for name, spec in generator.manifest.specs.items() if name in ENGINES}
        of_chains = sum(inputs[name] for name in ("conditioning", "denoise")) * (sizes - len(iterations)) // 2
        assert len(shapes) == inputs["backbone"] * len(iterations) + of_chains
        generator.generate([4, 5], seed=3, **REQUEST)
        assert tensorrt.calls("set_input_shape") == shapes


def in_precision(path: pathlib.Path, precision: str) -> None:
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["precision"] = precision
    write_json(path / MANIFEST, manifest)


@pytest.mark.usefixtures("tensorrt")
def test_a_precision_that_the_gpu_does_not_support_is_refused(unbuilt: pathlib.Path, cuda: SimulatedCuda) -> None:
    in_precision(unbuilt, "bf16")
    cuda.attributes |= {75: 7, 76: 5}
    assert refusal(lambda: load(unbuilt)) == (
        f"{unbuilt} is in bf16, but tensorrt {VERSION}, Simulated has fp32, fp16, int8; "
        "export it in one of these, or use another backend"
    )
    assert cuda.leaks == []
    cuda.attributes |= {75: 8, 76: 0}
    build(unbuilt, architecture="sm_80")
    with load(unbuilt) as generator:
        generator.generate([0], **REQUEST)


def test_tensorrt_rtx_runs_the_engines_that_were_built_for_it(
    unbuilt: pathlib.Path, cuda: SimulatedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = fake_tensorrt(TensorRTScript(cuda), "1.7.1", "tensorrt_rtx")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", module)
    assert refusal(lambda: load(unbuilt, "tensorrt-rtx")) == (
        "no engine backbone for tensorrt-rtx 1.7.1 on sm_89; build one with mar build ARTIFACT --target tensorrt-rtx"
    )
    build(unbuilt, target="tensorrt-rtx", version="1.7.1")
    with load(unbuilt, "tensorrt-rtx") as generator:
        assert generator.description == "tensorrt-rtx 1.7.1, Simulated"
        generator.generate([0], **REQUEST)
    assert left_on(cuda) == []
