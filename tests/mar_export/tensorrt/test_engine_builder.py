"""What the builder tells TensorRT, and what it tells of it where that fails."""

from __future__ import annotations

import dataclasses
import importlib
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import pytest

from mar_export.tensorrt import engine_builder as tensorrt_builder
from mar_export.tensorrt.engine_builder import HARDWARE, BuilderFlags, TensorRTBuilder
from runtime.errors import BackendError, MarError, RequestError
from runtime.gpu.current_gpu import Gpu
from tests.fakes.tensorrt import TensorRTScript, fake_tensorrt
from tests.fakes.tensorrt.builder import MemoryPoolType

PROFILE = {"x": ((1, 0), (2, 4), (8, 16)), "labels": ((1,), (2,), (8,))}
GRAPH = pathlib.Path("models/backbone.onnx")
Builders = Callable[..., TensorRTBuilder]


@pytest.fixture
def script() -> TensorRTScript:
    return TensorRTScript()


@pytest.fixture
def builders(script: TensorRTScript, monkeypatch: pytest.MonkeyPatch) -> Builders:
    """Makes a builder with the fake library in place of the target's, on a machine with an Orin."""

    def make(target: str = "tensorrt", *architectures: str, **module: Any) -> TensorRTBuilder:
        name = target.replace("-", "_")
        monkeypatch.setitem(sys.modules, name, fake_tensorrt(script, name=name, **module))
        return TensorRTBuilder(target, architectures)

    monkeypatch.setattr(tensorrt_builder, "current_gpu", lambda: Gpu("Orin", "sm_87", 2**33, "12.6", True))
    return make


def built(
    builder: TensorRTBuilder,
    flags: BuilderFlags | None = None,
    timing_cache: pathlib.Path | None = None,
    progress: Any = None,
) -> bytes:
    return bytes(builder.build(GRAPH, PROFILE, flags or BuilderFlags(), timing_cache, progress))


def refusal(builder: TensorRTBuilder, kind: type[MarError] = BackendError, **arguments: Any) -> str:
    with pytest.raises(MarError) as caught:
        built(builder, **arguments)
    assert type(caught.value) is kind
    return str(caught.value)


# The settings that the library receives.


def test_a_graph_is_read_by_name_so_that_its_weights_are_found_beside_it(
    builders: Builders, script: TensorRTScript
) -> None:
    assert built(builders()) == b"plan"
    assert script.calls("parse_from_file") == [(str(GRAPH),)]


def test_every_network_is_strongly_typed(builders: Builders, script: TensorRTScript) -> None:
    built(builders())
    assert script.calls("create_network") == [(1,)]  # the flag's number is that of a bit, and it is bit 0


def test_every_input_has_its_three_shapes_in_a_profile_that_is_added(
    builders: Builders, script: TensorRTScript
) -> None:
    built(builders())
    assert script.calls("set_shape") == [(name, *shapes) for name, shapes in PROFILE.items()]
    assert script.calls("add_optimization_profile") == [("IOptimizationProfile",)]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (BuilderFlags(), set()),
        (BuilderFlags(tf32=True), {"TF32"}),
        (BuilderFlags(version_compatible=True), {"VERSION_COMPATIBLE"}),
        (BuilderFlags(refit=True), {"REFIT"}),
        (BuilderFlags(strip_weights=True), {"STRIP_PLAN", "REFIT_IDENTICAL"}),
        (
            BuilderFlags(tf32=True, version_compatible=True, refit=True, strip_weights=True),
            {"TF32", "VERSION_COMPATIBLE", "REFIT", "STRIP_PLAN", "REFIT_IDENTICAL"},
        ),
    ],
)
def test_flags_are_set_exactly_as_asked_and_tf32_is_off_otherwise(
    builders: Builders, script: TensorRTScript, flags: BuilderFlags, expected: set[str]
) -> None:
    built(builders(), flags)
    assert {flag.name for flag in script.config._flags} == expected


