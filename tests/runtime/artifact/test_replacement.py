"""Which artifact may take the place of another, and what of the old one stays."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil

import pytest

from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.engine_builds import Build
from runtime.artifact.manifest import MANIFEST, FileEntry, Manifest
from runtime.artifact.replacement import check_replaceable, keep_additions
from runtime.artifact.signatures import SIGNATURE
from runtime.errors import RequestError
from runtime.sampling.settings import Sampling
from runtime.storage.files import sha256, write_json

OWN = Sampling(iterations=2, diffusion_steps=3)


@pytest.fixture
def artifact(pixel_artifact: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return shutil.copytree(pixel_artifact, tmp_path / "artifact")


def manifest_of(artifact: pathlib.Path) -> Manifest:
    return Artifact(artifact).manifest


def planned(artifact: pathlib.Path) -> Manifest:
    """What a command knows before it works: no files, no parity, and another time and version."""
    manifest = manifest_of(artifact)
    provenance = {**manifest.provenance, "created": "2030-01-01", "mar": "99"}
    return dataclasses.replace(manifest, files={}, parity={}, provenance=provenance)


def change(artifact: pathlib.Path, **fields: object) -> None:
    write_json(artifact / MANIFEST, dataclasses.replace(manifest_of(artifact), **fields).to_dict())  # type: ignore[arg-type]


def test_a_new_folder_and_the_same_artifact_can_be_written(artifact: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert not check_replaceable(tmp_path / "new", planned(artifact), force=False)
    assert check_replaceable(artifact, planned(artifact), force=False)
    assert not check_replaceable(artifact, planned(artifact), force=True)


def test_what_was_added_since_does_not_make_it_another_artifact(artifact: pathlib.Path) -> None:
    before = planned(artifact)
    change(artifact, presets={"mine": OWN})
    assert check_replaceable(artifact, before, force=False)


@pytest.mark.parametrize(
    ("change_to", "named"),
    [
        ({"precision": "bf16"}, "precision"),
        ({"sampling": OWN}, "sampling"),
        ({"class_names": ("x", "y")}, "class names"),
        ({"provenance": {"checkpoint_sha256": "1" * 64}}, "checkpoint sha256"),
        ({"provenance": {"checkpoint_sha256": "0" * 64, "tokenizer_sha256": "2" * 64}}, "tokenizer sha256"),
        ({"engines": {"decoder": "decoder.onnx"}}, "engines"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_artifact_needs_force(artifact: pathlib.Path, change_to: dict[str, object], named: str) -> None:
    other = dataclasses.replace(planned(artifact), **change_to)  # type: ignore[arg-type]
    with pytest.raises(RequestError) as caught:
        check_replaceable(artifact, other, force=False)
    assert str(caught.value) == (
        f"{artifact} holds another artifact (it differs in {named}); choose another --out, or give --force to replace "
        "it"
    )
    assert not check_replaceable(artifact, other, force=True)


def test_a_damaged_artifact_is_made_again(artifact: pathlib.Path) -> None:
    plan = planned(artifact)
    graph = artifact / "backbone.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"!")
    assert not check_replaceable(artifact, plan, force=False)
    (artifact / MANIFEST).write_text(
        (artifact / MANIFEST).read_text().replace('"format_version": 8', '"format_version": 1')
    )
    with pytest.raises(RequestError, match=r"holds an artifact that cannot be read \(.*format version 1.*give --force"):
        check_replaceable(artifact, plan, force=False)
    assert not check_replaceable(artifact, plan, force=True)


def test_a_folder_of_something_else_is_never_replaced(artifact: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "loss.png").write_text("mine")
    with pytest.raises(RequestError, match=r"exists and is no artifact; choose another --out, or remove it yourself"):
        check_replaceable(tmp_path / "mine", planned(artifact), force=True)


def add_build(artifact: pathlib.Path, graph_sha256: str, version: str = "10.0") -> Build:
    build = Build("backbone", "tensorrt", graph_sha256, version, ("sm_89",), "fp32", {}, {})
    (artifact / build.file).parent.mkdir(parents=True, exist_ok=True)
    (artifact / build.file).write_bytes(b"engine")
    manifest = manifest_of(artifact)
    entry = FileEntry(6, sha256(artifact / build.file))
    change(artifact, builds=(*manifest.builds, build), files={**manifest.files, build.file: entry})
    return build


def test_presets_and_engines_of_the_same_model_and_graphs_are_kept(
    artifact: pathlib.Path, pixel_artifact: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    new = shutil.copytree(pixel_artifact, tmp_path / "new")
    change(new, presets={"theirs": OWN})
    change(artifact, presets={"mine": OWN})
    build = add_build(artifact, manifest_of(artifact).graph_sha256("backbone"))
    add_build(artifact, "1" * 64)
    (artifact / SIGNATURE).write_text("signature")
    lines: list[str] = []
    manifest = keep_additions(artifact, new, manifest_of(new), lines.append)
    write_json(new / MANIFEST, manifest.to_dict())
    Artifact(new).verify(builds=True)
    assert (manifest.presets, manifest.builds) == ({"mine": OWN, "theirs": OWN}, (build,))
    assert lines == [
        f"{artifact} was signed, and is changed now; sign it again with mar sign",
        "kept the presets of the replaced artifact: mine",
        "not kept, damaged or of other graphs: 1 built engine; build again with mar build",
    ]


def test_presets_of_another_model_are_not_kept_and_named(artifact: pathlib.Path, tmp_path: pathlib.Path) -> None:
    change(artifact, presets={"mine": OWN})
    manifest = manifest_of(artifact)
    other = dataclasses.replace(manifest, model=dataclasses.replace(manifest.model, mask_ratio_min=0.1), presets={})
    lines: list[str] = []
    assert keep_additions(artifact, tmp_path, other, lines.append) == other
    assert lines == ["presets of another model are not kept: mine"]


@pytest.mark.parametrize("damage", ["altered", "cut", "missing"])
def test_what_is_whole_in_a_damaged_artifact_is_kept(
    artifact: pathlib.Path, pixel_artifact: pathlib.Path, tmp_path: pathlib.Path, damage: str
) -> None:
    """Its presets are in the manifest, and each built engine has a hash of its own."""
    new = shutil.copytree(pixel_artifact, tmp_path / "new")
    change(artifact, presets={"mine": OWN})
    graph = manifest_of(artifact).graph_sha256("backbone")
    builds = [add_build(artifact, graph, version) for version in ("10.0", "10.1")]
    for file in (artifact / "denoise.onnx", artifact / builds[0].file):
        content = file.read_bytes()
        file.write_bytes(content[:-1] if damage == "cut" else bytes([content[0] ^ 1]) + content[1:])
        if damage == "missing":
            file.unlink()
    lines: list[str] = []
    manifest = keep_additions(artifact, new, manifest_of(new), lines.append)
    write_json(new / MANIFEST, manifest.to_dict())
    Artifact(new).verify(builds=True)
    assert (manifest.presets, manifest.builds) == ({"mine": OWN}, (builds[1],))
    assert not (new / builds[0].file).exists()
    assert lines == [
        "kept the presets of the replaced artifact: mine",
        "not kept, damaged or of other graphs: 1 built engine; build again with mar build",
    ]


def test_nothing_of_an_artifact_without_a_readable_manifest_is_kept_and_that_is_told(
    artifact: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    manifest = manifest_of(artifact)
    text = (artifact / MANIFEST).read_text()
    (artifact / MANIFEST).write_text(text.replace('"format_version": 8', '"format_version": 1'))
    lines: list[str] = []
    assert keep_additions(artifact, tmp_path, manifest, lines.append) == manifest
    (line,) = lines
    assert line.startswith("nothing that was added to the replaced artifact is kept (")
    assert "format version 1" in line


def test_nothing_is_kept_where_no_artifact_is(artifact: pathlib.Path, tmp_path: pathlib.Path) -> None:
    manifest = manifest_of(artifact)
    assert keep_additions(tmp_path / "new", tmp_path, manifest, pytest.fail) == manifest
