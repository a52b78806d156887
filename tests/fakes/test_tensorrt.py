"""The fake TensorRT is like the real library, and backend and builder use only names of the real library."""

from __future__ import annotations

import ast
import builtins
import enum
import importlib
import inspect
import pathlib
import platform
import re
import sys
import types
from typing import Any

import pytest

from mar_export.tensorrt import engine_builder
from mar_export.tensorrt.engine_builder import HARDWARE, BuilderFlags, TensorRTBuilder
from runtime.backends import tensorrt as backend
from runtime.backends import tensorrt_library
from runtime.errors import BackendError
from runtime.gpu.current_gpu import Gpu
from tests.fakes.real_library import assert_alike, documented, parameters, resolved, used_names, variables
from tests.fakes.tensorrt import BUILDER_FLAGS, CLASSES, SCRIPTED_CLASSES, builder, fake_tensorrt, runtime, script
from tests.fakes.tensorrt.script import TensorRTScript

FAKE = fake_tensorrt(TensorRTScript())
FAKE_CLASSES: dict[str, type] = {
    **{name: value for name, value in vars(FAKE).items() if inspect.isclass(value)},
    **{part.__name__: part for part in (*CLASSES, *SCRIPTED_CLASSES)},
    "ILogger.Severity": script.Severity,
}
ENUMS_WITH_NUMBERS = [
    "ILogger.Severity",
    "DataType",
    "TensorIOMode",
    "ExecutionContextAllocationStrategy",
    "NetworkDefinitionCreationFlag",
]

# The variables that hold an object of the library in the source of backend and builder, and its class.
BACKEND_HOLDERS = {
    "module": "",
    "_runtime": "Runtime",
    "engine": "ICudaEngine",
    "_engine": "ICudaEngine",
    "context": "IExecutionContext",
    "_context": "IExecutionContext",
    "refitter": "Refitter",
    "parser": "OnnxParserRefitter",
}
BUILDER_HOLDERS = {
    "library": "",
    "_library": "",
    "module": "",
    "_builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "parser": "OnnxParser",
    "error": "ParserError",
    "shapes": "IOptimizationProfile",
    "cache": "ITimingCache",
    "known": "BuilderFlag",
    "members": "ComputeCapability.__members__",
    "levels": "HardwareCompatibilityLevel",
}
HOLDERS = [(backend, BACKEND_HOLDERS), (engine_builder, BUILDER_HOLDERS)]


@pytest.fixture(scope="module")
def real() -> Any:
    """TensorRT-RTX, which has wheels for x86-64 and can be imported without a GPU."""
    if not (sys.platform == "linux" and platform.machine() == "x86_64"):
        pytest.importorskip("tensorrt_rtx")
    return importlib.import_module("tensorrt_rtx")


@pytest.fixture
def logger(real: Any) -> Any:
    """A logger of the real library."""
    return tensorrt_library.TensorRTLibrary("tensorrt-rtx").log


@pytest.fixture
def fake_script() -> TensorRTScript:
    return TensorRTScript()


@pytest.fixture
def fake_builder(fake_script: TensorRTScript, monkeypatch: pytest.MonkeyPatch) -> TensorRTBuilder:
    """A builder with the fake library, on a machine with an Orin."""
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(fake_script))
    monkeypatch.setattr(engine_builder, "current_gpu", lambda: Gpu("Orin", "sm_87", 2**33, "12.6", True))
    return TensorRTBuilder("tensorrt", ())


# Names, parameters and numbers.


def test_every_class_of_the_fake_is_compared() -> None:
    defined = {
        name
        for module in (runtime, builder, script)
        for name, value in vars(module).items()
        if inspect.isclass(value) and value.__module__ == module.__name__
    }
    compared = {name.removeprefix("ILogger.") for name in FAKE_CLASSES}
    assert defined - {"TensorRTScript"} == compared - {"BuilderFlag", "HardwareCompatibilityLevel"}


@pytest.mark.parametrize("name", FAKE_CLASSES)
def test_a_class_of_the_fake_has_only_names_and_parameters_of_the_real_class(real: Any, name: str) -> None:
    assert_alike(FAKE_CLASSES[name], resolved(real, name))


@pytest.mark.parametrize("part", SCRIPTED_CLASSES, ids=lambda part: str(part.__name__))
def test_a_constructor_of_the_fake_has_the_parameters_of_the_real_one(real: Any, part: type) -> None:
    assert parameters(vars(part)["__init__"]) == documented(getattr(real, part.__name__).__init__)


@pytest.mark.parametrize("name", ENUMS_WITH_NUMBERS)
def test_numbers_of_the_fake_are_those_of_the_real_library(real: Any, name: str) -> None:
    theirs = resolved(real, name).__members__
    ours: Any = FAKE_CLASSES[name]
    assert issubclass(ours, enum.Enum)
    assert all(int(theirs[member.name]) == member.value for member in ours)


def test_severities_of_the_fake_have_the_order_of_the_real_ones(real: Any) -> None:
    severities = real.ILogger.Severity
    for first in script.Severity:
        for second in script.Severity:
            assert (getattr(severities, first.name) <= getattr(severities, second.name)) is (first <= second)


# Names that backend and builder use, read from their source.


