"""What tensorrt-rtx cannot do, at all or without a GPU: it is refused by name, before the compiler is called."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable

import pytest

from mar_export.tensorrt import engine_builder
from mar_export.tensorrt.engine_builder import BuilderFlags, TensorRTBuilder
from runtime.errors import BackendError, RequestError
from runtime.gpu.current_gpu import Gpu
from tests.fakes.tensorrt import TensorRTScript, fake_tensorrt

Builders = Callable[..., TensorRTBuilder]
GPU = Gpu("GeForce", "sm_89", 2**33, "12.6", False)


@pytest.fixture
def script() -> TensorRTScript:
    return TensorRTScript()


@pytest.fixture
def builders(script: TensorRTScript, monkeypatch: pytest.MonkeyPatch) -> Builders:
    """Makes a builder with the fake library, on a machine with this GPU or none."""

    def make(*architectures: str, gpu: Gpu | None = None) -> TensorRTBuilder:
        def current_gpu() -> Gpu:
            if gpu is None:
                raise BackendError("no NVIDIA GPU here")
            return gpu

        monkeypatch.setattr(engine_builder, "current_gpu", current_gpu)
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake_tensorrt(script, name="tensorrt_rtx"))
        return TensorRTBuilder("tensorrt-rtx", architectures)

    return make


def build(builder: TensorRTBuilder, flags: BuilderFlags) -> bytes:
    return bytes(builder.build(pathlib.Path("backbone.onnx"), {"x": ((1,), (2,), (8,))}, flags, None, None))


def test_without_a_gpu_and_an_architecture_the_option_is_named(builders: Builders) -> None:
    with pytest.raises(BackendError) as caught:
        builders()
    expected = "no NVIDIA GPU here; to build for another machine, give --architecture, such as sm_89"
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (BuilderFlags(refit=True), "--refit"),
        (BuilderFlags(strip_weights=True), "--strip-weights"),
        (BuilderFlags(refit=True, strip_weights=True), "--refit and --strip-weights"),
    ],
)
def test_flags_that_need_a_gpu_are_refused_without_one(
    builders: Builders, script: TensorRTScript, flags: BuilderFlags, named: str
) -> None:
    with pytest.raises(RequestError) as caught:
        build(builders("sm_89"), flags)
    assert str(caught.value).startswith(f"tensorrt-rtx needs an NVIDIA GPU to build with {named} (no NVIDIA GPU here)")
    assert script.calls("create_network") == []
    assert build(builders("sm_89", gpu=GPU), flags) == b"plan"


@pytest.mark.parametrize("gpu", [GPU, None])
def test_a_lean_runtime_is_refused(builders: Builders, script: TensorRTScript, gpu: Gpu | None) -> None:
    with pytest.raises(RequestError, match=r"lean runtime.*; remove --version-compatible$"):
        build(builders("sm_89", gpu=gpu), BuilderFlags(version_compatible=True))
    assert script.calls("create_network") == []


def test_turing_is_refused(builders: Builders, script: TensorRTScript) -> None:
    with pytest.raises(RequestError, match=r"^tensorrt-rtx compiles no float32 matrix products for sm_75, "):
        builders("sm_89", "sm_75")
    assert script.history == []
