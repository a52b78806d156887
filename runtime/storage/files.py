"""Files and folders that are written completely or not at all, even if the process is killed or the disk is full.

A file or folder that is not complete is in a *staging folder*, a hidden folder beside the target, with the name
`.NAME-PID-RANDOM.tmp`. Its lock file shows whether the process that made it still lives. Whoever writes into the same
folder next removes the staging folders of dead processes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from typing import Any

from runtime.errors import MarError, cannot_write
from runtime.storage.locks import LockFile, held_files, holder

_LOCK = ".lock"
_STAGING_FOLDER = re.compile(r"\..*-\d+-[a-z0-9_]{8}\.tmp", re.DOTALL)
_NOT_EXECUTABLE = 0o666
_OLD = "old"  # in a staging folder: the folder that is being replaced, where two names cannot be exchanged


def sync(path: pathlib.Path) -> None:
    """Wait until the file or folder at `path` is written to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(path: pathlib.Path) -> None:
    """Raise `MarError` if `replacing(path)` cannot write there, so that long work does not start in vain."""
    path = _link_target(path)
    _check_regular(path)
    _check_place(path)


def check_writable_folder(path: pathlib.Path) -> None:
    """Raise `MarError` if `replacing_folder(path)` cannot write there."""
    path = _link_target(path)
    _check_outside(path)
    _check_place(path)


def _check_place(path: pathlib.Path) -> None:
    """Raise `MarError` if nothing can be written in the folder of `path`, or in the nearest one where it is missing.

    Missing folders are not made: the command may fail, or another one be about to write there.
    """
    try:
        nearest = next(folder for folder in path.parents if folder.exists())
    except OSError as error:
        raise cannot_write(path, error) from error
    with scratch_beside(nearest / path.name, path):
        pass


def _link_target(path: pathlib.Path) -> pathlib.Path:
    """Return the target of a symbolic link, so that the target is replaced and the link stays."""
    try:
        return pathlib.Path(os.path.realpath(path)) if path.is_symlink() else path
    except OSError:  # for example a name that is too long; writing to it reports the error
        return path


def _check_regular(path: pathlib.Path) -> None:
    try:
        if path.is_dir():
            raise MarError(f"cannot write {path}: it is a folder")
        if path.exists() and not path.is_file():
            raise MarError(f"cannot write {path}: it is not a regular file; choose another name")
    except OSError as error:
        raise cannot_write(path, error) from error


def _check_outside(path: pathlib.Path) -> None:
    """Raise `MarError` if this process works in a folder that would be replaced: its shell would stay in the old."""
    here = os.path.realpath(".")
    if os.path.realpath(path) in {here, *map(str, pathlib.Path(here).parents)}:
        raise MarError(f"cannot write {path}: the current folder is in it; give the command from another folder")


@contextlib.contextmanager
def scratch_beside(path: pathlib.Path, target: pathlib.Path | None = None) -> Iterator[pathlib.Path]:
    """Give an empty folder on the disk of `path`, whose parents are made. It is removed after the block.

    Parents that were made and are empty after the block are removed too. If this process is killed, whoever writes
    beside `path` next removes the folder.

    Args:
        path: Beside what it is.
        target: What an error names in place of `path`.

    Raises:
        MarError: The parent folder cannot be written.
    """
    with _without_empty(path.parent):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            clear_dead(path.parent)
            work, lock = _make_staging_folder(path)
        except OSError as error:
            raise cannot_write(target or path, error) from error
        try:
            yield work
        finally:
            _remove(work, lock)


def scratch_folder() -> contextlib.AbstractContextManager[pathlib.Path]:
    """Give an empty folder among the temporary files of the system, as `scratch_beside` does. Raises `MarError`."""
    try:
        return scratch_beside(pathlib.Path(tempfile.gettempdir()) / "mar")
    except OSError as error:
        raise MarError(
            f"no folder for temporary files can be written ({error.strerror or error}); free some space, or set TMPDIR"
        ) from error


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Give a temporary file to write to, which replaces `path` if the block succeeds and is removed otherwise.

    The file is on the disk of `path` and has its name, because some writers choose their format by the suffix.

    Raises:
        MarError: The folder cannot be written, the disk is full, or `path` exists and is not a regular file.
    """
    path = _link_target(path)
    _check_regular(path)
    with scratch_beside(path) as work:
        temporary = work / path.name
        try:
            temporary.touch()
            mode = _mode(temporary)
            yield temporary
            temporary.chmod(mode)  # some writers make files of their own, with other permissions
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
        except OSError as error:
            raise cannot_write(path, error, "nothing was changed there") from error


@contextlib.contextmanager
def replacing_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Give a temporary folder to write to, which replaces `path` if the block succeeds and is removed otherwise.

    An existing folder at `path` is removed only after the new one is complete, on the disk, and in its place.

    Raises:
        MarError: The parent folder cannot be written, or the disk is full.
    """
    path = _link_target(path)
    _check_outside(path)
    with scratch_beside(path) as work:
        temporary = work / path.name
        try:
            temporary.mkdir()
            mode = _mode(temporary)
            yield temporary
            for file in (temporary, *sorted(temporary.rglob("*"))):
                file.chmod(mode if file.is_dir() else mode & _NOT_EXECUTABLE)
                sync(file)
            _put_in_place(temporary, path, work)
            sync(path.parent)
        except OSError as error:
            raise cannot_write(path, error, "nothing was changed there") from error


def _mode(path: pathlib.Path) -> int:
    """Return the permissions of a new file or folder: those that the umask leaves."""
    return stat.S_IMODE(path.stat().st_mode)