def test_every_name_that_the_backend_uses_is_one_of_the_real_library(real: Any) -> None:
    used = used_names(BACKEND_HOLDERS, backend, tensorrt_library)
    ours = types.SimpleNamespace(**{name: part for name, part in FAKE_CLASSES.items() if "." not in name})
    ours.__version__ = ""
    assert {"Runtime.deserialize_cuda_engine", "IExecutionContext.execute_async_v3", "DataType.INT64"} <= used
    for name in used:
        resolved(real, name)
        resolved(ours, name)


def test_every_name_that_the_builder_uses_is_one_of_the_real_library(real: Any) -> None:
    used = used_names(BUILDER_HOLDERS, engine_builder, tensorrt_library)
    found = {name.split(".")[0] for name in used}
    parts = (*builder.CLASSES, *builder.SCRIPTED_CLASSES)
    ours = {part.__name__ for part in parts} | {"ILogger", "BuilderFlag", "HardwareCompatibilityLevel", "__version__"}
    # the rest of the fake is what its calls return, or what only they are given
    assert ours - found <= {"IHostMemory", "INetworkDefinition"}
    assert found <= ours
    for name in used:
        resolved(real, name)


def test_every_name_in_capitals_that_the_builder_looks_up_is_one_of_the_real_library(real: Any) -> None:
    texts = {
        node.value
        for node in ast.walk(ast.parse(inspect.getsource(engine_builder)))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"[A-Z][A-Z0-9_]+", node.value)
    }
    texts.discard("SM")
    assert texts >= {"TF32", "STRIP_PLAN", *HARDWARE.values()}
    known = {*real.BuilderFlag.__members__, *real.HardwareCompatibilityLevel.__members__}
    assert texts <= known


@pytest.mark.parametrize(("module", "holders"), HOLDERS, ids=["backend", "builder"])
def test_the_holders_of_library_objects_are_variables_of_the_source(
    module: types.ModuleType, holders: dict[str, str]
) -> None:
    """So that the comparison notices a renamed variable."""
    assert holders.keys() <= variables(module, tensorrt_library)
    assert not holders.keys() & set(vars(builtins))


def test_the_calls_that_only_the_library_makes_are_those_of_the_real_one(
    real: Any, fake_builder: TensorRTBuilder, fake_script: TensorRTScript
) -> None:
    """The methods of logger and progress monitor, which the builder writes and the library calls by position."""
    profile = {"x": ((1, 0), (2, 4), (8, 16))}
    fake_builder.build(pathlib.Path("backbone.onnx"), profile, BuilderFlags(), None, lambda *step: None)
    ours = {"ILogger": fake_script.logger, "IProgressMonitor": fake_script.config.progress_monitor}
    for name, instance in ours.items():
        theirs = {key for key, value in vars(getattr(real, name)).items() if callable(value) and key[0] != "_"}
        theirs -= {"Severity"}
        assert theirs == {key for key, value in vars(type(instance)).items() if callable(value) and key[0] != "_"}
        for key in theirs:
            counted = len(inspect.signature(getattr(type(instance), key)).parameters)
            assert counted == len(documented(getattr(getattr(real, name), key)))


# Defaults and failures.


def test_the_real_builder_begins_with_the_settings_of_the_fake(
    real: Any, logger: Any, fake_builder: TensorRTBuilder, fake_script: TensorRTScript
) -> None:
    config = real.Builder(logger).create_builder_config()
    fake_builder._builder.create_builder_config()
    fake = fake_script.config
    for name in BUILDER_FLAGS:
        on = {flag.name for flag in fake._flags}
        assert config.get_flag(getattr(real.BuilderFlag, name)) is (name in on), name
    assert config.num_compute_capabilities == fake.num_compute_capabilities == 0
    assert config.set_compute_capability(real.ComputeCapability.SM89, 0) is False
    assert fake.set_compute_capability(builder.ComputeCapability.SM89, 0) is False
    assert logger.lines
    for each in (config, fake):
        with pytest.raises(AttributeError):
            each.no_such_setting = 1


def test_the_real_parser_fails_as_the_fake_does(real: Any, logger: Any, tmp_path: pathlib.Path) -> None:
    network = real.Builder(logger).create_network(1)
    parser = real.OnnxParser(network, logger)
    assert parser.parse_from_file(str(tmp_path / "nothing.onnx")) is False
    assert parser.num_errors == 1
    error = parser.get_error(0)
    assert (error.node_name(), error.node_operator()) == ("", "")
    assert "nothing.onnx" in error.desc()
    assert any("nothing.onnx" in line for line in logger.lines)


def test_the_real_inference_of_shapes_raises_what_the_fake_raises(real: Any) -> None:
    assert ":raises: RuntimeError if shape inference fails" in real.IExecutionContext.infer_shapes.__doc__


def test_the_real_runtime_fails_as_the_fake_does(real: Any) -> None:
    """With None and a line in the log, where the bytes are no engine."""
    library = tensorrt_library.TensorRTLibrary("tensorrt-rtx")
    opened = library.new(real.Runtime)
    assert opened.engine_host_code_allowed is False
    opened.engine_host_code_allowed = True
    assert opened.engine_host_code_allowed is True
    assert opened.deserialize_cuda_engine(b"no engine") is None
    assert library.log.lines
    with pytest.raises(BackendError, match=r"^tensorrt-rtx [\d.]+: cannot create a Refitter \("):
        library.new(real.Refitter, None)
