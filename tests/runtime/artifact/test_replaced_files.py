"""What was hashed is what is loaded: files that are replaced or written between the two, on every backend."""

from __future__ import annotations

import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.verified_files import GraphFile, OpenFile
from runtime.backends import open_backend
from runtime.backends.onnxruntime import OnnxRuntime
from runtime.errors import BackendError, IntegrityError
from runtime.generator import Generator
from runtime.model.engine_spec import DENOISE
from runtime.storage.files import sha256
from tests.helpers.damaged_artifacts import change_manifest, read_manifest
from tests.helpers.distance import relative_l2

GRAPH = f"{DENOISE}.onnx"
WEIGHTS = f"{GRAPH}.data"
QUICK: dict[str, Any] = {"iterations": 2, "diffusion_steps": 2}
BACKENDS = ("onnxruntime", "openvino")


@pytest.fixture
def artifact(golden_artifacts: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> pathlib.Path:
    """An artifact whose engine `denoise` has its weights in a file beside the graph, as large models do."""
    folder = pathlib.Path(shutil.copytree(golden_artifacts["small"], tmp_path / "artifact"))
    model = ir.load(folder / GRAPH)
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
    (folder / GRAPH).unlink()
    ir.save(model, folder / GRAPH, external_data=WEIGHTS)
    hashed_again(folder)
    return folder


def hashed_again(folder: pathlib.Path) -> None:
    """Let the manifest have the graph and the weights that are there."""
    entries = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)} for name in (GRAPH, WEIGHTS)
    }
    change_manifest(folder, "files", {**read_manifest(folder)["files"], **entries})


def other_weights(file: pathlib.Path) -> bytes:
    """The content of a file of float32 weights, all doubled."""
    return (np.frombuffer(file.read_bytes(), np.float32) * 2).tobytes()


def replaced(file: pathlib.Path) -> None:
    new = file.with_name("new")
    new.write_bytes(other_weights(file))
    new.replace(file)


def written(file: pathlib.Path) -> None:
    """Written in place, with the time of the last change put back."""
    before = file.stat()
    content = other_weights(file)
    with file.open("r+b") as opened:
        opened.write(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced_and_put_back(file: pathlib.Path) -> None:
    aside = file.with_name("aside")
    file.rename(aside)
    aside.rename(file)


@pytest.mark.parametrize("backend", BACKENDS)
def test_external_weights_give_the_images_of_weights_inside_the_graph(
    artifact: pathlib.Path, golden_artifacts: dict[str, pathlib.Path], backend: str
) -> None:
    images = []
    for path in (artifact, golden_artifacts["small"]):
        with Generator.load(path, backend=backend, threads=1) as generator:
            images.append(generator.generate([0], **QUICK).latents)
    assert np.array_equal(*images)


def test_the_weights_of_a_new_export_are_those_that_run(artifact: pathlib.Path) -> None:
    """The same graph at the same path, with other weights of the same size and time.

    OpenVINO 2026.4.1 takes the old ones from its cache of compiled models if it compiles a path; no backend here does.
    """

    def latents(backend: str) -> Any:
        with Generator.load(artifact, backend=backend, threads=1) as generator:
            return generator.generate([0], **QUICK).latents

    before = latents("openvino")
    written(artifact / WEIGHTS)
    hashed_again(artifact)
    after = latents("openvino")
    assert relative_l2(after, before) > 0.1
    assert relative_l2(after, latents("onnxruntime")) <= 1e-4


@pytest.mark.parametrize("change", [replaced, written, replaced_and_put_back])
@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_that_change_between_check_and_load_are_refused(
    artifact: pathlib.Path, backend: str, change: Callable[[pathlib.Path], None]
) -> None:
    opened = Artifact(artifact)
    opened.verify()
    change(artifact / WEIGHTS)
    with pytest.raises(IntegrityError, match=f"{WEIGHTS}: changed while it was loaded; load the artifact again"):
        open_backend(backend, None, 1).load(opened, DENOISE)


def around_hash(monkeypatch: pytest.MonkeyPatch, file: pathlib.Path, *, before: bool) -> None:
    """Write to a file before a thread reads its hash, or after; other files are as they are."""
    read_hash = OpenFile._read_hash

    def changed(opened: OpenFile) -> str:
        if opened.path != file:
            return read_hash(opened)
        if before:
            written(file)
            return read_hash(opened)
        digest = read_hash(opened)
        written(file)
        return digest

    monkeypatch.setattr(OpenFile, "_read_hash", changed)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("before", "fault"), [(True, "altered since export"), (False, "changed while it was loaded")])
