"""Writing files so that a kill or a full disk never leaves a half-written one under its final name."""

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
    """Wait until the file or folder at `path` is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(path: pathlib.Path) -> None:
    """Raise `MarError` now where `replacing(path)` would later, so that no work is done in vain."""
    _temporary_beside(_followed(path)).unlink()


def check_writable_folder(path: pathlib.Path) -> None:
    """The same for `replacing_folder(path)`."""
    _folder_beside(_followed(path)).rmdir()


def _followed(path: pathlib.Path) -> pathlib.Path:
    """Where a link leads: it stays, as everybody else who writes to one expects."""
    try:
        return pathlib.Path(os.path.realpath(path)) if path.is_symlink() else path
    except OSError:  # of a name that is too long, say: told when it is written to
        return path


def _temporary_beside(path: pathlib.Path) -> pathlib.Path:
    try:
        if path.is_dir():
            raise MarError(f"cannot write {path}: it is a folder")
        if path.exists() and not path.is_file():
            raise MarError(f"cannot write {path}: it is no ordinary file, and would be replaced by one")
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise MarError(f"cannot write {path}: {error.strerror or error}") from error
    return pathlib.Path(name)


def _folder_beside(path: pathlib.Path) -> pathlib.Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        raise MarError(f"cannot write {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary name to write to, in the folder of `path`; renamed to `path` if the block succeeds.

    The temporary name keeps the suffix, since some writers go by it. Raises `MarError` when the folder
    cannot be written, the disk is full, or what is there is no ordinary file.
    """
    path = _followed(path)
    temporary = _temporary_beside(path)
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
    """A temporary folder beside `path`, renamed to `path` if the block succeeds, removed otherwise.

    An existing folder at `path` is replaced, and only once the new one is whole and on the disk.
    """
    path = _followed(path)
    temporary = _folder_beside(path)
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
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def sha256(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
