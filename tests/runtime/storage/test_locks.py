"""What killed processes leave is removed, what live ones use is not; a folder is held by one process."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from runtime.errors import MarError
from runtime.storage import files
from runtime.storage.files import (
    check_writable,
    clear_dead_lock,
    holding,
    holding_folder,
    replacing,
    replacing_folder,
    scratch_beside,
)
from runtime.storage.locks import LockFile, held_files
from tests.helpers.held_places import kill, names, other_process


@pytest.mark.parametrize("block", ["replacing", "replacing_folder", "scratch_beside"])
def test_the_next_write_removes_what_a_killed_process_left_and_nothing_of_a_live_one(
    tmp_path: pathlib.Path, block: str
) -> None:
    with other_process(block, tmp_path / "target") as process:
        [left] = names(tmp_path)
        check_writable(tmp_path / "other")
        assert names(tmp_path) == [left]
        kill(process)
        assert names(tmp_path) == [left]
    check_writable(tmp_path / "other")
    assert names(tmp_path) == []


def test_names_that_look_alike_are_not_removed(tmp_path: pathlib.Path) -> None:
    for name in (".target-1-notes.tmp", ".target-12-abcdefgh.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("mine")
    check_writable(tmp_path / "target")
    assert names(tmp_path) == [".target-1-notes.tmp", ".target-12-abcdefgh.tmp"]


def test_a_staging_folder_that_was_killed_before_it_had_a_lock_is_removed(tmp_path: pathlib.Path) -> None:
    (tmp_path / ".target-12-abcdefgh.tmp").mkdir()
    check_writable(tmp_path / "target")
    assert names(tmp_path) == []


KILLED_BETWEEN = """
import os, pathlib, signal, sys
from runtime.storage import files
files._exchange = lambda one, other: False
rename, target = pathlib.Path.replace, pathlib.Path(sys.argv[1])
def replace(source, name):
    if name == target:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(source, name)
pathlib.Path.replace = replace
with files.replacing_folder(target) as temporary:
    (temporary / "content").write_text("new")
