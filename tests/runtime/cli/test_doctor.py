"""`mar doctor`: what this machine has, and which engines of an artifact it can load, or why not."""

from __future__ import annotations

import dataclasses
import importlib
import pathlib
import platform
import shutil
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.engine_builds import Build, incompatibility
from runtime.artifact.manifest import MANIFEST, FileEntry
from runtime.cli import doctor as doctor_cli
from runtime.errors import BackendError
from runtime.gpu.current_gpu import Gpu
from runtime.storage.files import sha256, write_json
from runtime.version import __version__
from tests.helpers.command_line import Ended, Mar

ORIN = Gpu("Orin", "sm_87", 8 * 2**30, "12.6", shared_memory=True)
HOPPER = Gpu("NVIDIA H100 80GB HBM3", "sm_90", 80 * 2**30, "13.0", shared_memory=False)
TURING = Gpu("Tesla T4", "sm_75", 15 * 2**30, "12.4", shared_memory=False)


class Report(Ended):
    def value(self, what: str) -> str:
        """What stands behind a word at the beginning of a line, which only one line has."""
        (line,) = [line for line in self.out.splitlines() if line.strip().split(" ")[0] == what]
        return line.strip().removeprefix(what).strip()


Doctor = Callable[..., Report]


@pytest.fixture
def doctor(mar: Mar, monkeypatch: pytest.MonkeyPatch) -> Doctor:
    """Runs `mar doctor` in this process on a machine with this GPU and these versions of TensorRT."""

    def run(
        line: str = "", *, gpu: Gpu | None = None, tensorrt: str | None = None, tensorrt_rtx: str | None = None
    ) -> Report:
        def present() -> Gpu:
            if gpu is None:
                raise BackendError("no NVIDIA GPU here: none at all")
            return gpu

        for name, version in (("tensorrt", tensorrt), ("tensorrt_rtx", tensorrt_rtx)):
            module = types.SimpleNamespace(__version__=version)
            monkeypatch.setitem(sys.modules, name, module if version else None)
        monkeypatch.setattr(doctor_cli, "current_gpu", present)
        return Report(*mar(f"doctor {line}"))

    return run


def a_build(**changes: Any) -> Build:
    build = Build(
        engine="backbone",
        target="tensorrt",
        graph_sha256="0" * 64,
        library="10.13.3",
        architectures=("sm_87",),
        precision="fp32",
        profile={"tokens": ((1, 0, 8), (2, 4, 8), (16, 15, 8))},
        flags={},
    )
    return dataclasses.replace(build, **changes)


@pytest.fixture
def artifact(golden_artifacts: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(golden_artifacts["small"], tmp_path / "artifact"))


def with_builds(path: pathlib.Path, *builds: Build) -> pathlib.Path:
    """The artifact at `path`, with files that pass for these."""
    manifest = Artifact(path).manifest
    files = dict(manifest.files)
    for build in builds:
        file = path / build.file
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("plan")
        files[build.file] = FileEntry(4, sha256(file))
    write_json(path / MANIFEST, dataclasses.replace(manifest, files=files, builds=builds).to_dict())
    return path


# The machine.


def test_a_machine_without_gpu_and_tensorrt_is_described(doctor: Doctor) -> None:
    ended = doctor()
    assert (ended.code, ended.err) == (0, "")
    assert ended.value("mar") == __version__
    assert ended.value("python").startswith(f"{platform.python_version()}, {platform.machine()}")
    assert ended.value("numpy") == np.__version__
    assert ended.value("onnxruntime").startswith(importlib.import_module("onnxruntime").__version__)
    assert "CPU" in ended.value("onnxruntime")
    version = importlib.import_module("openvino").__version__.split("-")[0]
    assert ended.value("openvino").startswith(f"{version}, supports fp32")
    assert ended.value("tensorrt") == "not installed; it is needed to build and run engines of tensorrt"
    assert ended.value("tensorrt-rtx") == "not installed; it is needed to build and run engines of tensorrt-rtx"
    assert ended.value("gpu") == "no NVIDIA GPU here: none at all"
    assert "precisions" not in ended.out


