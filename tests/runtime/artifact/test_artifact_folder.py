"""Artifacts on disk: missing, altered and misplaced files are refused before an engine is loaded."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Callable

import pytest

from runtime.artifact.manifest import MANIFEST
from runtime.errors import ArtifactError, BackendError, IntegrityError
from runtime.model.engine_spec import ENGINES
from runtime.storage.files import sha256
from tests.helpers.damaged_artifacts import Refused, change_manifest, load, read_manifest

DIGEST = "0123456789abcdef" * 4


def test_an_undamaged_copy_loads(artifact_copy: pathlib.Path) -> None:
    load(artifact_copy)


@pytest.mark.parametrize(
    "path", ["", "artifact/nothing", "artifact/backbone.onnx", "n" * 300], ids=lambda path: path[:9]
)
def test_a_path_without_a_manifest_is_not_an_artifact(artifact_copy: pathlib.Path, path: str) -> None:
    with pytest.raises(ArtifactError) as refusal:
        load(artifact_copy.parent / path)
    assert str(artifact_copy.parent / path) in str(refusal.value)
    assert MANIFEST in str(refusal.value)


def test_a_folder_whose_manifest_was_deleted_is_not_an_artifact(artifact_copy: pathlib.Path, refused: Refused) -> None:
    (artifact_copy / MANIFEST).unlink()
    assert f"{artifact_copy}: not an artifact" in refused(ArtifactError)


def test_a_precision_that_the_backend_does_not_support_is_refused_with_those_it_supports(
    artifact_copy: pathlib.Path,
) -> None:
    change_manifest(artifact_copy, "precision", "bf16")
    with pytest.raises(BackendError) as refusal:
        load(artifact_copy)
    assert str(refusal.value).startswith(f"{artifact_copy} is in bf16, but onnxruntime ")
    assert "has fp32, fp16, " in str(refusal.value)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_whose_file_is_that_of_another_engine_is_refused(artifact_copy: pathlib.Path, engine: str) -> None:
    """Both files are listed and undamaged; only the inputs of the graph show that it is the wrong one."""
    other = next(name for name in ENGINES if name != engine)
    change_manifest(artifact_copy, f"engines/{engine}/file", f"{other}.onnx")
    with pytest.raises(BackendError) as refusal:
        load(artifact_copy)
    assert str(artifact_copy / f"{other}.onnx") in str(refusal.value)


ESCAPES = ("../outside.onnx", "sub/../../outside.onnx", "/etc/hostname", "..", "", "c:\\a", "..\\a", "c:a", "a\0b")


@pytest.mark.parametrize("name", ESCAPES)
def test_a_file_outside_the_artifact_is_refused_by_its_name(
    artifact_copy: pathlib.Path, refused: Refused, name: str
) -> None:
    shutil.copyfile(artifact_copy / "backbone.onnx", artifact_copy.parent / "outside.onnx")
    list_as(artifact_copy, name)
    refusal = refused(IntegrityError)
    assert str(artifact_copy / MANIFEST) in refusal
    assert repr(name) in refusal


@pytest.mark.parametrize(
    "name",
    ["sub", "sub/../backbone.onnx", "nothing.onnx", "n" * 300],
    ids=lambda name: ascii(name)[:30],
)
def test_a_name_that_is_not_a_file_of_the_artifact_is_refused(
    artifact_copy: pathlib.Path, refused: Refused, name: str
) -> None:
    (artifact_copy / "sub").mkdir()
    list_as(artifact_copy, name)
    assert name in refused(IntegrityError)


def list_as(artifact_copy: pathlib.Path, name: str) -> None:
    """List the file of the backbone under another name too, with the same size and hash."""
    files = read_manifest(artifact_copy)["files"]
    change_manifest(artifact_copy, "files", {**files, name: files["backbone.onnx"]})


def test_an_artifact_can_be_loaded_through_a_link(artifact_copy: pathlib.Path) -> None:
    link = artifact_copy.parent / "link"
    link.symlink_to(artifact_copy)
    load(link)


def cut_off(file: pathlib.Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def extended(file: pathlib.Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


def emptied(file: pathlib.Path) -> None:
    file.write_bytes(b"")


def with_one_bit_flipped(file: pathlib.Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1  # in the middle of a weight
    file.write_bytes(content)


def replaced_by_a_folder(file: pathlib.Path) -> None:
    file.unlink()
    file.mkdir()


def replaced_by_a_link_to_itself(file: pathlib.Path) -> None:
    file.unlink()
    file.symlink_to(file)


def swapped_with_another(file: pathlib.Path) -> None:
    other = next(path for path in file.parent.glob("*.onnx") if path != file)
    aside = file.with_name("aside")
    file.rename(aside)
    other.rename(file)
    aside.rename(other)


FAULTS = (
    pathlib.Path.unlink,
    cut_off,
    extended,
    emptied,
    with_one_bit_flipped,
    replaced_by_a_folder,
    replaced_by_a_link_to_itself,
    swapped_with_another,
)


@pytest.mark.parametrize("damage", FAULTS, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_damaged_file_is_refused_before_it_is_loaded(
    artifact_copy: pathlib.Path, refused: Refused, engine: str, damage: Callable[[pathlib.Path], None]
) -> None:
    damage(artifact_copy / f"{engine}.onnx")
    refusal = refused(IntegrityError)
    # Either of two swapped files may be reported first.
    candidates = ENGINES if damage is swapped_with_another else [engine]
    assert any(str(artifact_copy / f"{name}.onnx") in refusal for name in candidates)


@pytest.mark.parametrize(("key", "value"), [("bytes", 1), ("sha256", DIGEST)])
def test_a_file_of_another_size_or_hash_than_listed_is_refused(
    artifact_copy: pathlib.Path, refused: Refused, key: str, value: object
) -> None:
    change_manifest(artifact_copy, f"files/denoise.onnx/{key}", value)
    assert str(artifact_copy / "denoise.onnx") in refused(IntegrityError)


def test_two_swapped_files_of_the_same_size_are_refused(artifact_copy: pathlib.Path, refused: Refused) -> None:
    """Their sizes do not show the exchange, but their hashes do."""
    one, other = artifact_copy / "one.bin", artifact_copy / "other.bin"
    for file, content in ((one, b"1"), (other, b"2")):
        file.write_bytes(content)
    files = read_manifest(artifact_copy)["files"]
    for file in (one, other):
        files[file.name] = {"bytes": 1, "sha256": sha256(file)}
    change_manifest(artifact_copy, "files", files)
    load(artifact_copy)
    swapped_content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(swapped_content)
    assert str(one) in refused(IntegrityError)