@pytest.mark.parametrize(
    ("missing", "flags", "message"),
    [
        ("REFIT_IDENTICAL", BuilderFlags(strip_weights=True), "refit identical"),
        ("STRIP_PLAN", BuilderFlags(strip_weights=True), "strip plan"),
        ("VERSION_COMPATIBLE", BuilderFlags(version_compatible=True), "version compatible"),
        ("SAME_COMPUTE_CAPABILITY", BuilderFlags(hardware_compatible="same"), "same compute capability"),
        ("AMPERE_PLUS", BuilderFlags(hardware_compatible="ampere+"), "ampere plus"),
    ],
)
def test_what_an_old_version_does_not_have_is_told_and_missed_only_if_asked_for(
    builders: Builders, missing: str, flags: BuilderFlags, message: str
) -> None:
    old = builders(version="10.3.0", without=[missing])
    assert refusal(old, RequestError, flags=flags) == f"tensorrt 10.3.0 has no {message}"
    assert built(old) == b"plan"


def test_the_workspace_is_in_mebibytes_and_unlimited_unless_asked_for(
    builders: Builders, script: TensorRTScript
) -> None:
    built(builders(), BuilderFlags(workspace=3))
    assert script.config._pools == {MemoryPoolType.WORKSPACE: 3 * 1024 * 1024}
    built(builders())
    assert script.config._pools == {}


@pytest.mark.parametrize("level", [None, 0, 5])
def test_the_level_of_the_search_is_the_librarys_own_unless_asked_for(
    builders: Builders, script: TensorRTScript, level: int | None
) -> None:
    built(builders(), BuilderFlags(builder_level=level))
    assert script.config.builder_optimization_level == level


@pytest.mark.parametrize("choice", HARDWARE)
def test_hardware_compatibility_is_the_level_that_is_asked_for(
    builders: Builders, script: TensorRTScript, choice: str
) -> None:
    built(builders(), BuilderFlags(hardware_compatible=choice))
    assert script.config.hardware_compatibility_level.name == HARDWARE[choice]
    built(builders())
    assert script.config.hardware_compatibility_level is None


def test_flags_that_are_as_usual_are_not_told() -> None:
    assert BuilderFlags().changed() == {}
    every = BuilderFlags("same", True, True, True, True, 0, 0)
    assert every.changed() == dataclasses.asdict(every)


# Which GPUs.


def test_architectures_are_told_one_by_one_each_once_and_in_one_order(
    builders: Builders, script: TensorRTScript
) -> None:
    builder = builders("tensorrt-rtx", "sm_120", "sm_86", "sm_120")
    assert builder.architectures == ("sm_86", "sm_120")
    assert built(builder) == b"plan"  # the library refuses an index that was not announced
    assert script.calls("set_compute_capability") == [("SM86", 0), ("SM120", 1)]
    assert script.config.num_compute_capabilities == 2


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
def test_without_architectures_the_gpu_that_is_here_is_built_for(
    builders: Builders, script: TensorRTScript, target: str
) -> None:
    builder = builders(target)
    assert builder.architectures == ("sm_87",)
    built(builder)
    assert script.calls("set_compute_capability") == []


