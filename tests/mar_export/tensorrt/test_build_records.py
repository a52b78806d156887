"""The records of builds in a manifest: their identity, and which are refused."""

from __future__ import annotations

import copy
import dataclasses
import json
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from runtime.artifact.engine_builds import Build
from runtime.artifact.manifest import MANIFEST, Manifest
from runtime.errors import ArtifactError
from tests.helpers.tensorrt_builds import (
    InstantBuilder,
    build_with,
)

Json = Any


@pytest.mark.parametrize(
    "other",
    [
        {"engine": "denoise"},
        {"target": "tensorrt"},
        {"library": "1.7.1"},
        {"architectures": ("sm_86", "sm_89")},
        {"precision": "fp16"},
    ],
    ids=str,
)
def test_build_with_another_identity_is_not_replaced(other: dict[str, Any]) -> None:
    build = Build("backbone", "tensorrt-rtx", "0" * 64, "1.8", ("sm_86",), "fp32", {"x": ((1,), (2,), (3,))}, {})
    assert not build.replaced_by(dataclasses.replace(build, **other))
    assert dataclasses.replace(build, **other).file != build.file


@pytest.mark.parametrize(
    "other", [{"graph_sha256": "1" * 64}, {"profile": {"x": ((1,), (2,), (4,))}}, {"flags": {"tf32": True}}], ids=str
)
def test_build_of_another_graph_profile_or_flag_replaces_under_another_file_name(other: dict[str, Any]) -> None:
    build = Build("backbone", "tensorrt-rtx", "0" * 64, "1.8", ("sm_86",), "fp32", {"x": ((1,), (2,), (3,))}, {})
    assert build.replaced_by(dataclasses.replace(build, **other))
    assert dataclasses.replace(build, **other).file != build.file


def record_edits() -> Iterator[tuple[str, Any]]:
    yield from {
        "engine": "denoise",
        "target": "tensorrt",
        "graph_sha256": "0" * 64,
        "library": "1.7.2",
        "architectures": ["sm_86"],
        "architectures/0": "sm_87",
        "precision": "fp16",
        "profile": {},
        "profile/tokens": [],
        "profile/tokens/2/0": 17,
        "flags": {"tf32": True},
        "file": "backbone.onnx",
    }.items()
    everywhere: list[Json] = [None, 1, 1.5, [], {}, "", [["sm_86"]], 1e999, "sm_86"]
    for key in ("engine", "target", "graph_sha256", "library", "architectures", "precision", "profile", "file"):
        yield from ((key, wrong) for wrong in everywhere)
    flags: list[Json] = [None, 1, [["tf32", True]], {"tf32": 1.0}, {"deep": {}}, {"deep": [[[]]]}]
    yield from (("flags", wrong) for wrong in flags)
    sizes: list[Json] = ["8", 8.0, 8.25, 1e999, -1e999, [], None, True]
    yield from (("profile/tokens/0/2", wrong) for wrong in sizes)
    yield "profile/tokens/0/0", True  # where 1 is


@pytest.fixture(scope="module")
def manifest_json(tmp_path_factory: pytest.TempPathFactory, golden_artifacts: dict[str, pathlib.Path]) -> Json:
    path = shutil.copytree(golden_artifacts["small"], tmp_path_factory.mktemp("json") / "artifact")
    build_with(InstantBuilder(), path)
    return json.loads((path / MANIFEST).read_bytes())


@pytest.mark.parametrize(("where", "value"), list(record_edits()), ids=str)
def test_edited_record_is_refused(manifest_json: Json, where: str, value: Any) -> None:
    manifest = copy.deepcopy(manifest_json)
    inner: Json = manifest["builds"][0]
    *parents, last = where.split("/")
    for key in parents:
        inner = inner[int(key) if isinstance(inner, list) else key]
    position: Any = int(last) if isinstance(inner, list) else last
    assert json.dumps(inner[position]) != json.dumps(value)
    inner[position] = value
    with pytest.raises(ArtifactError, match=r"^manifest\.json: "):
        Manifest.from_dict(manifest, "manifest.json")


@pytest.mark.parametrize("key", [*(field.name for field in dataclasses.fields(Build)), "file"])
def test_record_with_a_missing_or_additional_key_is_refused(manifest_json: Json, key: str) -> None:
    less, more = copy.deepcopy(manifest_json), copy.deepcopy(manifest_json)
    del less["builds"][0][key]
    more["builds"][0][f"{key}s"] = more["builds"][0][key]
    for manifest in (less, more):
        with pytest.raises(ArtifactError, match="a build must have exactly the keys"):
            Manifest.from_dict(manifest, "manifest.json")


@pytest.mark.parametrize("builds", [None, {}, "none", [None], [[]], ["backbone"]], ids=str)
def test_builds_that_are_no_list_of_records_are_refused(manifest_json: Json, builds: Any) -> None:
    with pytest.raises(ArtifactError, match="build"):
        Manifest.from_dict({**manifest_json, "builds": builds}, "manifest.json")


def test_deeply_nested_flags_are_refused(manifest_json: Json) -> None:
    deep: Json = []
    for _ in range(600):
        deep = [deep]
    manifest = copy.deepcopy(manifest_json)
    manifest["builds"][0]["flags"] = {"tf32": deep}
    with pytest.raises(ArtifactError, match="a flag is list"):
        Manifest.from_dict(manifest, "manifest.json")


@pytest.mark.parametrize(("key", "value"), [("engine", "decoder"), ("engine", "x"), ("target", "x")])
def test_build_of_an_unknown_engine_or_target_is_refused_even_with_a_matching_file_name(
    manifest_json: Json, key: str, value: str
) -> None:
    manifest = copy.deepcopy(manifest_json)
    changes: dict[str, Any] = {key: value}
    build = dataclasses.replace(Build.from_dict(manifest["builds"][0], ""), **changes)
    manifest["builds"][0] = build.to_dict()
    manifest["files"][build.file] = {"bytes": 1, "sha256": "0" * 64}
    with pytest.raises(ArtifactError, match=f"'{value}'"):
        Manifest.from_dict(json.loads(json.dumps(manifest)), "manifest.json")


def test_build_without_its_file_in_the_list_is_refused(manifest_json: Json) -> None:
    manifest = copy.deepcopy(manifest_json)
    del manifest["files"][manifest["builds"][0]["file"]]
    with pytest.raises(ArtifactError, match="is not listed under files"):
        Manifest.from_dict(manifest, "manifest.json")


def test_manifest_with_builds_is_read_as_it_was_written(manifest_json: Json) -> None:
    manifest = Manifest.from_dict(manifest_json, "manifest.json")
    assert len(manifest.builds) == 3
    assert json.loads(json.dumps(manifest.to_dict())) == manifest_json
