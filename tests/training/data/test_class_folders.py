"""Folders with one sub-folder per class: which become classes, which are left out, and names of any kind."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime.errors import DataError
from tests.helpers.image_files import save_image
from tests.helpers.tiny_runs import one_sentence
from training.data.class_names import check_known_classes, check_same_classes
from training.data.datasets import open_dataset


def _images(folder: pathlib.Path, count: int = 2) -> None:
    for number in range(count):
        save_image(folder / f"{number}.png", Image.new("RGB", (8, 8)))


def test_what_is_left_out_is_told_with_its_number(tmp_path: pathlib.Path) -> None:
    for name in ("cats", "dogs", "__MACOSX/cats", "@eaDir", ".git", "cats/.ipynb_checkpoints", "dogs/__pycache__"):
        _images(tmp_path / name)
    for name in ("cats/a.txt", "cats/b.TXT", "dogs/c.eps", "dogs/noend", "cats/._0.png", "readme.md", "loose.png"):
        (tmp_path / name).write_text("not an image")
    dataset = open_dataset(tmp_path, 8)
    assert dataset.classes == ("cats", "dogs")
    assert dataset.notes == (
        f"{tmp_path}: 4 images of 2 classes: cats 2, dogs 2",
        f"{tmp_path}: left out 6 hidden or system files: ._0.png, .git, .ipynb_checkpoints, @eaDir, __MACOSX, "
        "__pycache__",
        f"{tmp_path}: left out 2 files outside of the class folders: loose.png, readme.md",
        f"{tmp_path}: left out 4 files of other types: .txt 2, no suffix 1, .eps 1",
    )
    assert dataset.warnings == []


def test_linked_folders_are_followed_once(tmp_path: pathlib.Path) -> None:
    data = tmp_path / "data"
    _images(data / "cat", 1)
    _images(tmp_path / "store", 3)
    (data / "cat" / "more").symlink_to(tmp_path / "store")
    (data / "cat" / "again").symlink_to(tmp_path / "store")
    (data / "cat" / "loop").symlink_to(data / "cat")
    (data / "dog").symlink_to(tmp_path / "store")
    dataset = open_dataset(data, 8)
    assert dataset.classes == ("cat", "dog")
    assert np.bincount(dataset.labels).tolist() == [4, 3]
    assert dataset.notes[1].startswith(f"{data}: left out 2 links to folders that were read already: ")


def test_a_split_is_found_in_any_case_and_others_are_told(tmp_path: pathlib.Path) -> None:
    for name in ("Train/cats", "Train/dogs", "val/cats", "TEST/cats"):
        _images(tmp_path / name)
    dataset = open_dataset(tmp_path, 8)
    assert dataset.classes == ("cats", "dogs")
    assert dataset.notes[1:] == (f"{tmp_path}: left out what is beside Train: val",)
    assert open_dataset(tmp_path, 8, "test").classes == ("cats",)


def test_splits_without_a_training_split_are_no_classes(tmp_path: pathlib.Path) -> None:
    for name in ("val/cats", "test/cats"):
        _images(tmp_path / name)
    with pytest.raises(
        DataError, match=r"no images of the train split; expected a folder train/.*found test, val"
    ) as caught:
        open_dataset(tmp_path, 8)
    one_sentence(caught)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_the_error_about_a_folder_that_cannot_be_read_names_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    """As root, whom permissions do not stop, the system's answer is made up."""
    _images(tmp_path / "cat" / "more")
    closed, scan = tmp_path.joinpath(*("cat", "more")[:depth]), os.scandir

    def refuse(path: str | pathlib.Path) -> Any:
        if pathlib.Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(os, "listdir", lambda path: [entry.name for entry in refuse(path)])
    with pytest.raises(DataError, match=r": cannot be read \(Permission denied\)") as caught:
        open_dataset(tmp_path, 8)
    assert one_sentence(caught).startswith(f"{closed}: ")


