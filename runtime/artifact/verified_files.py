"""Files of an artifact that are opened once, so that the content that was compared is the content that is loaded.

A path can name another file a moment later. A descriptor cannot: it keeps the file that was opened, even if the path is
given to another file. The state of a file (its inode, size and times) shows whether somebody wrote into it meanwhile.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import mmap
import os
import pathlib
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import TypeAlias

from runtime.errors import IntegrityError

_DESCRIPTORS = pathlib.Path("/proc/self/fd")
_BLOCK = 1 << 22  # bytes; at each block a thread may wait for the interpreter

_State: TypeAlias = "tuple[int, int, int, int, int]"


class OpenFile:
    """A file that is open for reading until this object is freed.

    Attributes:
        path: The path that it was opened by.
    """

    def __init__(self, path: pathlib.Path) -> None:
        """Open the file at `path`.

        Raises:
            OSError: It cannot be opened.
        """
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)
        self._state = _state(os.fstat(self._descriptor))
        self._hashing = threading.Lock()
        self._sha256: str | None = None

    @property
    def sha256(self) -> str:
        """The hash of its content, 64 hexadecimal digits. The file is read once; other threads wait for that.

        Raises:
            OSError: It cannot be read.
        """
        with self._hashing:
            if self._sha256 is None:
                self._sha256 = self._read_hash()
            return self._sha256

    def _read_hash(self) -> str:
        digest, offset = hashlib.sha256(), 0
        buffer = memoryview(bytearray(min(_BLOCK, self._state[2] + 1)))  # a new one for each block would cost a fifth
        while length := os.preadv(self._descriptor, [buffer], offset):
            digest.update(buffer[:length])
            offset += length
        return digest.hexdigest()

    @property
    def source(self) -> str:
        """A path that names the open file itself, or on a system that has none, the path that it was opened by."""
        descriptor = _DESCRIPTORS / str(self._descriptor)
        return str(descriptor if descriptor.exists() else self.path)

    def map(self) -> mmap.mmap | bytes:
        """Return the content, mapped into memory: only the parts that are used are read."""
        size = os.fstat(self._descriptor).st_size
        return mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ) if size else b""

    def check_unchanged(self) -> None:
        """Check that the file and its path are as they were when the file was opened.

        Raises:
            IntegrityError: Somebody wrote into the file, or gave its path to another one.
        """
        state = None
        with contextlib.suppress(OSError):
            state = _state(self.path.stat())
        if state != self._state:
            raise IntegrityError(f"{self.path}: changed while it was loaded; load the artifact again")


@dataclasses.dataclass(frozen=True)
class GraphFile:
    """An ONNX file to load.

    Attributes:
        path: Its path, for messages, and for a library that can find external weights only beside it.
        source: A path to load the graph from.
        weights: The files of its external weights by name, if they are open. Otherwise they lie beside `path`.
    """

    path: pathlib.Path
    source: str
    weights: Mapping[str, OpenFile] = dataclasses.field(default_factory=dict)

    @contextlib.contextmanager
    def linked(self) -> Iterator[str | None]:
        """Give a path of the graph that has its weights beside it: links in a temporary folder to the open files.

        A library then opens the files that were compared, and maps each weight only as long as it needs it.

        Yields:
            The path; None if there are no weights or no temporary folders, or if the files lie in different folders,
            which ONNX Runtime refuses.
        """
        links = {self.path.name: self.source} | {name: file.source for name, file in self.weights.items()}
        with contextlib.ExitStack() as stack:
            linked = None
            folders = {pathlib.Path(source).resolve().parent for source in links.values()}
            if self.weights and len(folders) == 1:
                with contextlib.suppress(OSError):
                    folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mar-")))
                    for name, source in links.items():
                        (folder / name).symlink_to(source)
                    linked = str(folder / self.path.name)
            yield linked


def _state(status: os.stat_result) -> _State:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
