"""Files that one process holds. The lock (flock) ends with the process, however it ends."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import pathlib
import platform

_held: dict[int, LockFile] = {}  # the locks of this process, by their descriptors
_MAX_HOLDER_BYTES = 200


class LockFile:
    """A file that this process holds until `release`, which removes it.

    Args:
        path: The file.
        descriptor: The open file, which is locked.

    Attributes:
        path: The file.
    """

    def __init__(self, path: pathlib.Path, descriptor: int) -> None:
        self.path, self._descriptor = path, descriptor
        _held[descriptor] = self

    @classmethod
    def acquire(cls, path: pathlib.Path, create: bool = True) -> LockFile | None:
        """Lock the file at `path`.

        Args:
            path: The file.
            create: Whether a missing file is made.

        Returns:
            The lock; None if another process, or another part of this one, holds it. On a file system without locks
            nobody can tell: the file counts as free with `create`, otherwise as held.

        Raises:
            OSError: The file cannot be opened.
        """
        while True:
            descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(path, descriptor):
                    return cls(path, descriptor)
            except BlockingIOError:
                os.close(descriptor)
                return None
            except OSError:
                if create:
                    return cls(path, descriptor)
                os.close(descriptor)
                return None
            os.close(descriptor)  # the process that held it has removed it meanwhile

    def sign(self) -> None:
        """Write into the file who holds it, for `holder`."""
        now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"process {os.getpid()} on {platform.node()} since {now}\n".encode(), 0)

    def release(self, remove: bool = True) -> None:
        """Remove the file and give the lock back. In a fork of the process that took it, nothing happens.

        Args:
            remove: Whether the file is removed. One that stays can be locked again.
        """
        if _held.get(self._descriptor) is self:
            if remove:
                with contextlib.suppress(OSError):
                    self.path.unlink()
            del _held[self._descriptor]
            os.close(self._descriptor)


def held_files() -> list[pathlib.Path]:
    """Return the lock files that this process holds."""
    return [lock.path for lock in list(_held.values())]


def holder(path: pathlib.Path) -> str:
    """Return the process that the lock file at `path` names, or "another process" if it names none."""
    with contextlib.suppress(OSError, ValueError), path.open("rb") as file:
        text = file.read(_MAX_HOLDER_BYTES).decode().strip()
        if text.isprintable() and text:
            return text
    return "another process"


def _is_at(path: pathlib.Path, descriptor: int) -> bool:
    """Return whether the open file is the one that has the name `path` now."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _close_in_child() -> None:
    """Close the descriptors in a forked child, which would hold the locks of its parent after the parent's end."""
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)