def _put_in_place(folder: pathlib.Path, path: pathlib.Path, work: pathlib.Path) -> None:
    """Rename a folder to `path`. What was there goes into the staging folder `work`."""
    if not path.exists():
        folder.replace(path)
    elif not _exchange(folder, path):
        old = work / _OLD / path.name
        old.parent.mkdir()
        path.replace(old)
        try:
            folder.replace(path)
        except BaseException:
            old.replace(path)
            raise


def _exchange(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Exchange two names in one step (renameat2 of Linux). Return False where the system cannot do it."""
    import ctypes

    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


@contextlib.contextmanager
def holding_folder(folder: pathlib.Path) -> Iterator[None]:
    """Hold a folder, made if it is missing, so that no other process works in it during the block.

    What dead processes left in it is removed. Folders that were made and are empty after the block are removed too.

    Raises:
        MarError: Another process holds the folder, or it cannot be written.
    """
    with _without_empty(folder), _holding(folder / _LOCK, folder):
        _clear_tree(folder)
        try:
            yield
        finally:
            _clear_tree(folder)  # of the processes that this one has started


@contextlib.contextmanager
def holding(path: pathlib.Path) -> Iterator[None]:
    """Hold a file, or a folder that is replaced as a whole, so that no other process makes it during the block.

    The staging folders that dead processes left beside it are removed. Folders that were made and are empty after the
    block are removed too.

    Raises:
        MarError: Another process holds it, or its folder cannot be written.
    """
    real = pathlib.Path(os.path.realpath(path))  # another name of the same place has the same lock
    with _without_empty(real.parent), _holding(_lock_beside(real), path):
        clear_dead(real.parent)
        yield


@contextlib.contextmanager
def _without_empty(folder: pathlib.Path) -> Iterator[None]:
    """Remove a folder and its parents after the block, as far as they were missing before it and are empty."""
    made: list[pathlib.Path] = []
    with contextlib.suppress(OSError):  # of a name that is too long; writing to it reports the error
        made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for parent in made:
                parent.rmdir()


def clear_dead_lock(path: pathlib.Path) -> None:
    """Remove the lock of `holding(path)` if the process that took it was killed."""
    with contextlib.suppress(OSError):
        lock = LockFile.acquire(_lock_beside(pathlib.Path(os.path.realpath(path))), create=False)
        if lock is not None:
            lock.release()


def _lock_beside(path: pathlib.Path) -> pathlib.Path:
    return path.parent / f".{path.name}{_LOCK}"


@contextlib.contextmanager
def _holding(file: pathlib.Path, target: pathlib.Path) -> Iterator[None]:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = LockFile.acquire(file)
        if lock is not None:
            lock.sign()
    except OSError as error:
        raise cannot_write(target, error) from error
    if lock is None:
        raise MarError(f"{target} is in use by {holder(file)}; wait for it, or choose another place")
    try:
        yield
    finally:
        lock.release()


def is_writing() -> bool:
    """Return whether this process has something that is not complete, or holds a place."""
    return bool(held_files())


def abandon() -> None:
    """Remove everything that this process has not completed, from any thread; the process must end then."""
    for file in held_files():
        if _STAGING_FOLDER.fullmatch(file.parent.name):
            shutil.rmtree(file.parent, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                file.unlink()


def is_lock(path: pathlib.Path) -> bool:
    """Return whether a file in a folder is the lock of `holding_folder`."""
    return path.name == _LOCK


def clear_dead(folder: pathlib.Path) -> None:
    """Remove from a folder the staging folders of processes that have ended."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for name in [entry.name for entry in entries if _STAGING_FOLDER.fullmatch(entry.name)]:
            _clear(folder / name)


def _clear_tree(folder: pathlib.Path) -> None:
    """Remove the staging folders of dead processes from a folder and from all folders in it."""
    for parent, folders, _ in os.walk(folder):
        clear_dead(pathlib.Path(parent))
        folders[:] = [name for name in folders if not _STAGING_FOLDER.fullmatch(name)]


def _clear(work: pathlib.Path) -> None:
    """Remove a staging folder if no process holds it. A folder that it was about to replace comes back first."""
    try:
        lock = LockFile.acquire(work / _LOCK, create=False)
    except FileNotFoundError:
        with contextlib.suppress(OSError):
            work.rmdir()  # if it is empty, it was not yet, or is no longer, in use
        return
    except OSError:
        return  # of another user
    if lock is None:
        return
    try:
        for old in (work / _OLD).glob("*"):
            if not (target := work.parent / old.name).exists():
                old.replace(target)
    except OSError:
        lock.release(remove=False)  # whoever writes here next tries again
        return
    _remove(work, lock)


def _make_staging_folder(path: pathlib.Path) -> tuple[pathlib.Path, LockFile]:
    while True:
        work = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}-{os.getpid()}-", suffix=".tmp", dir=path.parent))
        # Another process may take it for an abandoned one before it is locked, and remove it.
        with contextlib.suppress(FileNotFoundError):
            if (lock := LockFile.acquire(work / _LOCK)) is not None:
                return work, lock


def _remove(work: pathlib.Path, lock: LockFile) -> None:
    """Remove a staging folder, its lock last: what remains, as after a kill, can still be removed."""
    remaining = False
    with contextlib.suppress(OSError):
        for path in [path for path in work.iterdir() if path.name != _LOCK]:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.unlink()
        remaining = any(path.name != _LOCK for path in work.iterdir())
    lock.release(remove=not remaining)
    with contextlib.suppress(OSError):
        work.rmdir()


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write a value as JSON, completely or not at all. Raises `MarError` if it cannot be written."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def sha256(path: pathlib.Path) -> str:
    """Return the SHA-256 hash of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