def test_versions_of_tensorrt_are_shown_by_target(doctor: Doctor) -> None:
    ended = doctor(tensorrt="10.3.0", tensorrt_rtx="1.7.1.116")
    assert ended.value("tensorrt") == "10.3.0"
    assert ended.value("tensorrt-rtx") == "1.7.1.116"


@pytest.mark.parametrize(
    ("gpu", "text", "precisions"),
    [
        (
            ORIN,
            "Orin, sm_87, 8.0 GiB, shared with the processor; its driver supports CUDA up to 12.6",
            "fp32 fp16 int8 bf16 w8 w4",
        ),
        (
            HOPPER,
            "NVIDIA H100 80GB HBM3, sm_90, 80.0 GiB; its driver supports CUDA up to 13.0",
            "fp32 fp16 int8 bf16 w8 w4 fp8",
        ),
        (TURING, "Tesla T4, sm_75, 15.0 GiB; its driver supports CUDA up to 12.4", "fp32 fp16 int8"),
        (dataclasses.replace(ORIN, architecture="sm_120"), "Orin, sm_120, ", "fp32 fp16 int8 bf16 w8 w4 fp8"),
        (dataclasses.replace(ORIN, architecture="sm_53"), "Orin, sm_53, ", "fp32 fp16"),
    ],
    ids=lambda value: value.architecture if isinstance(value, Gpu) else "",
)
def test_a_gpu_is_shown_with_its_memory_and_precisions(doctor: Doctor, gpu: Gpu, text: str, precisions: str) -> None:
    ended = doctor(gpu=gpu)
    assert ended.value("gpu").startswith(text)
    assert ended.value("precisions") == f"{', '.join(precisions.split())} on this GPU"


