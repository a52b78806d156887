"""TensorRT as a backend: which engines are loaded, what is told of those that are not, and what runs where."""

from __future__ import annotations

import builtins
import enum
import importlib
import inspect
import io
import json
import pathlib
import platform
import re
import shutil
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mar_export.tensorrt.artifact_builds import build_engines, wanted_plans
from mar_export.tensorrt.engine_builder import BuilderFlags
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import MANIFEST
from runtime.backends import tensorrt as backend
from runtime.backends import tensorrt_library
from runtime.errors import BackendError, IntegrityError, MarError
from runtime.files import sha256, write_json
from runtime.generator import Generator
from runtime.model.engine_spec import ENGINES
from tests.fakes import simulated_tensorrt as simulated
from tests.fakes.real_library import assert_alike, documented, parameters, resolved, used_names, variables
from tests.fakes.simulated_cuda import SimulatedCuda
from tests.fakes.simulated_tensorrt import SCRATCH, Simulation, TensorIOMode, simulated_tensorrt
from tests.helpers.simulated_gpu import BATCH, VERSION, PlanWriter, build, left_on

REQUEST: dict[str, Any] = {"iterations": 2, "diffusion_steps": 2, "cfg_scale": 2.0}
COMMAND = "mar build ARTIFACT --target tensorrt"


def load(path: pathlib.Path, target: str = "tensorrt") -> Generator:
    return Generator.load(path, backend=target)


def refusal(work: Callable[[], Any], kind: type[MarError] = BackendError) -> str:
    """The error of `work`, in one line."""
    with pytest.raises(MarError) as caught:
        work()
    assert type(caught.value) is kind
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def unbuilt(golden_artifacts: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(golden_artifacts["small"], tmp_path / "artifact"))


# Calls that fail.

LOADING = {
    "Runtime": r"cannot create a Runtime \(pybind11::init\(\): factory function returned nullptr\)",
    "deserialize_cuda_engine": r"cannot load \S+/backbone-\w+\.plan",
    "Refitter": r"cannot create a Refitter \(pybind11::init\(\): factory function returned nullptr\)",
    "OnnxParserRefitter": r"no OnnxParserRefitter \(pybind11::init\(\): factory function returned nullptr\)",
    "refit_from_file": r"cannot read the weights of \S+/backbone-\w+\.plan from \S+/backbone\.onnx",
    "refit_cuda_engine": r"cannot give \S+/backbone-\w+\.plan its weights",
}
DRAWING = {
    "create_execution_context": "conditioning: cannot create an execution context|denoise: cannot create an execution context",
    "set_input_shape": r"denoise: refused x of \(\d+, \d+\)",
    "infer_shapes": "denoise: the shapes of x are missing",
    "infer_shapes raises": r"denoise: cannot infer its shapes \(Shape inference failed\)",
    "set_tensor_address": "conditioning: refused the address of z",
    "execute_async_v3": "engine conditioning failed",
}


def test_every_call_that_can_fail_is_tried() -> None:
    source = inspect.getsource(simulated)
    assert set(re.findall(r'(?:fails|constructed)\("([\w ]+)"', source)) == LOADING.keys() | DRAWING.keys()


@pytest.mark.parametrize("call", LOADING)
def test_what_fails_while_loading_is_told_with_what_the_library_logged(
    unbuilt: pathlib.Path, cuda: SimulatedCuda, tensorrt: Simulation, call: str
) -> None:
    build(unbuilt, BuilderFlags(strip_weights=True))
    tensorrt.failing = {call}
    told = refusal(lambda: load(unbuilt))
    assert re.fullmatch(rf"tensorrt {VERSION}: {LOADING[call]} \| {call} broke", told), told
    assert left_on(cuda) == []


@pytest.mark.parametrize("call", DRAWING)
def test_what_fails_while_drawing_is_told_and_the_next_image_is_drawn(
    built: pathlib.Path, cuda: SimulatedCuda, tensorrt: Simulation, call: str
) -> None:
    with load(built) as generator:
        expected = generator.generate([1], **REQUEST).latents.tobytes()
    with load(built) as generator:
        for _ in range(2):  # of which the second tells nothing of the first
            tensorrt.failing = {call}
            told = refusal(lambda: generator.generate([1], **REQUEST))
            assert re.fullmatch(rf"tensorrt {VERSION}: ({DRAWING[call]}) \| {call} broke", told), told
        tensorrt.failing = set()
        assert generator.generate([1], **REQUEST).latents.tobytes() == expected
    assert left_on(cuda) == []