def test_without_a_gpu_and_without_architectures_there_is_no_builder(
    builders: Builders, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> Gpu:
        raise BackendError("no NVIDIA GPU here")

    monkeypatch.setattr(tensorrt_builder, "current_gpu", none)
    with pytest.raises(BackendError, match=r"^no NVIDIA GPU here$"):
        builders()
    assert builders("tensorrt-rtx", "sm_89").architectures == ("sm_89",)


def test_tensorrt_cannot_choose_its_gpu(builders: Builders) -> None:
    with pytest.raises(RequestError) as caught:
        builders("tensorrt", "sm_89")
    assert str(caught.value) == "tensorrt builds only for the GPU of this machine; remove --architecture"


@pytest.mark.parametrize("name", ["sm_87", "SM89", "89", "", "NONE", "CURRENT", "name", "__members__", "sm_89 "])
def test_an_unknown_architecture_names_the_known_ones(builders: Builders, name: str) -> None:
    with pytest.raises(RequestError) as caught:
        builders("tensorrt-rtx", "sm_89", name, version="1.7.1")
    assert str(caught.value) == (
        f"tensorrt-rtx 1.7.1 cannot build for {name}; it knows sm_80, sm_86, sm_89, sm_120, sm_121"
    )


# The library itself.


@pytest.mark.parametrize(
    "error", [ModuleNotFoundError("No module named 'tensorrt'"), OSError("libnvinfer.so.10: cannot open")], ids=str
)
def test_a_library_that_is_missing_or_does_not_load_is_told(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def missing(name: str) -> Any:
        assert name == "tensorrt"
        raise error

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(BackendError) as caught:
        TensorRTBuilder("tensorrt", ())
    assert str(caught.value) == (
        f"tensorrt is not installed ({error}); pip install 'mar-runtime[tensorrt]', or on a Jetson see README, Install"
    )


@pytest.mark.parametrize("version", ["10.2.0", "10.2.0.19"])
def test_the_version_that_builds_wrong_engines_is_refused(
    builders: Builders, script: TensorRTScript, version: str
) -> None:
    with pytest.raises(BackendError, match=rf"^TensorRT {version} is known to build wrong engines"):
        builders(version=version)
    assert script.history == []


@pytest.mark.parametrize(
    ("target", "version"), [("tensorrt", "10.20.0"), ("tensorrt", "10.3.0"), ("tensorrt-rtx", "10.2.0")]
)
def test_other_versions_are_not(builders: Builders, target: str, version: str) -> None:
    assert builders(target, version=version).version == version


# Failures. The library logs what went wrong, and nothing else tells.

LOGGED = [
    ("INTERNAL_ERROR", "out of registers"),
    ("WARNING", "slow today"),
    ("ERROR", "no kernel"),
    ("INFO", "hello"),
    ("VERBOSE", "hm"),
]
LINES = " | out of registers | no kernel"
FAILURES = {
    "create_network": "no network",
    "create_builder_config": "no builder config",
    "create_optimization_profile": "no optimization profile",
    "add_optimization_profile": f"backbone.onnx: refused the shapes {PROFILE}",
    "set_compute_capability": "cannot build for sm_86",
    "build_serialized_network": "backbone.onnx was not built",
    "parse_from_file": "backbone.onnx: tensorrt-rtx 1.7.1 cannot read it: ",
}


@pytest.mark.parametrize("call", FAILURES)
def test_every_failure_tells_the_call_and_what_the_library_logged(
    builders: Builders, script: TensorRTScript, call: str
) -> None:
    builder = builders("tensorrt-rtx", "sm_86", version="1.7.1")
    script.failing, script.logged = {call}, LOGGED
    assert refusal(builder) == f"tensorrt-rtx 1.7.1: {FAILURES[call]}{LINES}"


@pytest.mark.parametrize("call", ["create_timing_cache", "set_timing_cache"])
def test_a_timing_cache_that_is_not_accepted_is_named_with_what_was_logged(
    builders: Builders, script: TensorRTScript, tmp_path: pathlib.Path, call: str
) -> None:
    builder = builders(version="10.3.0")
    cache = tmp_path / "cache"
    cache.write_bytes(b"of another GPU")
    script.failing, script.logged = {call}, LOGGED
    message = refusal(builder, timing_cache=cache)
    assert message.startswith(f"tensorrt 10.3.0: {cache} is no")
    assert message.endswith(LINES)
    assert cache.read_bytes() == b"of another GPU"
    assert script.calls("build_serialized_network") == []


def test_a_constructor_that_returns_nothing_is_told_with_what_was_logged(
    builders: Builders, script: TensorRTScript
) -> None:
    """As TensorRT does where there is no GPU."""
    script.failing, script.logged = {"Builder"}, LOGGED
    with pytest.raises(BackendError) as caught:
        builders(version="10.3.0")
    assert str(caught.value) == (
        f"tensorrt 10.3.0: cannot create a Builder (pybind11::init(): factory function returned nullptr){LINES}"
    )


def test_what_was_logged_before_a_build_is_no_part_of_its_error(builders: Builders, script: TensorRTScript) -> None:
    builder = builders(version="10.3.0")
    script.failing, script.logged = {"build_serialized_network"}, [("ERROR", "first")]
    refusal(builder)
    script.logged = [("ERROR", "second")]
    assert refusal(builder) == "tensorrt 10.3.0: backbone.onnx was not built | second"


def test_every_error_of_the_parser_is_told_with_its_node_and_operator(
    builders: Builders, script: TensorRTScript
) -> None:
    builder = builders(version="10.3.0")
    script.failing, script.logged = {"parse_from_file"}, [("ERROR", "In node 3")]
    script.parser_errors = [("/head/Gelu_2", "Gelu", "no such operator"), ("", "", "truncated")]
    assert refusal(builder) == (
        "tensorrt 10.3.0: backbone.onnx: tensorrt 10.3.0 cannot read it: "
        "/head/Gelu_2 (Gelu): no such operator; graph (): truncated | In node 3"
    )


# The timing cache.


def test_a_timing_cache_is_read_used_and_written_back_with_what_was_measured(
    builders: Builders, script: TensorRTScript, tmp_path: pathlib.Path
) -> None:
    cache = tmp_path / "new" / "cache"
    built(builders(), timing_cache=cache)
    assert script.calls("create_timing_cache") == [(b"",)]
    assert script.calls("set_timing_cache") == [("ITimingCache", False)]
    assert cache.read_bytes() == b"+measured"
    built(builders(), timing_cache=cache)
    assert script.calls("create_timing_cache")[1:] == [(b"+measured",)]
    assert cache.read_bytes() == b"+measured+measured"
    assert list(cache.parent.iterdir()) == [cache]


@pytest.mark.parametrize("call", ["build_serialized_network", "serialize"])
def test_a_failure_leaves_the_timing_cache_as_it_was(
    builders: Builders, script: TensorRTScript, tmp_path: pathlib.Path, call: str
) -> None:
    cache = tmp_path / "cache"
    cache.write_bytes(b"before")
    script.failing = {call}
    with pytest.raises((BackendError, RuntimeError)):
        built(builders(), timing_cache=cache)
    assert cache.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [cache]


def test_a_timing_cache_that_cannot_be_written_is_told_before_the_work(
    builders: Builders, script: TensorRTScript, tmp_path: pathlib.Path
) -> None:
    message = refusal(builders(), MarError, timing_cache=tmp_path)
    assert message == f"cannot write {tmp_path}: it is a folder"
    assert script.calls("build_serialized_network") == []


def test_without_a_timing_cache_none_is_made(builders: Builders, script: TensorRTScript) -> None:
    built(builders())
    assert script.calls("create_timing_cache") == script.calls("set_timing_cache") == []


def test_a_timing_cache_is_refused_where_nothing_is_measured(
    builders: Builders, script: TensorRTScript, tmp_path: pathlib.Path
) -> None:
    message = refusal(builders("tensorrt-rtx", "sm_89"), RequestError, timing_cache=tmp_path / "cache")
    assert message == "tensorrt-rtx has no timing cache; remove --timing-cache"
    assert list(tmp_path.iterdir()) == []
    assert script.calls("create_timing_cache") == script.calls("build_serialized_network") == []


# Progress.


def test_progress_is_told_of_every_phase_from_its_start_to_its_end(builders: Builders) -> None:
    seen: list[tuple[str, int, int]] = []
    built(builders(), progress=lambda *step: seen.append(step))
    assert seen == [
        ("Building", 0, 2),
        ("Tactics", 0, 1),
        ("Tactics", 1, 1),
        ("Tactics", 1, 1),
        ("Building", 1, 2),
        ("Building", 2, 2),
        ("Building", 2, 2),
    ]


def test_nobody_watches_where_nobody_asked(builders: Builders, script: TensorRTScript) -> None:
    built(builders())
    assert script.config.progress_monitor is None
