"""Files and folders after a failed write: the old content is complete, and no other file is left."""

from __future__ import annotations

import errno
import hashlib
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

import pytest

from runtime.errors import MarError
from runtime.storage import files
from runtime.storage.files import check_writable, check_writable_folder, replacing, replacing_folder, sha256, write_json

OLD, NEW = "old and complete", "new and complete"


class Kind(NamedTuple):
    """A file or a folder: how it is replaced and checked, and where in it the content of the tests is."""

    replace: Callable[[pathlib.Path], AbstractContextManager[pathlib.Path]]
    check: Callable[[pathlib.Path], None]
    inside: str

    def write(self, path: pathlib.Path, text: str, failure: BaseException | None = None) -> None:
        with self.replace(path) as temporary:
            (temporary / self.inside).write_text(text)
            if failure is not None:
                raise failure

    def read(self, path: pathlib.Path) -> str:
        return (path / self.inside).read_text()


FILE, FOLDER = Kind(replacing, check_writable, ""), Kind(replacing_folder, check_writable_folder, "content.txt")


@pytest.fixture(params=[FILE, FOLDER], ids=["file", "folder"])
def kind(request: pytest.FixtureRequest) -> Kind:
    param: Kind = request.param
    return param


@pytest.fixture
def path(kind: Kind, tmp_path: pathlib.Path) -> pathlib.Path:
    """A target with old content, alone in its folder."""
    target = tmp_path / "target.bin"
    kind.write(target, OLD)
    return target