def test_an_engine_that_fails_when_its_graph_is_made_leaves_the_stream_usable(
    built: pathlib.Path, cuda: SimulatedCuda, tensorrt: Simulation, monkeypatch: pytest.MonkeyPatch
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


# Which engines are loaded.


@pytest.mark.parametrize("engine", ENGINES)
def test_an_altered_engine_is_never_deserialized(built: pathlib.Path, tensorrt: Simulation, engine: str) -> None:
    (listed,) = [each for each in Artifact(built).manifest.builds if each.engine == engine]
    file = built / listed.file
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert refusal(lambda: load(built), IntegrityError).startswith(f"{file}: altered since export")
    assert len(tensorrt.calls("deserialize_cuda_engine")) == ENGINES.index(engine)


@pytest.mark.usefixtures("tensorrt")
def test_what_is_deserialized_is_what_was_hashed(built: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every engine's file is replaced by another once it has been opened."""
    opens = pathlib.Path.open

    def replaced_then(path: pathlib.Path, *arguments: Any, **named: Any) -> Any:
        file = opens(path, *arguments, **named)
        if path.suffix == ".plan":
            path.unlink()
            with opens(path, "wb") as other:
                other.write(b"x" * file.seek(0, io.SEEK_END))
            file.seek(0)
        return file

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "open", replaced_then)
        generator = load(built)
    with generator:
        generator.generate([0], **REQUEST)
    assert "altered since export" in refusal(lambda: load(built), IntegrityError)


@pytest.mark.usefixtures("tensorrt")
def test_without_an_engine_the_command_that_builds_it_is_told(unbuilt: pathlib.Path, cuda: SimulatedCuda) -> None:
    assert refusal(lambda: load(unbuilt)) == f"no engine backbone for tensorrt {VERSION} on sm_89; {COMMAND}"
    assert cuda.leaks == []


@pytest.mark.usefixtures("tensorrt")
@pytest.mark.parametrize(
    ("builder", "reason"),
    [
        ({"version": "10.3.0"}, f"built with tensorrt 10.3.0, here is {VERSION}"),
        ({"version": "11.0.0"}, f"built with tensorrt 11.0.0, here is {VERSION}"),
        ({"architecture": "sm_87"}, "built for sm_87, here is sm_89"),
        ({"target": "tensorrt-rtx"}, None),
    ],
    ids=str,
)
def test_an_engine_for_something_else_is_told_with_what_is_here(
    unbuilt: pathlib.Path, cuda: SimulatedCuda, builder: dict[str, str], reason: str | None
) -> None:
    build(unbuilt, **builder)
    file = next(each.file for each in Artifact(unbuilt).manifest.builds if each.engine == "backbone")
    why = "" if reason is None else f"; {file}: {reason}"
    assert refusal(lambda: load(unbuilt)) == f"no engine backbone for tensorrt {VERSION} on sm_89{why}; {COMMAND}"
    assert cuda.leaks == []


def test_an_engine_of_another_graph_is_not_loaded(built: pathlib.Path, tensorrt: Simulation) -> None:
    manifest = json.loads((built / MANIFEST).read_text())
    graph = built / manifest["engines"]["backbone"]["file"]
    graph.write_bytes(graph.read_bytes() + b"\0")
    entry = manifest["files"][graph.name]
    entry["bytes"] += 1
    entry["sha256"] = sha256(graph)
    write_json(built / MANIFEST, manifest)
    file = next(each.file for each in Artifact(built).manifest.builds if each.engine == "backbone")
    assert refusal(lambda: load(built)) == (
        f"no engine backbone for tensorrt {VERSION} on sm_89; {file}: built from another graph; {COMMAND}"
    )
    assert tensorrt.calls("deserialize_cuda_engine") == []


def test_only_an_engine_for_later_versions_may_bring_code(unbuilt: pathlib.Path, tensorrt: Simulation) -> None:
    build(unbuilt, BuilderFlags(version_compatible=True), version="10.3.0")
    with load(unbuilt) as generator:
        assert tensorrt.calls("deserialize_cuda_engine") == [(True,)] * len(ENGINES)
        generator.generate([0], **REQUEST)


def test_an_engine_of_this_version_may_not(built: pathlib.Path, tensorrt: Simulation) -> None:
    with load(built):
        assert tensorrt.calls("deserialize_cuda_engine") == [(False,)] * len(ENGINES)


_OLDER, _HERE = {"version": "10.3.0"}, {"version": VERSION}
_ANY_VERSION, _ANY_GPU = BuilderFlags(version_compatible=True), BuilderFlags(hardware_compatible="ampere+")


@pytest.mark.parametrize(
    ("made", "best"),
    [
        ([(_ANY_VERSION, _OLDER), (BuilderFlags(), _HERE)], 1),
        ([(BuilderFlags(), _HERE), (_ANY_VERSION, _OLDER)], 0),
        ([(_ANY_GPU, {"architecture": "sm_86"}), (BuilderFlags(), {"architecture": "sm_89"})], 1),
        ([(BuilderFlags(), {"architecture": "sm_89"}), (_ANY_GPU, {"architecture": "sm_86"})], 0),
        ([(_ANY_VERSION, {"version": "10.9.0"}), (_ANY_VERSION, _OLDER)], 1),
        ([(_ANY_GPU, {"architecture": "sm_80"}), (_ANY_GPU, {"architecture": "sm_86"})], 1),
    ],
    ids=["version, then exact", "exact, then version", "GPU, then exact", "exact, then GPU", "versions", "GPUs"],
)
def test_of_engines_that_run_here_the_exact_one_is_loaded_then_the_newest(
    unbuilt: pathlib.Path,
    tensorrt: Simulation,
    monkeypatch: pytest.MonkeyPatch,
    made: list[tuple[BuilderFlags, dict[str, str]]],
    best: int,
) -> None:
    for flags, builder in made:
        build(unbuilt, flags, **builder)
    opened = list[str]()
    verified = Artifact.verified_build
    monkeypatch.setattr(Artifact, "verified_build", lambda *asked: (opened.append(asked[1].file), verified(*asked))[1])
    load(unbuilt).close()
    builds = Artifact(unbuilt).manifest.builds
    expected = builds[best * len(ENGINES) : (best + 1) * len(ENGINES)]
    assert opened == [each.file for each in expected]


def test_what_one_engine_may_the_next_may_not(unbuilt: pathlib.Path, tensorrt: Simulation) -> None:
    build(unbuilt, BuilderFlags(version_compatible=True))
    mixed = json.loads((unbuilt / MANIFEST).read_text())
    build(unbuilt)
    plain = json.loads((unbuilt / MANIFEST).read_text())
    for build_ in mixed["builds"]:
        if build_["engine"] == "conditioning":
            plain["builds"] = [other for other in plain["builds"] if other["engine"] != "conditioning"] + [build_]
            plain["files"][build_["file"]] = mixed["files"][build_["file"]]
            old = Artifact(unbuilt).manifest.builds
            source = next(unbuilt / other.file for other in old if other.engine == "conditioning")
            shutil.copyfile(source, unbuilt / build_["file"])
    write_json(unbuilt / MANIFEST, plain)
    with load(unbuilt):
        assert tensorrt.calls("deserialize_cuda_engine") == [(False,), (True,), (False,)]


def test_engines_without_weights_get_those_of_their_graph(
    unbuilt: pathlib.Path, golden_artifacts: dict[str, pathlib.Path], tensorrt: Simulation
) -> None:
    build(unbuilt, BuilderFlags(strip_weights=True))
    with load(unbuilt) as generator:
        found = generator.generate([1], **REQUEST).latents
    assert tensorrt.calls("refit_from_file") == [(str(unbuilt / f"{name}.onnx"),) for name in ENGINES]
    assert len(tensorrt.calls("refit_cuda_engine")) == len(ENGINES)
    order = [call for call, *_ in tensorrt.told if call.startswith(("refit", "create_execution", "deserialize"))]
    assert order[:9] == ["deserialize_cuda_engine", "refit_from_file", "refit_cuda_engine"] * 3
    with Generator.load(golden_artifacts["small"], threads=1) as host:
        assert found.tobytes() == host.generate([1], **REQUEST).latents.tobytes()


def test_engines_with_weights_keep_them(built: pathlib.Path, tensorrt: Simulation) -> None:
    with load(built):
        assert tensorrt.calls("Refitter") == tensorrt.calls("refit_from_file") == []


@pytest.mark.parametrize(
    ("method", "changed"),
    [
        ("get_tensor_name", lambda value: f"{value}_"),
        ("get_tensor_dtype", lambda value: simulated.DataType.HALF),
        ("get_tensor_mode", lambda value: TensorIOMode.NONE),
        ("get_tensor_shape", lambda value: (*value[:-1], value[-1] + 1)),
        ("get_tensor_shape", lambda value: (7, *value[1:])),
        ("num_io_tensors", lambda value: value - 1),
    ],
    ids=["name", "type", "direction", "size", "no dynamic size", "missing"],
)
@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_with_other_tensors_is_refused(
    built: pathlib.Path,
    cuda: SimulatedCuda,
    tensorrt: Simulation,
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
    method: str,
    changed: Callable[[Any], Any],
) -> None:
    """The last of its tensors has another name, type, direction or size, or is missing."""
    as_it_is = vars(simulated.ICudaEngine)[method]

    def of_last(this: simulated.ICudaEngine, which: Any) -> Any:
        names = [tensor.name for tensor in this._tensors]
        value = as_it_is(this, which)
        last = which in (names[-1], len(names) - 1)
        return changed(value) if this.name == engine and last else value

    def of_all(this: simulated.ICudaEngine) -> Any:
        value = as_it_is.fget(this)
        return changed(value) if this.name == engine else value

    if method == "get_tensor_name":
        monkeypatch.setattr(
            simulated.ICudaEngine,
            "_tensor",
            lambda this, name: next(tensor for tensor in this._tensors if tensor.name == name.rstrip("_")),
        )
    monkeypatch.setattr(simulated.ICudaEngine, method, property(of_all) if method == "num_io_tensors" else of_last)
    message = refusal(lambda: load(built))
    assert message.startswith(f"engine {engine} has {{")
    assert message.endswith("; build it again")
    assert len(tensorrt.calls("deserialize_cuda_engine")) == ENGINES.index(engine) + 1
    assert left_on(cuda) == []


# Requests.


@pytest.mark.parametrize("case", ["images", "tokens", "steps"])
def test_a_request_that_engines_were_not_built_for_is_told_with_what_they_were(
    unbuilt: pathlib.Path, cuda: SimulatedCuda, tensorrt: Simulation, case: str
) -> None:
    artifact = Artifact(unbuilt)
    plans = wanted_plans(artifact, REQUEST)
    writer: Any = PlanWriter()
    build_engines(artifact, writer, plans, BATCH, BuilderFlags(), None, True, lambda text: None, None)
    profiles = {each.engine: each.profile for each in Artifact(unbuilt).manifest.builds}
    labels, changes, engine, tensor = {
        "images": ([0] * 5, {}, "denoise", "x"),
        "tokens": ([0], {"iterations": 1}, "denoise", "x"),
        "steps": ([0], {"diffusion_steps": 3}, "conditioning", "timesteps"),
    }[case]
    with load(unbuilt) as generator:
        config = generator.manifest.model
        count = max(iteration.count for iteration in generator.plan(**{**REQUEST, **changes}).iterations)
        if case == "tokens":  # all at once for one image are no more rows than half of them for four
            labels = [0] * 4
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
        need = [3] if case == "steps" else [count * len(labels), config.token_channels]
        assert found[3] == str(need)
        assert "execution context" not in left_on(cuda)
        generator.generate([0, 1, 2, 3], **REQUEST)
    assert left_on(cuda) == []


def test_all_engines_share_memory_as_large_as_the_largest_needs(
    built: pathlib.Path, cuda: SimulatedCuda, tensorrt: Simulation
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


def test_every_size_has_a_context_of_its_own(built: pathlib.Path, tensorrt: Simulation) -> None:
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
def test_a_precision_that_the_gpu_has_no_products_for_is_refused(unbuilt: pathlib.Path, cuda: SimulatedCuda) -> None:
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


def test_tensorrt_rtx_runs_what_was_built_for_it(
    unbuilt: pathlib.Path, cuda: SimulatedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = simulated_tensorrt(Simulation(cuda), "1.7.1", "tensorrt_rtx")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", module)
    assert refusal(lambda: load(unbuilt, "tensorrt-rtx")) == (
        "no engine backbone for tensorrt-rtx 1.7.1 on sm_89; mar build ARTIFACT --target tensorrt-rtx"
    )
    build(unbuilt, target="tensorrt-rtx", version="1.7.1")
    with load(unbuilt, "tensorrt-rtx") as generator:
        assert generator.description == "tensorrt-rtx 1.7.1, Simulated"
        generator.generate([0], **REQUEST)
    assert left_on(cuda) == []


# Against the real library.


@pytest.fixture(scope="module")
def real() -> Any:
    """TensorRT-RTX, which has wheels for x86-64 and can be asked without a GPU."""
    if not (sys.platform == "linux" and platform.machine() == "x86_64"):
        pytest.importorskip("tensorrt_rtx")
    return importlib.import_module("tensorrt_rtx")


SIMULATED = {
    **{part.__name__: part for part in (*simulated.PLAIN, *simulated.SCRIPTED)},
    "ICudaEngine": simulated.ICudaEngine,
    "IExecutionContext": simulated.IExecutionContext,
    "ILogger.Severity": simulated.Severity,
}
HOLDERS = {
    "module": "",
    "_runtime": "Runtime",
    "plan": "ICudaEngine",
    "_plan": "ICudaEngine",
    "context": "IExecutionContext",
    "_context": "IExecutionContext",
    "refitter": "Refitter",
    "parser": "OnnxParserRefitter",
}


def test_the_whole_simulation_is_compared() -> None:
    classes = {name for name, value in vars(simulated).items() if inspect.isclass(value)}
    ours = {name for name in classes if vars(simulated)[name].__module__ == simulated.__name__}
    assert ours - {"Simulation"} == {name.removeprefix("ILogger.") for name in SIMULATED}


@pytest.mark.parametrize("name", SIMULATED)
def test_a_class_of_the_simulation_has_no_name_that_the_real_one_has_not(real: Any, name: str) -> None:
    assert_alike(SIMULATED[name], resolved(real, name))


@pytest.mark.parametrize("part", simulated.SCRIPTED, ids=lambda part: str(part.__name__))
def test_what_the_runtime_constructs_takes_what_the_real_one_takes(real: Any, part: type) -> None:
    assert parameters(vars(part)["__init__"]) == documented(getattr(real, part.__name__).__init__)


@pytest.mark.parametrize("name", [name for name, part in SIMULATED.items() if issubclass(part, enum.Enum)])
def test_numbers_of_the_simulation_are_those_of_the_real_one(real: Any, name: str) -> None:
    theirs = resolved(real, name).__members__
    assert all(int(theirs[member.name]) == member.value for member in SIMULATED[name])


def test_every_name_that_the_backend_uses_is_one_of_the_real_library(real: Any) -> None:
    used = used_names(HOLDERS, backend, tensorrt_library)
    ours = types.SimpleNamespace(__version__="", **{name: part for name, part in SIMULATED.items() if "." not in name})
    assert {"Runtime.deserialize_cuda_engine", "IExecutionContext.execute_async_v3", "DataType.INT64"} <= used
    for name in used:
        resolved(real, name)
        resolved(ours, name)


def test_the_holders_of_library_objects_are_variables_of_the_backend() -> None:
    """So that a renamed variable is not left out of the comparison unseen."""
    assert HOLDERS.keys() <= variables(backend, tensorrt_library)
    assert not HOLDERS.keys() & set(vars(builtins))


def test_the_real_inference_of_shapes_raises_what_the_simulated_one_does(real: Any) -> None:
    assert ":raises: RuntimeError if shape inference fails" in real.IExecutionContext.infer_shapes.__doc__


def test_the_real_runtime_fails_as_the_simulated_one_does(real: Any) -> None:
    """With None and a line in the log, where what it is to load is no engine."""
    library = tensorrt_library.TensorRTLibrary("tensorrt-rtx")
    runtime = library.new(real.Runtime)
    assert runtime.engine_host_code_allowed is False
    runtime.engine_host_code_allowed = True
    assert runtime.engine_host_code_allowed is True
    assert runtime.deserialize_cuda_engine(b"no engine") is None
    assert library.log.lines
    with pytest.raises(BackendError, match=r"^tensorrt-rtx [\d.]+: cannot create a Refitter \("):
        library.new(real.Refitter, None)
