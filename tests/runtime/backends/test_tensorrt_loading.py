"""TensorRT as a backend: which of the engines in an artifact it loads, and why it refuses others."""

from __future__ import annotations

import io
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from mar_export.tensorrt.engine_builder import BuilderFlags
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import MANIFEST
from runtime.errors import IntegrityError
from runtime.generator import Generator
from runtime.model.engine_spec import ENGINES
from runtime.storage.files import sha256, write_json
from tests.fakes.simulated_cuda import SimulatedCuda
from tests.fakes.tensorrt import TensorRTScript
from tests.fakes.tensorrt.runtime import DataType, ICudaEngine, TensorIOMode
from tests.helpers.simulated_gpu import VERSION, build, left_on, refusal

REQUEST: dict[str, Any] = {"iterations": 2, "diffusion_steps": 2, "cfg_scale": 2.0}
COMMAND = "mar build ARTIFACT --target tensorrt"


def load(path: pathlib.Path, target: str = "tensorrt") -> Generator:
    return Generator.load(path, backend=target)


# Which engines are loaded.


@pytest.mark.parametrize("engine", ENGINES)
def test_an_altered_engine_is_never_deserialized(built: pathlib.Path, tensorrt: TensorRTScript, engine: str) -> None:
    (listed,) = [each for each in Artifact(built).manifest.builds if each.engine == engine]
    file = built / listed.file
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert refusal(lambda: load(built), IntegrityError).startswith(f"{file}: altered since export")
    assert len(tensorrt.calls("deserialize_cuda_engine")) == ENGINES.index(engine)


@pytest.mark.usefixtures("tensorrt")
def test_the_deserialized_bytes_are_the_hashed_ones(built: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_the_error_without_an_engine_names_the_command_that_builds_it(
    unbuilt: pathlib.Path, cuda: SimulatedCuda
) -> None:
    assert (
        refusal(lambda: load(unbuilt))
        == f"no engine backbone for tensorrt {VERSION} on sm_89; build one with {COMMAND}"
    )
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
def test_the_error_of_an_engine_for_another_machine_names_this_machine(
    unbuilt: pathlib.Path, cuda: SimulatedCuda, builder: dict[str, str], reason: str | None
) -> None:
    build(unbuilt, **builder)
    file = next(each.file for each in Artifact(unbuilt).manifest.builds if each.engine == "backbone")
    why = "" if reason is None else f"; {file}: {reason}"
    assert (
        refusal(lambda: load(unbuilt))
        == f"no engine backbone for tensorrt {VERSION} on sm_89{why}; build one with {COMMAND}"
    )
    assert cuda.leaks == []


def test_an_engine_of_another_graph_is_not_loaded(built: pathlib.Path, tensorrt: TensorRTScript) -> None:
    manifest = json.loads((built / MANIFEST).read_text())
    graph = built / manifest["engines"]["backbone"]["file"]
    graph.write_bytes(graph.read_bytes() + b"\0")
    entry = manifest["files"][graph.name]
    entry["bytes"] += 1
    entry["sha256"] = sha256(graph)
    write_json(built / MANIFEST, manifest)
    file = next(each.file for each in Artifact(built).manifest.builds if each.engine == "backbone")
    assert refusal(lambda: load(built)) == (
        f"no engine backbone for tensorrt {VERSION} on sm_89; {file}: built from another graph; "
        f"build one with {COMMAND}"
    )
    assert tensorrt.calls("deserialize_cuda_engine") == []


def test_a_version_compatible_engine_may_contain_host_code(unbuilt: pathlib.Path, tensorrt: TensorRTScript) -> None:
    build(unbuilt, BuilderFlags(version_compatible=True), version="10.3.0")
    with load(unbuilt) as generator:
        assert tensorrt.calls("deserialize_cuda_engine") == [(True,)] * len(ENGINES)
        generator.generate([0], **REQUEST)


def test_another_engine_may_not_contain_host_code(built: pathlib.Path, tensorrt: TensorRTScript) -> None:
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
def test_an_engine_for_exactly_this_machine_is_preferred_then_the_newest(
    unbuilt: pathlib.Path,
    tensorrt: TensorRTScript,
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


def test_the_permission_for_host_code_does_not_pass_to_the_next_engine(
    unbuilt: pathlib.Path, tensorrt: TensorRTScript
) -> None:
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


def test_engines_without_weights_get_the_weights_of_their_graph(
    unbuilt: pathlib.Path, golden_artifacts: dict[str, pathlib.Path], tensorrt: TensorRTScript
) -> None:
    build(unbuilt, BuilderFlags(strip_weights=True))
    with load(unbuilt) as generator:
        found = generator.generate([1], **REQUEST).latents
    assert tensorrt.calls("refit_from_file") == [(str(unbuilt / f"{name}.onnx"),) for name in ENGINES]
    assert len(tensorrt.calls("refit_cuda_engine")) == len(ENGINES)
    order = [call for call, *_ in tensorrt.history if call.startswith(("refit", "create_execution", "deserialize"))]
    assert order[:9] == ["deserialize_cuda_engine", "refit_from_file", "refit_cuda_engine"] * 3
    with Generator.load(golden_artifacts["small"], threads=1) as host:
        assert found.tobytes() == host.generate([1], **REQUEST).latents.tobytes()


def test_engines_with_weights_are_not_refitted(built: pathlib.Path, tensorrt: TensorRTScript) -> None:
    with load(built):
        assert tensorrt.calls("Refitter") == tensorrt.calls("refit_from_file") == []


@pytest.mark.parametrize(
    ("method", "changed"),
    [
        ("get_tensor_name", lambda value: f"{value}_"),
        ("get_tensor_dtype", lambda value: DataType.HALF),
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
    tensorrt: TensorRTScript,
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
    method: str,
    changed: Callable[[Any], Any],
) -> None:
    """The last of its tensors has another name, type, direction or size, or is missing."""
    as_it_is = vars(ICudaEngine)[method]

    def of_last(this: ICudaEngine, which: Any) -> Any:
        names = [tensor.name for tensor in this._tensors]
        value = as_it_is(this, which)
        last = which in (names[-1], len(names) - 1)
        return changed(value) if this.name == engine and last else value

    def of_all(this: ICudaEngine) -> Any:
        value = as_it_is.fget(this)
        return changed(value) if this.name == engine else value

    if method == "get_tensor_name":
        monkeypatch.setattr(
            ICudaEngine,
            "_tensor",
            lambda this, name: next(tensor for tensor in this._tensors if tensor.name == name.rstrip("_")),
        )
    monkeypatch.setattr(ICudaEngine, method, property(of_all) if method == "num_io_tensors" else of_last)
    message = refusal(lambda: load(built))
    assert message.startswith(f"engine {engine} has {{")
    assert message.endswith("; build it again")
    assert len(tensorrt.calls("deserialize_cuda_engine")) == ENGINES.index(engine) + 1
    assert left_on(cuda) == []
