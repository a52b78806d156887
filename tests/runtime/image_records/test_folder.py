"""A folder of images: complete and right after a kill at any moment, continued, and never overwritten."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from runtime.errors import DataError, MarError, RequestError
from runtime.image_records import folder as folder_module
from runtime.image_records.encoding import encode_image, read_records
from runtime.image_records.folder import ImageFolder
from runtime.image_records.index import INDEX, append_entries, read_index
from runtime.image_records.record import ImageRecord, settings_values
from runtime.sampling.settings import Sampling

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), np.uint8)
RECORDS = [ImageRecord(index % 2, "cat", 1, index, settings_values(Sampling()), None, "a" * 64) for index in range(6)]


def fill(folder: pathlib.Path, **options: Any) -> bool:
    """What a run does: it writes two images at a time, those that are missing."""
    with ImageFolder(folder, **options) as images:
        for start in range(0, 6, 2):
            if not all(map(images.has, RECORDS[start : start + 2])):
                images.add(RECORDS[start : start + 2], PIXELS[start : start + 2])
        return images.complete(RECORDS)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process loses nothing that it has written, so that the tests need not wait."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def expected(tmp_path: pathlib.Path) -> dict[str, bytes]:
    assert fill(tmp_path / "expected")
    return contents(tmp_path / "expected")


def test_every_image_has_its_file_and_its_line_in_order(tmp_path: pathlib.Path, expected: dict[str, bytes]) -> None:
    lines = [json.loads(line) for line in expected[INDEX].splitlines()]
    assert [line["index"] for line in lines] == list(range(6))
    assert {line["file"] for line in lines} | {INDEX} == expected.keys()
    for line, record, image in zip(lines, RECORDS, PIXELS, strict=True):
        assert hashlib.sha256(expected[line["file"]]).hexdigest() == line["sha256"]
        assert expected[line["file"]] == encode_image(image, record)
        assert read_records(tmp_path / "expected" / line["file"]) == (record,)
    assert [entry.record for entry in read_index(tmp_path / "expected" / INDEX)] == RECORDS


def counted(step: Callable[..., Any], counter: Iterator[int], last: int) -> Callable[..., Any]:
    """A step that kills the process before or after it, if its turn is `last`."""

    def run(*arguments: Any) -> Any:
        if next(counter) == last:
            os._exit(9)
        result = step(*arguments)
        if next(counter) == last:
            os._exit(9)
        return result

    return run


def killed_run(folder: pathlib.Path, last: int) -> bool:
    """Fill a folder in a process that is killed at step `last`; return whether it came so far."""
    process = os.fork()
    if process == 0:
        counter = iter(range(10**6))
        for owner, name in ((folder_module, "sync"), (folder_module, "append_entries"), (pathlib.Path, "replace")):
            setattr(owner, name, counted(getattr(owner, name), counter, last))
        fill(folder)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9


def test_a_run_that_was_killed_at_any_step_is_continued(tmp_path: pathlib.Path, expected: dict[str, bytes]) -> None:
    step = 0
    while killed_run(out := tmp_path / f"killed-{step}", step):
        for entry in read_index(out / INDEX):  # every line is right
            assert hashlib.sha256((out / entry.file).read_bytes()).hexdigest() == entry.sha256
        for file in out.glob("*.png"):  # every file is complete
            assert file.read_bytes() == expected[file.name]
        kept = {file.name: file.stat().st_mtime_ns for file in out.glob("*.png")}
        assert fill(out)
        assert contents(out) == expected
        assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept  # what was finished was not touched
        step += 1
    assert step > 30


def test_an_index_that_cannot_be_written_is_one_line(
    tmp_path: pathlib.Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    index = tmp_path / "expected" / INDEX
    entries = read_index(index)
    monkeypatch.setattr(os, "fsync", full)
    expected = f"cannot write {index}: No space left on device; free some space"
    with pytest.raises(MarError, match=f"^{re.escape(expected)}$"):
        append_entries(index, entries[:1])


@pytest.mark.parametrize("cut", [1, 40, 300])
def test_a_line_that_was_cut_is_mended(tmp_path: pathlib.Path, expected: dict[str, bytes], cut: int) -> None:
    index = tmp_path / "expected" / INDEX
    index.write_bytes(index.read_bytes()[:-cut])
    assert fill(tmp_path / "expected")
    assert contents(tmp_path / "expected") == expected


def test_what_is_missing_is_made_again(tmp_path: pathlib.Path, expected: dict[str, bytes]) -> None:
    images = sorted((tmp_path / "expected").glob("*.png"))
    for gone in (images[3:], images[:1], [tmp_path / "expected" / INDEX]):
        for file in gone:
            file.unlink()
        assert fill(tmp_path / "expected")
        assert contents(tmp_path / "expected") == expected


def test_an_image_that_was_altered_is_an_error_that_names_it(
    tmp_path: pathlib.Path, expected: dict[str, bytes]
) -> None:
    altered = sorted((tmp_path / "expected").glob("*.png"))[3]
    altered.write_bytes(altered.read_bytes()[:-20])
    with pytest.raises(DataError, match=rf"{altered.name} was altered: .* index; remove it, and it is made again"):
        fill(tmp_path / "expected")
    altered.unlink()
    assert fill(tmp_path / "expected")
    assert contents(tmp_path / "expected") == expected


def test_an_image_of_other_settings_is_refused_and_kept(tmp_path: pathlib.Path, expected: dict[str, bytes]) -> None:
    other = dataclasses.replace(RECORDS[0], settings=settings_values(Sampling(cfg_scale=2.0)))
    for index in (True, False):
        if not index:
            (tmp_path / "expected" / INDEX).unlink()
        with ImageFolder(tmp_path / "expected") as images, pytest.raises(RequestError) as refusal:
            images.add([other], PIXELS[:1])
        assert "000-cat-seed1-000000.png was made with cfg_scale 1.0 instead of 2.0" in str(refusal.value)
    assert fill(tmp_path / "expected")
    assert contents(tmp_path / "expected") == expected


def test_a_file_of_others_is_refused_and_kept(tmp_path: pathlib.Path) -> None:
    (tmp_path / "000-cat-seed1-000000.png").write_text("mine")
    with pytest.raises(RequestError, match="not a readable image"):
        fill(tmp_path)
    assert (tmp_path / "000-cat-seed1-000000.png").read_text() == "mine"


def test_two_processes_do_not_fill_one_folder(tmp_path: pathlib.Path) -> None:
    with (
        ImageFolder(tmp_path / "images"),
        pytest.raises(MarError, match="is in use by process"),
        ImageFolder(tmp_path / "images"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []  # a folder that stayed empty is removed


def test_shards_give_the_folder_of_one_process(tmp_path: pathlib.Path, expected: dict[str, bytes]) -> None:
    done = []
    with ImageFolder(tmp_path / "out", shard=(1, 2)) as one, ImageFolder(tmp_path / "out", shard=(2, 2)) as two:
        for images, part in ((two, slice(3, 6)), (one, slice(0, 3))):
            images.add(RECORDS[part], PIXELS[part])
            done.append(images.complete(RECORDS))
    assert done == [False, True]
    found = contents(tmp_path / "out")
    assert {name: content for name, content in found.items() if not name.startswith("index-")} == expected
    assert found.keys() - expected.keys() == {"index-1-of-2.jsonl", "index-2-of-2.jsonl"}


def test_classes_can_have_folders_and_files_other_formats(tmp_path: pathlib.Path) -> None:
    assert fill(tmp_path, by_class=True, format_name="webp")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000-cat", "001-cat", INDEX]
    assert [entry.file for entry in read_index(tmp_path / INDEX)][:2] == [
        "000-cat/000-cat-seed1-000000.webp",
        "001-cat/001-cat-seed1-000001.webp",
    ]


@pytest.mark.parametrize(
    "line", ['{"file": "a.png"}', '{"file": "../a.png", "sha256": ""}', "[]", '{"file": "/a.png", "sha256": ""}']
)
def test_a_damaged_index_is_one_line(tmp_path: pathlib.Path, line: str) -> None:
    (tmp_path / INDEX).write_text(f"{line}\n" * 2)
    with pytest.raises(DataError, match="delete the index"):
        fill(tmp_path)