def test_names_of_any_bytes_are_told_on_one_line(tmp_path: pathlib.Path) -> None:
    for folder in (b"caf\xe9", b"new\nline", "\u732b".encode()):
        file = tmp_path / os.fsdecode(folder) / os.fsdecode(b"\xff\n\x1b.png")
        file.parent.mkdir()
        with file.open("wb") as stream:
            Image.new("RGB", (8, 8)).save(stream, "PNG")
    dataset = open_dataset(tmp_path, 8)
    assert dataset.classes == ("caf\\xe9", "new\\nline", "\u732b")
    assert dataset.images(np.arange(3)).shape == (3, 8, 8, 3)
    for number, name in enumerate(dataset.classes):
        assert dataset.name(number) == f"{tmp_path}/{name}/\\xff\\n\\x1b.png"
        dataset.name(number).encode()
    assert len(dataset.fingerprint) == 64


def test_names_are_the_same_in_a_locale_without_their_letters(tmp_path: pathlib.Path) -> None:
    for folder in (b"caf\xe9", "\u732b".encode(), b"tea"):
        save_image(tmp_path / os.fsdecode(folder) / "\u00e9.png", Image.new("RGB", (8, 8)))
    script = (
        "import pathlib, sys; from training.data.datasets import open_dataset;"
        "dataset = open_dataset(pathlib.Path(sys.argv[1]), 8); assert sys.getfilesystemencoding() == 'ascii';"
        "names = [dataset.name(number) for number in range(3)];"
        "print(ascii((dataset.classes, names, dataset.content)))"
    )
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", script, str(tmp_path)]
    ended = subprocess.run(command, env={**os.environ, **locale}, capture_output=True, text=True, check=True)
    here = open_dataset(tmp_path, 8)
    assert here.classes == ("caf\\xe9", "tea", "\u732b")
    names = [here.name(number) for number in range(3)]
    assert ended.stdout == f"{(here.classes, names, here.content)!a}\n"


def test_transparent_pixels_show_the_background_and_change_the_fingerprint(tmp_path: pathlib.Path) -> None:
    save_image(tmp_path / "a" / "0.png", Image.new("RGBA", (8, 8), (200, 0, 0, 0)))
    white, blue = open_dataset(tmp_path, 8), open_dataset(tmp_path, 8, background=(0, 0, 9))
    assert (white.images(np.array([0])) == 255).all()
    assert (blue.images(np.array([0])) == (0, 0, 9)).all()
    assert white.fingerprint != blue.fingerprint


def test_images_with_transparent_pixels_are_counted_and_told(tmp_path: pathlib.Path) -> None:
    for number in range(6):
        save_image(tmp_path / "a" / f"{number}.png", Image.new("RGBA", (8, 8), (9, 9, 9, 0 if number < 2 else 255)))
    (tmp_path / "a" / "torn.png").write_bytes(b"")
    line = f"{tmp_path}: 2 of 7 images with transparent pixels, which show"
    assert open_dataset(tmp_path, 8).notes[1:] == (f"{line} white (--background)",)
    assert open_dataset(tmp_path, 8, background=(0, 16, 255)).notes[1:] == (f"{line} #0010ff (--background)",)


def test_of_many_images_some_are_looked_at(tmp_path: pathlib.Path) -> None:
    for number in range(130):
        save_image(tmp_path / "a" / f"{number}.png", Image.new("LA", (2, 2), (9, 0)))
    assert open_dataset(tmp_path, 8).notes[1].startswith(f"{tmp_path}: 44 of 44 images looked at with transparent")


def test_other_classes_are_refused_with_both_lists() -> None:
    check_same_classes(("a", "b"), ["a", "b"], "data", "run")
    for found, message in (
        (("b", "c", "z"), "data has the classes b, c, z, but run has a, b, c"),
        (
            ("a", "b"),
            "has the classes a, b, but run has a, b, c, so the meaning of labels would change from number 2 on",
        ),
        (tuple(f"c{number}" for number in range(99)), r"has the classes c0, .*, \.\.\., but run has a, b, c"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            check_same_classes(found, ("a", "b", "c"), "data", "run")
        one_sentence(caught)
    many = [f"class {number}" for number in range(1000)]
    with pytest.raises(DataError, match=r"classes \.\.\., other, class 501.*run has \.\.\., class 500, class 501"):
        check_same_classes([*many[:500], "other", *many[501:]], many, "data", "run")


def test_numbers_for_classes_are_compared_with_no_names() -> None:
    for expected in ((), ("cat", "dog")):
        check_known_classes(("0", "1"), expected, "data", "model")
    check_known_classes(("cat", "dog"), (), "data", "model")
    with pytest.raises(DataError):
        check_known_classes(("dog", "cat"), ("cat", "dog"), "data", "model")