def names(folder: pathlib.Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_check_leaves_no_file(kind: Kind, path: pathlib.Path) -> None:
    kind.check(path)
    kind.check(path.with_name("new"))
    assert names(path.parent) == ["target.bin"]
    assert kind.read(path) == OLD


def test_a_check_makes_no_folder(kind: Kind, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even for a moment: another command may be about to write into it."""
    target = tmp_path / "new" / "deeper" / "target.bin"
    made: list[str] = []
    mkdir = os.mkdir
    monkeypatch.setattr(os, "mkdir", lambda name, *mode: (made.append(os.fspath(name)), mkdir(name, *mode)))
    kind.check(target)
    assert not [name for name in made if pathlib.Path(name).is_relative_to(tmp_path / "new")]
    assert names(tmp_path) == []


def test_a_failure_leaves_no_folder_that_was_made_for_it(kind: Kind, tmp_path: pathlib.Path) -> None:
    (tmp_path / "old").mkdir()
    for folder in ("new", "old"):
        with pytest.raises(RuntimeError):
            kind.write(tmp_path / folder / "deeper" / "target.bin", NEW, RuntimeError("bug"))
    assert names(tmp_path) == ["old"]
    assert names(tmp_path / "old") == []


def test_only_the_written_file_remains(kind: Kind, tmp_path: pathlib.Path) -> None:
    target = tmp_path / "made" / "intermediate" / "target.bin"
    kind.write(target, NEW)
    assert kind.read(target) == NEW
    assert names(target.parent) == ["target.bin"]


def test_an_existing_target_is_replaced_completely(kind: Kind, path: pathlib.Path) -> None:
    if path.is_dir():
        (path / "left over from before").write_text(OLD)
    kind.write(path, NEW)
    assert kind.read(path) == NEW
    assert names(path.parent) == ["target.bin"]
    assert not (path / "left over from before").exists()


def test_a_folder_is_replaced_with_its_content(tmp_path: pathlib.Path) -> None:
    target = tmp_path / "target"
    for text in (OLD, NEW):
        with replacing_folder(target) as temporary:
            (temporary / "a" / "b").mkdir(parents=True)
            (temporary / "a" / "b" / "deep.txt").write_text(text)
        assert (target / "a" / "b" / "deep.txt").read_text() == text


def test_other_users_can_read_the_result(kind: Kind, path: pathlib.Path) -> None:
    assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644)


def test_the_temporary_file_has_the_same_name_in_a_hidden_folder_beside(tmp_path: pathlib.Path) -> None:
    with replacing(tmp_path / "grid.png") as temporary:
        assert temporary.name == "grid.png"
        assert temporary.parent.parent == tmp_path
        assert temporary.parent.name.startswith(f".grid.png-{os.getpid()}-")


@pytest.mark.parametrize("existing", [True, False], ids=["there", "missing"])
def test_a_link_is_kept_and_its_target_is_written(kind: Kind, tmp_path: pathlib.Path, existing: bool) -> None:
    target, link = tmp_path / "elsewhere" / "target.bin", tmp_path / "link.bin"
    target.parent.mkdir()
    if existing:
        kind.write(target, OLD)
    link.symlink_to(target)
    kind.write(link, NEW)
    assert link.readlink() == target
    assert kind.read(target) == NEW
    assert names(target.parent) == [target.name]
    assert names(tmp_path) == ["elsewhere", "link.bin"]


@pytest.mark.parametrize("name", [".", "..", "../inner", "{outer}"])
def test_a_folder_is_not_replaced_from_within(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    path = pathlib.Path(name.format(outer=inner.parent))
    for write in (FOLDER.check, lambda path: FOLDER.write(path, NEW)):
        with pytest.raises(MarError, match="the current folder is in it; give the command from another folder"):
            write(path)
    assert (names(tmp_path), names(inner)) == (["outer"], [])


def test_a_target_that_is_not_a_regular_file_is_not_replaced(tmp_path: pathlib.Path) -> None:
    """Such as /dev/null, which everybody on the machine would miss."""
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        for write in (FILE.check, lambda path: FILE.write(path, NEW)):
            with pytest.raises(MarError, match=r"it is not a regular file; choose another name$"):
                write(path)
    assert pipe.is_fifo()
    assert names(tmp_path) == ["link", "pipe"]


@pytest.mark.parametrize("failure", [RuntimeError("bug"), MarError("failure"), KeyboardInterrupt()], ids=repr)
def test_an_exception_passes_through_and_keeps_the_old_content(
    kind: Kind, path: pathlib.Path, failure: BaseException
) -> None:
    with pytest.raises(type(failure)) as seen:
        kind.write(path, NEW, failure)
    assert seen.value is failure
    assert kind.read(path) == OLD
    assert names(path.parent) == ["target.bin"]


def test_an_exception_creates_no_file(kind: Kind, tmp_path: pathlib.Path) -> None:
    with pytest.raises(RuntimeError):
        kind.write(tmp_path / "target.bin", NEW, RuntimeError("bug"))
    assert names(tmp_path) == []


def assert_reported_and_unchanged(kind: Kind, path: pathlib.Path, failure: pytest.ExceptionInfo[MarError]) -> None:
    assert str(path) in str(failure.value)
    assert kind.read(path) == OLD
    assert names(path.parent) == ["target.bin"]


def test_a_full_disk_is_reported_and_keeps_the_old_content(kind: Kind, path: pathlib.Path) -> None:
    expected = r": No space left on device; nothing was changed there; free some space$"
    with pytest.raises(MarError, match=expected) as failure:
        kind.write(path, NEW, OSError(errno.ENOSPC, "No space left on device"))
    assert_reported_and_unchanged(kind, path, failure)


def test_a_write_without_disk_space_is_reported(kind: Kind, path: pathlib.Path) -> None:
    with pytest.raises(MarError, match="No space left on device") as failure, kind.replace(path) as temporary:
        (temporary / kind.inside).write_text(NEW)
        pathlib.Path("/dev/full").write_text("this device is always full")
    assert_reported_and_unchanged(kind, path, failure)


# Each ends its process inside the block, with half of the content on the disk. argv: kind, path.
DYING = """
import os, pathlib, resource, signal, sys
from runtime.storage.files import replacing, replacing_folder
kind, inside = {"file": (replacing, ""), "folder": (replacing_folder, "content.txt")}[sys.argv[1]]
with kind(pathlib.Path(sys.argv[2])) as temporary:
"""
KILLED = (
    DYING
    + """
    (temporary / inside).write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
)
# The kernel cuts the file off in the middle, as a full disk does: 1000 of 5000 bytes.
CUT_OFF = (
    DYING
    + """
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    (temporary / inside).write_text("x" * 5000)
"""
)


def run(script: str, kind: Kind, path: pathlib.Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, "folder" if kind is FOLDER else "file", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_a_kill_during_the_write_keeps_the_old_content(kind: Kind, path: pathlib.Path) -> None:
    assert run(KILLED, kind, path).returncode == -signal.SIGKILL
    assert kind.read(path) == OLD


def test_a_kill_during_the_write_creates_no_file(kind: Kind, path: pathlib.Path) -> None:
    new = path.with_name("new")
    assert run(KILLED, kind, new).returncode == -signal.SIGKILL
    assert not new.exists()


def test_a_truncated_write_is_reported_and_keeps_the_old_content(kind: Kind, path: pathlib.Path) -> None:
    ended = run(CUT_OFF, kind, path)
    assert ended.returncode == 1
    assert f"MarError: cannot write {path}: File too large" in ended.stderr
    assert kind.read(path) == OLD
    assert names(path.parent) == ["target.bin"]


@pytest.mark.parametrize("unusable", ["file/target.bin", "file/deeper/target.bin", "n" * 300, f"{'n' * 300}/target"])
def test_a_name_that_cannot_be_written_is_reported(kind: Kind, tmp_path: pathlib.Path, unusable: str) -> None:
    (tmp_path / "file").write_text(OLD)
    for attempt in (kind.check, lambda path: kind.write(path, NEW)):
        with pytest.raises(MarError) as failure:
            attempt(tmp_path / unusable)
        assert f"cannot write {tmp_path / unusable}" in str(failure.value)
    assert (tmp_path / "file").read_text() == OLD
    assert names(tmp_path) == ["file"]


def test_a_file_does_not_replace_a_folder(tmp_path: pathlib.Path) -> None:
    target = tmp_path / "target.bin"
    FOLDER.write(target, OLD)
    with pytest.raises(MarError) as failure:
        FILE.write(target, NEW)
    assert_reported_and_unchanged(FOLDER, target, failure)


@pytest.mark.parametrize(
    ("cause", "message"),
    [(OSError(errno.EIO, "Input/output error"), MarError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_a_folder_whose_last_rename_fails_keeps_the_old_content(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, cause: BaseException, message: type[BaseException]
) -> None:
    """Without an exchange of names, the old folder steps aside first, and must come back."""
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    target = tmp_path / "target.bin"
    FOLDER.write(target, OLD)
    rename, failures = pathlib.Path.replace, [cause]

    def failing_once(source: pathlib.Path, name: pathlib.Path) -> pathlib.Path:
        if name == target and failures:
            raise failures.pop()
        return rename(source, name)

    monkeypatch.setattr(pathlib.Path, "replace", failing_once)
    with pytest.raises(message):
        FOLDER.write(target, NEW)
    assert FOLDER.read(target) == OLD
    assert names(tmp_path) == ["target.bin"]


def test_a_hash_depends_on_every_byte(tmp_path: pathlib.Path) -> None:
    content = bytes(range(256)) * 10_000  # more than two of the blocks that it is read in
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_invalid_json_is_not_written(tmp_path: pathlib.Path) -> None:
    target = tmp_path / "value.json"
    write_json(target, {"a": [1, 2.5, None, "é"]})
    before = target.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(target, {"a": float("nan")})
    assert target.read_bytes() == before
    assert names(tmp_path) == ["value.json"]


@pytest.mark.parametrize(
    ("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (0o002, 0o664, 0o775)]
)
def test_everything_has_the_permissions_that_the_umask_leaves(
    tmp_path: pathlib.Path, umask: int, file: int, folder: int
) -> None:
    """Also what a library has written with permissions of its own, as those of temporary files are."""

    def private(path: pathlib.Path) -> None:
        path.unlink(missing_ok=True)
        path.touch(0o600)

    before = os.umask(umask)
    try:
        with replacing(tmp_path / "file") as temporary:
            private(temporary)
        with replacing_folder(tmp_path / "folder") as temporary:
            (temporary / "inner").mkdir(0o700)
            private(temporary / "inner" / "file")
        with replacing(tmp_path / "new" / "file") as temporary:
            temporary.write_text("content")
    finally:
        os.umask(before)
    modes = {str(path.relative_to(tmp_path)): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    files, folders = ("file", "folder/inner/file", "new/file"), ("folder", "folder/inner", "new")
    assert modes == {**dict.fromkeys(files, file), **dict.fromkeys(folders, folder)}
