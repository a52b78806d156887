"""Copies of an artifact for tests to damage, and the check that a damaged one is refused."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any, NoReturn

import pytest

from runtime import loaded_artifact
from runtime.artifact.manifest import MANIFEST
from runtime.errors import MarError
from runtime.generator import Generator

Json = Any
Refused = Callable[[type[MarError]], str]
"""The fixture `refused`: takes the type of the expected error and returns its message."""


class _Missing:
    def __repr__(self) -> str:
        return "MISSING"


MISSING = _Missing()
"""Removes an entry when given to `change_manifest` in place of a value."""


@pytest.fixture
def artifact_copy(golden_artifacts: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of an artifact, alone in its parent folder."""
    return pathlib.Path(shutil.copytree(golden_artifacts["small"], tmp_path / "artifact"))


def read_manifest(artifact: pathlib.Path) -> dict[str, Json]:
    """The manifest as JSON."""
    value: dict[str, Json] = json.loads((artifact / MANIFEST).read_text())
    return value


def change_manifest(artifact: pathlib.Path, where: str, value: object) -> None:
    """Set, or with MISSING remove, the entry at `where`: keys and positions in lists, joined by `/`."""
    manifest = read_manifest(artifact)
    *parents, last = where.split("/")
    inner: Json = manifest
    for key in parents:
        inner = inner[int(key) if isinstance(inner, list) else key]
    position: Json = int(last) if isinstance(inner, list) else last
    if value is MISSING:
        del inner[position]
    else:
        inner[position] = value
    (artifact / MANIFEST).write_text(json.dumps(manifest))


def load(artifact: pathlib.Path) -> None:
    """Load an artifact and free it."""
    Generator.load(artifact, threads=1).close()


@pytest.fixture
def refused(artifact_copy: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """A function that loads the damaged copy, which must fail before a backend is opened, and returns the message."""

    def open_backend(*arguments: object) -> NoReturn:
        raise AssertionError(f"a backend was opened for a damaged artifact: {arguments}")

    def check(kind: type[MarError]) -> str:
        monkeypatch.setattr(loaded_artifact, "open_backend", open_backend)
        with pytest.raises(MarError) as refusal:
            load(artifact_copy)
        assert type(refusal.value) is kind
        return str(refusal.value)

    return check