def test_weights_that_change_while_their_engine_is_loaded_are_refused(
    artifact: pathlib.Path, backend: str, before: bool, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    around_hash(monkeypatch, artifact / WEIGHTS, before=before)
    with pytest.raises(IntegrityError, match=f"{WEIGHTS}: {fault}"):
        Generator.load(artifact, backend=backend, threads=1)


def test_no_graph_is_parsed_before_its_hash_is_compared(
    artifact: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[str] = []

    def parse(library: object, graph: GraphFile, *_: object) -> None:
        parsed.append(graph.path.name)

    monkeypatch.setattr("runtime.backends.onnxruntime.open_session", parse)
    content = bytearray((artifact / GRAPH).read_bytes())
    content[-1] ^= 1
    (artifact / GRAPH).write_bytes(content)
    with pytest.raises(IntegrityError, match=rf"{GRAPH}: altered since export"):
        Generator.load(artifact, threads=1)
    assert "backbone.onnx" in parsed
    assert GRAPH not in parsed


def test_an_altered_file_ends_what_was_loaded(artifact: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are compared while engines are loaded: the fault comes at the end, and frees them."""
    closed: list[bool] = []
    close = OnnxRuntime.close

    def counted(backend: OnnxRuntime) -> None:
        closed.append(all(engine._run is not None for engine in backend._engines) and bool(backend._engines))
        close(backend)

    monkeypatch.setattr(OnnxRuntime, "close", counted)
    written(artifact / WEIGHTS)
    with pytest.raises(IntegrityError, match=f"{WEIGHTS}: altered since export"):
        Generator.load(artifact, threads=1)
    assert closed == [True]


def test_a_fault_of_a_library_is_the_fault_of_its_altered_weights(
    artifact: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BackendError("onnxruntime cannot load it")

    monkeypatch.setattr("runtime.backends.onnxruntime.open_session", refuse)
    with pytest.raises(BackendError, match="cannot load it"):
        Generator.load(artifact, threads=1)
    written(artifact / WEIGHTS)
    with pytest.raises(IntegrityError, match="altered since export"):
        Generator.load(artifact, threads=1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_graph_that_is_replaced_between_check_and_load_is_refused(artifact: pathlib.Path, backend: str) -> None:
    opened = Artifact(artifact)
    opened.verify()
    shutil.copyfile(artifact / "backbone.onnx", artifact / "new")
    (artifact / "new").replace(artifact / "conditioning.onnx")
    with pytest.raises(IntegrityError, match=r"conditioning\.onnx: changed while it was loaded"):
        open_backend(backend, None, 1).load(opened, "conditioning")


def test_onnxruntime_reads_only_the_files_that_were_hashed(artifact: pathlib.Path) -> None:
    """The graph and weights that are loaded are those that were opened, whatever their paths name by then."""
    opened = Artifact(artifact)
    opened.verify()
    with pytest.raises(IntegrityError), opened.verified_graph(DENOISE) as graph:
        before = graph.weights[WEIGHTS].map()[:]
        replaced(artifact / WEIGHTS)
        shutil.copyfile(artifact / "backbone.onnx", artifact / "new")
        (artifact / "new").replace(artifact / GRAPH)
        assert graph.weights[WEIGHTS].map()[:] == before
        assert sha256(pathlib.Path(graph.source)) == read_manifest(artifact)["files"][GRAPH]["sha256"]


def test_links_beside_each_other_name_the_files_that_were_hashed(artifact: pathlib.Path) -> None:
    opened = Artifact(artifact)
    with pytest.raises(IntegrityError), opened.verified_graph(DENOISE) as graph, graph.linked() as linked:
        assert linked is not None
        content = (artifact / WEIGHTS).read_bytes()
        replaced(artifact / WEIGHTS)
        assert pathlib.Path(linked).with_name(WEIGHTS).read_bytes() == content != (artifact / WEIGHTS).read_bytes()
    assert not pathlib.Path(linked).parent.exists()


def test_weights_in_another_folder_than_their_graph_are_loaded_from_memory(
    artifact: pathlib.Path, golden_artifacts: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (artifact / WEIGHTS).rename(tmp_path / "elsewhere" / WEIGHTS)
    (artifact / WEIGHTS).symlink_to(tmp_path / "elsewhere" / WEIGHTS)
    with Artifact(artifact).verified_graph(DENOISE) as graph, graph.linked() as linked:
        assert linked is None
    images = []
    for path in (artifact, golden_artifacts["small"]):
        with Generator.load(path, threads=1) as generator:
            images.append(generator.generate([0], **QUICK).latents)
    assert np.array_equal(*images)


def test_weights_are_loaded_from_memory_without_a_temporary_folder(
    artifact: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(artifact / "no-such-folder"))
    with Artifact(artifact).verified_graph(DENOISE) as graph, graph.linked() as linked:
        assert linked is None
    with Generator.load(artifact, threads=1) as generator:
        assert np.isfinite(generator.generate([0], **QUICK).latents).all()


def test_a_graph_that_onnxruntime_refuses_is_named_by_its_own_path(
    artifact: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str, *arguments: Any, **named: Any) -> Any:
        assert path.endswith(GRAPH)
        raise RuntimeError(f"This is an invalid model: {path}\nand more")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(BackendError) as refusal:
        open_backend("onnxruntime", None, 1).load(Artifact(artifact), DENOISE)
    path = artifact / GRAPH
    assert str(refusal.value) == f"{path}: onnxruntime cannot load it (This is an invalid model: {path}); export again"
