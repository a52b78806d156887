"""One rule for all folders that a command makes as a whole."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import pytest

from runtime.artifact.artifact_folder import ARTIFACT_FOLDER
from runtime.artifact.manifest import MANIFEST
from runtime.errors import RequestError
from runtime.storage.folder_kinds import FolderKind
from runtime.triton.repository import CONFIG, MODEL_FOLDER
from training.checkpoints.run_folder import CONFIG_FILE, RUN_FOLDER

MARKERS = {
    "artifact": (ARTIFACT_FOLDER, MANIFEST, "--out"),
    "run": (RUN_FOLDER, CONFIG_FILE, "--out"),
    "model of Triton": (MODEL_FOLDER, CONFIG, "--name"),
}
ANY_ARTIFACT = '{"format_version": 1, "files": {}, "engines": {}}'

Make = Callable[[pathlib.Path], object]


@pytest.fixture(params=MARKERS)
def noun(request: pytest.FixtureRequest) -> str:
    param: str = request.param
    return param


@pytest.fixture
def kind(noun: str) -> FolderKind:
    return MARKERS[noun][0]


def test_nothing_an_empty_folder_and_a_link_to_nothing_can_be_written(kind: FolderKind, tmp_path: pathlib.Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert [kind.check(tmp_path / name) for name in ("missing", "empty", "link", "n" * 300)] == 4 * [False]


@pytest.mark.parametrize("own", MARKERS)
def test_only_its_own_kind_is_replaced(kind: FolderKind, noun: str, own: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / MARKERS[own][1]).write_text(ANY_ARTIFACT)
    if noun == own:
        assert kind.check(tmp_path)
        return
    with pytest.raises(RequestError, match=f"exists and is no {noun}; choose another {MARKERS[noun][2]}, or remove it"):
        kind.check(tmp_path)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_text("mine"),
        lambda path: path.write_text(""),
        lambda path: (path / "folder").mkdir(parents=True),
        lambda path: (path.mkdir(), (path / ".git").mkdir()),
    ],
    ids=["file", "empty file", "folder in it", "hidden folder in it"],
)
def test_anything_else_is_refused(kind: FolderKind, noun: str, make: Make, tmp_path: pathlib.Path) -> None:
    make(tmp_path / "mine")
    with pytest.raises(RequestError, match=f"mine exists and is no {noun}; "):
        kind.check(tmp_path / "mine")


def test_another_one_needs_force(kind: FolderKind, noun: str) -> None:
    folder, option = pathlib.Path("there"), MARKERS[noun][2]
    assert str(kind.another(folder)) == (
        f"there holds another {noun}; choose another {option}, or give --force to replace it"
    )
    assert str(kind.another(folder, "a damaged one")).startswith("there holds a damaged one; choose another")