"""


def test_a_folder_whose_replacement_was_killed_comes_back(tmp_path: pathlib.Path) -> None:
    """Where two names cannot be exchanged, there is a moment without either."""
    target = tmp_path / "target"
    with replacing_folder(target) as temporary:
        (temporary / "content").write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED_BETWEEN, str(target)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not target.exists()
    check_writable(tmp_path / "other")
    assert (target / "content").read_text() == "old"
    assert names(tmp_path) == ["target"]


def test_a_folder_that_cannot_come_back_yet_comes_back_later(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    with replacing_folder(target) as temporary:
        (temporary / "content").write_text("old")
    subprocess.run([sys.executable, "-c", KILLED_BETWEEN, str(target)], check=False)
    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "replace", _refuse)
        check_writable(tmp_path / "other")
    assert held_files() == []
    assert not target.exists()
    check_writable(tmp_path / "other")
    assert (target / "content").read_text() == "old"
    assert names(tmp_path) == ["target"]


def test_what_cannot_be_removed_yet_is_removed_later(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, scratch_beside(tmp_path / "target") as work:
        (work / "content").write_text("half")
        patch.setattr(pathlib.Path, "unlink", _refuse)
    assert held_files() == []
    assert names(tmp_path) == [work.name]
    check_writable(tmp_path / "other")
    assert names(tmp_path) == []


def _refuse(*names: object) -> None:
    raise OSError(errno.EIO, "Input/output error")


def test_a_folder_is_replaced_in_one_step(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "target"
    with replacing_folder(target) as temporary:
        (temporary / "content").write_text("old")
    monkeypatch.setattr(pathlib.Path, "replace", lambda *names: pytest.fail("the name was free for a moment"))
    with replacing_folder(target) as temporary:
        (temporary / "content").write_text("new")
    assert (target / "content").read_text() == "new"
    assert names(tmp_path) == ["target"]


@pytest.mark.parametrize(("block", "hold"), [("holding_folder", holding_folder), ("holding", holding)])
def test_the_second_process_is_told_who_holds_a_place(
    tmp_path: pathlib.Path, block: str, hold: type[contextlib.AbstractContextManager[None]]
) -> None:
    place = tmp_path / "new" / "place"
    with other_process(block, place) as process:
        with (
            pytest.raises(MarError, match=rf"^{place} is in use by process {process.pid} on .* since .*; wait"),
            hold(place),
        ):
            pytest.fail("two processes hold it")
        kill(process)
        with hold(place):  # of a dead process
            pass
    assert list(tmp_path.rglob("*")) in ([], [tmp_path / "new"], [tmp_path / "new", place])


def test_a_held_folder_is_cleared_of_what_is_dead_in_all_its_folders(tmp_path: pathlib.Path) -> None:
    run = tmp_path / "run"
    with replacing(run / "samples" / "kept.png") as temporary:
        temporary.write_text("kept")
    with other_process("replacing", run / "samples" / "step.png") as process, holding_folder(run):
        assert len(names(run / "samples")) == 2
        kill(process)
    with holding_folder(run):
        assert names(run) == [".lock", "samples"]
    assert names(run) == ["samples"]
    assert names(run / "samples") == ["kept.png"]


def test_the_lock_of_a_dead_process_is_removed_and_that_of_a_live_one_stays(tmp_path: pathlib.Path) -> None:
    lock = tmp_path / ".weights.lock"
    with holding(tmp_path / "weights"):
        clear_dead_lock(tmp_path / "weights")
        assert lock.exists()
    lock.write_text("process 1 on a since b\n")
    clear_dead_lock(tmp_path / "weights")
    clear_dead_lock(tmp_path / "nothing")
    assert list(tmp_path.iterdir()) == []


def test_folders_that_were_made_and_stay_empty_are_removed(tmp_path: pathlib.Path) -> None:
    (tmp_path / "there").mkdir()
    for folder in (tmp_path / "there", tmp_path / "a" / "b"):
        with holding_folder(folder):
            pass
    assert names(tmp_path) == ["there"]


def test_a_forked_child_does_not_keep_a_lock_after_its_parent(tmp_path: pathlib.Path) -> None:
    """Such as a process that reads data ahead, which lives for some seconds after a kill of its parent."""
    code = (
        "import os, pathlib, signal, sys, time\n"
        "from runtime.storage.files import holding_folder\n"
        "with holding_folder(pathlib.Path(sys.argv[1])):\n"
        "    if os.fork() == 0:\n"
        "        print('forked', flush=True)\n"
        "        time.sleep(60)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "forked\n"
        kill(process)
        with holding_folder(tmp_path):
            pass
        os.killpg(process.pid, signal.SIGKILL)


def test_a_file_system_without_locks_can_be_written(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("runtime.storage.locks.fcntl.flock", unsupported)
    with holding_folder(tmp_path / "run"), replacing(tmp_path / "run" / "file") as temporary:
        temporary.write_text("content")
        check_writable(tmp_path / "run" / "other")  # nobody can tell whether the first staging folder is in use
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["file"]


def test_a_lock_that_was_removed_meanwhile_is_taken_again(tmp_path: pathlib.Path) -> None:
    first = LockFile.acquire(tmp_path / "lock")
    assert first is not None
    assert LockFile.acquire(tmp_path / "lock") is None
    (tmp_path / "lock").unlink()
    second = LockFile.acquire(tmp_path / "lock")
    assert second is not None
    for lock in (first, second):
        lock.release()
    assert names(tmp_path) == []


def test_scratch_of_the_system_is_removed(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path))
    with files.scratch_folder() as folder:
        assert folder.parent == tmp_path
        with scratch_beside(folder / "inner") as inner:
            (inner / "file").write_text("content")
    assert names(tmp_path) == []


def test_no_folder_for_temporary_files_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_usable() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(files.tempfile, "gettempdir", none_usable)
    with pytest.raises(MarError, match=r"^no folder for temporary files can be written .*set TMPDIR$"):
        files.scratch_folder()


@pytest.mark.parametrize("hold", [holding_folder, holding])
def test_folders_that_a_failed_command_made_are_removed(
    tmp_path: pathlib.Path, hold: type[contextlib.AbstractContextManager[None]]
) -> None:
    with pytest.raises(MarError, match="nothing to do"), hold(tmp_path / "a" / "b" / "artifact"):
        raise MarError("nothing to do")
    assert names(tmp_path) == []