@pytest.mark.parametrize(
    "error",
    [
        ImportError("libnvinfer.so.11: cannot open shared object file"),
        OSError("libnvinfer.so.11: cannot open shared object file"),
        ModuleNotFoundError("No module named 'other'", name="other"),
        AttributeError("_ARRAY_API not found"),
        RuntimeError("no CUDA runtime"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["onnxruntime", "tensorrt"])
def test_a_library_that_does_not_load_is_shown_with_the_reason(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, artifact: pathlib.Path, name: str, error: Exception
) -> None:
    """Its number must not pass for a version: an engine for 10.13 that may run on newer ones does not run on it."""
    with_builds(artifact, a_build(flags={"version_compatible": True}))
    imported = importlib.import_module

    def importing(module: str) -> Any:
        if module == name:
            raise error
        return imported(module)

    monkeypatch.setattr(importlib, "import_module", importing)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    ended = doctor(str(artifact), gpu=ORIN, tensorrt="10.13.3" if name != "tensorrt" else None)
    assert (ended.code, ended.err) == (0, "")
    assert ended.value(name) == f"does not load: {error}"
    wanted = "needs tensorrt 10.13.3, which is not installed" if name == "tensorrt" else "loads here"
    assert ended.value("backbone").endswith(f": {wanted}")


def test_a_missing_onnxruntime_is_shown_with_what_installs_it(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert doctor().value("onnxruntime") == "not installed; pip install 'mar-runtime[cpu]'"


# An artifact.


def test_an_artifact_without_builds_is_shown(doctor: Doctor, artifact: pathlib.Path) -> None:
    ended = doctor(str(artifact))
    assert ended.code == 0
    assert (
        f"{artifact}: fp32, every hash matches\n  no TensorRT engines; mar build builds them for a GPU\n" in ended.out
    )


def test_every_build_is_shown_with_the_reason_why_it_does_not_load(doctor: Doctor, artifact: pathlib.Path) -> None:
    with_builds(
        artifact,
        a_build(),
        a_build(engine="conditioning", library="10.3.0"),
        a_build(engine="denoise", target="tensorrt-rtx", library="1.7.1", architectures=("sm_86", "sm_89")),
    )
    ended = doctor(str(artifact), gpu=ORIN, tensorrt="10.13.3", tensorrt_rtx="1.7.1")
    assert (ended.code, ended.err) == (0, "")
    assert ended.value("backbone") == "tensorrt 10.13.3, sm_87: loads here"
    assert ended.value("conditioning") == "tensorrt 10.3.0, sm_87: built with tensorrt 10.3.0, here is 10.13.3"
    assert ended.value("denoise") == "tensorrt-rtx 1.7.1, sm_86, sm_89: built for sm_86, sm_89, here is sm_87"
    ended = doctor(str(artifact), tensorrt="10.13.3")
    assert ended.value("backbone") == "tensorrt 10.13.3, sm_87: needs a GPU, sm_87"
    assert ended.value("denoise").endswith(": needs tensorrt-rtx 1.7.1, which is not installed")


@pytest.mark.parametrize("built", [False, True])
def test_a_damaged_graph_or_engine_is_reported(doctor: Doctor, artifact: pathlib.Path, built: bool) -> None:
    build = a_build()
    with_builds(artifact, build)
    file = artifact / (build.file if built else "denoise.onnx")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    ended = doctor(str(artifact), gpu=ORIN, tensorrt="10.13.3")
    assert ended.code == 1
    assert f"{artifact}: fp32, {file}: altered since export" in ended.out
    assert "every hash matches" not in ended.out


def test_a_folder_that_is_not_an_artifact_is_one_line(doctor: Doctor, tmp_path: pathlib.Path) -> None:
    ended = doctor(str(tmp_path))
    assert ended.code == 1
    assert ended.err.startswith(f"mar: {tmp_path}: not an artifact")
    assert ended.err.count("\n") == 1


# What stands in the way of a build.

OLDER, NEWER = "10.3.0", "11.4.0"


@pytest.mark.parametrize(
    ("changes", "library", "architecture", "why"),
    [
        ({}, "10.13.3", "sm_87", None),
        ({}, None, "sm_87", "needs tensorrt 10.13.3, which is not installed"),
        ({}, None, None, "needs tensorrt 10.13.3, which is not installed"),
        ({}, "10.13.3", None, "needs a GPU, sm_87"),
        ({"architectures": ("sm_86", "sm_89")}, "10.13.3", None, "needs a GPU, sm_86 or sm_89"),
        ({}, "10.13.4", "sm_87", "built with tensorrt 10.13.3, here is 10.13.4"),
        ({}, NEWER, "sm_87", f"built with tensorrt 10.13.3, here is {NEWER}"),
        ({"flags": {"version_compatible": True}}, NEWER, "sm_87", None),
        ({"flags": {"version_compatible": True}}, "10.13.3", "sm_87", None),
        ({"flags": {"version_compatible": True}}, "10.13.10", "sm_87", None),  # greater as a number, not as a text
        ({"flags": {"version_compatible": True}}, OLDER, "sm_87", f"built with tensorrt 10.13.3, here is {OLDER}"),
        ({"flags": {"version_compatible": True}}, NEWER, "sm_90", "built for sm_87, here is sm_90"),
        ({}, "10.13.3", "sm_86", "built for sm_87, here is sm_86"),
        ({"architectures": ("sm_86", "sm_87")}, "10.13.3", "sm_86", None),
        ({"flags": {"hardware_compatible": "ampere+"}}, "10.13.3", "sm_80", None),
        ({"flags": {"hardware_compatible": "ampere+"}}, "10.13.3", "sm_120", None),
        ({"flags": {"hardware_compatible": "ampere+"}}, "10.13.3", "sm_75", "built for sm_87, here is sm_75"),
        (
            {"flags": {"hardware_compatible": "ampere+"}},
            NEWER,
            "sm_90",
            f"built with tensorrt 10.13.3, here is {NEWER}",
        ),
        ({"flags": {"hardware_compatible": "same"}}, "10.13.3", "sm_87", None),
        ({"flags": {"hardware_compatible": "same"}}, "10.13.3", "sm_90", "built for sm_87, here is sm_90"),
    ],
)
def test_a_build_loads_or_the_reason_is_shown(
    changes: dict[str, Any], library: str | None, architecture: str | None, why: str | None
) -> None:
    assert incompatibility(a_build(**changes), library, architecture) == why
