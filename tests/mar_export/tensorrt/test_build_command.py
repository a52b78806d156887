"""The command `mar build`: repeated builds, damaged files, and failures."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from mar_export.tensorrt.engine_builder import BuilderFlags, TensorRTBuilder
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import MANIFEST, FileEntry
from runtime.errors import BackendError
from runtime.generator import Generator
from runtime.model.engine_spec import (
    BACKBONE,
    CONDITIONING,
    DENOISE,
    ENGINES,
)
from tests.helpers.command_line import Ended, Mar
from tests.helpers.held_places import unlock_as_at_a_kill
from tests.helpers.tensorrt_builds import (
    RTX_GPUS,
    InstantBuilder,
    build_with,
    manifest_of,
    plan_files,
    textual_artifact,
)

if not (sys.platform == "linux" and platform.machine() == "x86_64"):
    pytest.importorskip("tensorrt_rtx")


def test_existing_builds_are_not_built_again(rtx_artifact: pathlib.Path, mar: Mar) -> None:
    before = (rtx_artifact / MANIFEST).read_bytes()
    gpus = " ".join(f"--architecture {name}" for name in reversed(RTX_GPUS))
    ended = mar(f"build {rtx_artifact} --target tensorrt-rtx {gpus}")
    assert ended == Ended(0, "backbone: built already\nconditioning: built already\ndenoise: built already\n", "")
    assert (rtx_artifact / MANIFEST).read_bytes() == before


def test_force_builds_again(rtx_artifact: pathlib.Path, mar: Mar) -> None:
    before = manifest_of(rtx_artifact)
    first = rtx_artifact / before.builds[0].file
    first.write_bytes(b"x" * first.stat().st_size)
    gpus = " ".join(f"--architecture {name}" for name in RTX_GPUS)
    ended = mar(f"build {rtx_artifact} --target tensorrt-rtx {gpus} --force")
    assert ended.code == 0, ended.err
    assert [line.split(":")[0] for line in ended.out.splitlines()] == list(ENGINES)
    assert f"MiB in {before.builds[0].file}\n" in ended.out
    assert manifest_of(rtx_artifact).builds == before.builds
    assert plan_files(rtx_artifact) == {build.file for build in before.builds}
    Artifact(rtx_artifact).verify(builds=True)


def test_build_replaces_the_older_one_and_others_stay(rtx_artifact: pathlib.Path, mar: Mar) -> None:
    """The older one of the same engine, library and GPUs, that is, whatever its profile and flags."""
    older = manifest_of(rtx_artifact).builds
    assert mar(f"build {rtx_artifact} --target tensorrt-rtx --architecture sm_89").code == 0
    assert manifest_of(rtx_artifact).builds[:3] == older
    single = manifest_of(rtx_artifact).builds[3:]
    assert [(build.engine, build.architectures) for build in single] == [(name, ("sm_89",)) for name in ENGINES]
    other = f"build {rtx_artifact} --target tensorrt-rtx --architecture sm_89 --tf32 --batch 2:2:2"
    refused = mar(other)
    assert refused.code == 2
    assert refused.err.endswith("on sm_89 with other flags; give --force to replace it\n")
    assert manifest_of(rtx_artifact).builds[3:] == single
    assert mar(f"{other} --force").code == 0
    manifest = manifest_of(rtx_artifact)
    assert manifest.builds[:3] == older
    assert [build.engine for build in manifest.builds[3:]] == list(ENGINES)
    assert {build.flags["tf32"] for build in manifest.builds[3:]} == {True}
    assert plan_files(rtx_artifact) == {build.file for build in manifest.builds}
    assert not plan_files(rtx_artifact) & {build.file for build in single}
    assert manifest.files.keys() == plan_files(rtx_artifact) | {f"{name}.onnx" for name in ENGINES}
    Artifact(rtx_artifact).verify(builds=True)


def test_unsupported_architecture_is_one_line(unbuilt_artifact: pathlib.Path, mar: Mar) -> None:
    ended = mar(f"build {unbuilt_artifact} --target tensorrt-rtx --architecture sm_87")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.count("\n") == 1
    assert "cannot build for sm_87; it knows sm_80, " in ended.err


def test_building_imports_neither_torch_nor_onnx(unbuilt_artifact: pathlib.Path) -> None:
    code = (
        "import sys\n"
        "from runtime.cli.main import main\n"
        "try:\n    main()\n"
        "except SystemExit as ended:\n    assert not ended.code, ended.code\n"
        "assert 'tensorrt_rtx' in sys.modules\n"
        "print(sorted({name.split('.')[0] for name in sys.modules}))\n"
    )
    line = ["build", str(unbuilt_artifact), "--target", "tensorrt-rtx", "--architecture", "sm_89"]
    ended = subprocess.run([sys.executable, "-c", code, *line], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    imported = set(json.loads(ended.stdout.splitlines()[-1].replace("'", '"')))
    assert "mar_export" in imported
    assert not imported & {"torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "training"}
    assert len(manifest_of(unbuilt_artifact).builds) == 3


def flip(file: pathlib.Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_damaged_plan_is_reported_by_inspect_and_does_not_affect_onnxruntime(
    rtx_artifact: pathlib.Path, mar: Mar
) -> None:
    damaged = manifest_of(rtx_artifact).builds[1].file
    flip(rtx_artifact / damaged)
    assert mar(f"inspect {rtx_artifact}").code == 0
    ended = mar(f"inspect {rtx_artifact} --verify")
    assert ended.code == 1
    assert ended.err.startswith(f"mar: {rtx_artifact / damaged}: altered since export")
    with Generator.load(rtx_artifact, threads=1) as generator:
        assert np.isfinite(generator.generate([1], iterations=2, diffusion_steps="ddim2").latents).all()


def test_altered_graph_is_refused_before_it_is_parsed(
    unbuilt_artifact: pathlib.Path, mar: Mar, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[pathlib.Path] = []
    monkeypatch.setattr(TensorRTBuilder, "_parse", lambda self, network, graph: parsed.append(graph))
    flip(unbuilt_artifact / "denoise.onnx")
    ended = mar(f"build {unbuilt_artifact} --target tensorrt-rtx --architecture sm_89")
    assert ended.code == 1
    assert ended.err.startswith(f"mar: {unbuilt_artifact / 'denoise.onnx'}: altered since export")
    assert parsed == []
    assert not (unbuilt_artifact / "engines").exists()


def test_graph_hash_covers_the_external_weights_and_no_other_file(tmp_path: pathlib.Path) -> None:
    manifest = manifest_of(textual_artifact(tmp_path / "artifact"))
    weights = dataclasses.replace(manifest, files={**manifest.files, "backbone.onnx.data": FileEntry(1, "1" * 64)})
    first = weights.graph_sha256(BACKBONE)
    assert first != manifest.graph_sha256(BACKBONE)
    assert weights.graph_sha256(DENOISE) == manifest.graph_sha256(DENOISE)
    for name in ("backbone.onnx", "backbone.onnx.data"):
        changed = dataclasses.replace(weights, files={**weights.files, name: FileEntry(1, "2" * 64)})
        assert changed.graph_sha256(BACKBONE) != first
    for name in ("denoise.onnx", "backbone.onnx.data.old"):
        changed = dataclasses.replace(weights, files={**weights.files, name: FileEntry(1, "2" * 64)})
        assert changed.graph_sha256(BACKBONE) == first
    backwards = dataclasses.replace(weights, files=dict(reversed(list(weights.files.items()))))
    assert backwards.graph_sha256(BACKBONE) == first


def test_artifact_loads_after_a_failed_build_and_building_resumes(unbuilt_artifact: pathlib.Path) -> None:
    with pytest.raises(BackendError, match=r"conditioning\.onnx was not built"):
        build_with(InstantBuilder(fails_at=CONDITIONING), unbuilt_artifact)
    assert [build.engine for build in manifest_of(unbuilt_artifact).builds] == [BACKBONE]
    Artifact(unbuilt_artifact).verify(builds=True)
    Generator.load(unbuilt_artifact, threads=1).close()
    said = build_with(InstantBuilder(), unbuilt_artifact)
    assert said[0] == "backbone: built already"
    assert [build.engine for build in manifest_of(unbuilt_artifact).builds] == list(ENGINES)


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("again", ["first", "forced", "replaced"])
def test_artifact_is_valid_wherever_a_build_is_killed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, again: str, moment: str
) -> None:
    """At every change of a name in the folder, which is all that a kill could fall between; nothing is left then."""
    replace, unlink = pathlib.Path.replace, pathlib.Path.unlink
    whole = textual_artifact(tmp_path / "whole", "none")
    if again != "first":
        build_with(InstantBuilder(), whole)
    for last in itertools.count():
        path = pathlib.Path(shutil.copytree(whole, tmp_path / f"cut-{last}"))
        steps = iter(range(last, -1, -1))

        def step(change: Callable[..., Any], *arguments: Any, steps: Iterator[int] = steps, **options: Any) -> Any:
            left = next(steps, -1)
            if left == 0 and moment == "before":
                raise _Killed
            result = change(*arguments, **options)
            if left == 0:
                raise _Killed
            return result

        builder = InstantBuilder()
        builder._count = 10  # so that no plan has the size of the one before
        with monkeypatch.context() as patched:
            patched.setattr(pathlib.Path, "replace", lambda *arguments: step(replace, *arguments))
            patched.setattr(pathlib.Path, "unlink", lambda *names, **options: step(unlink, *names, **options))
            try:
                build_with(builder, path, force=again != "first", flags=BuilderFlags(tf32=again == "replaced"))
                finished = True
            except _Killed:
                finished = False
                unlock_as_at_a_kill()
        Artifact(path).verify(builds=True)
        build_with(InstantBuilder(), path, force=again == "replaced", flags=BuilderFlags(tf32=again == "replaced"))
        assert len(manifest_of(path).builds) == len(ENGINES)
        assert plan_files(path) == {build.file for build in manifest_of(path).builds}
        if finished:
            break
    assert last >= 4 * len(ENGINES)  # two files an engine, each a name given and a name gone
