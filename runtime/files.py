"""Files and folders that are written completely or not at all, even if the process is killed or the disk is full."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

from runtime.errors import MarError


def sync(path: pathlib.Path) -> None:
    """Wait until the file or folder at `path` is written to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(path: pathlib.Path) -> None:
    """Raise `MarError` if `replacing(path)` cannot write there, so that long work does not start in vain."""
    _temporary_file(_link_target(path)).unlink()


def check_writable_folder(path: pathlib.Path) -> None:
    """Raise `MarError` if `replacing_folder(path)` cannot write there."""
    _temporary_folder(_link_target(path)).rmdir()


def _link_target(path: pathlib.Path) -> pathlib.Path:
    """Return the target of a symbolic link, so that the target is replaced and the link stays."""
    try:
        return pathlib.Path(os.path.realpath(path)) if path.is_symlink() else path
    except OSError:  # for example a name that is too long; writing to it reports the error
        return path


def _temporary_file(path: pathlib.Path) -> pathlib.Path:
    try:
        if path.is_dir():
            raise MarError(f"cannot write {path}: it is a folder")
        if path.exists() and not path.is_file():
            raise MarError(f"cannot write {path}: it is not a regular file; choose another name")
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise MarError(f"cannot write {path}: {error.strerror or error}") from error
    return pathlib.Path(name)


def _temporary_folder(path: pathlib.Path) -> pathlib.Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        raise MarError(f"cannot write {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Give a temporary file to write to, which replaces `path` if the block succeeds and is removed otherwise.

    The file is in the folder of `path` and has its suffix, because some writers choose their format by it.

    Raises:
        MarError: The folder cannot be written, the disk is full, or `path` exists and is not a regular file.
    """
    path = _link_target(path)
    temporary = _temporary_file(path)
    try:
        yield temporary
        temporary.chmod(0o644)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        raise MarError(f"cannot write {path}: {error.strerror or error}; nothing was changed there") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Give a temporary folder to write to, which replaces `path` if the block succeeds and is removed otherwise.

    An existing folder at `path` is removed only after the new one is complete and on the disk.

    Raises:
        MarError: The parent folder cannot be written, or the disk is full.
    """
    path = _link_target(path)
    temporary = _temporary_folder(path)
    try:
        yield temporary
        temporary.chmod(0o755)
        for file in sorted(temporary.rglob("*")):
            sync(file)
        if path.exists():
            old = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}-old-", dir=path.parent))
            path.replace(old / path.name)
            try:
                temporary.replace(path)
            except BaseException:
                (old / path.name).replace(path)
                old.rmdir()
                raise
            shutil.rmtree(old)
        else:
            temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        raise MarError(f"cannot write {path}: {error.strerror or error}; nothing was changed there") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write a value as JSON, completely or not at all. Raises `MarError` if it cannot be written."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def sha256(path: pathlib.Path) -> str:
    """Return the SHA-256 hash of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
