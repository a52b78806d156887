"""Limits of the system, behind exceptions of any kind. It imports little, because a limit can keep modules out."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

from runtime.errors import MarError

_NO_MEMORY = "not enough memory; process fewer images at once, with a smaller --batch-size"
_NO_DESCRIPTORS = "too few file descriptors; raise the limit with ulimit -n, or use fewer --workers or --processes"
_NO_PROCESS = "no further thread or process can be started; raise the limits of memory and processes, or use fewer"

# What libraries say in exceptions of their own when the system refuses them something.
_TEXTS = (
    (
        re.compile(
            r"bad_?alloc|out of memory|can(no|')t allocate|failed to allocate|failed to map segment"
            r"|could not create a primitive",  # oneDNN, which PyTorch multiplies matrices with
            re.I,
        ),
        _NO_MEMORY,
    ),
    (re.compile(r"too many open files|errno 24|error (number )?24", re.I), _NO_DESCRIPTORS),
    (re.compile(r"can't start new thread|resource temporarily unavailable", re.I), _NO_PROCESS),
)
_ERRNOS = {
    errno.ENOMEM: _NO_MEMORY,
    errno.EMFILE: _NO_DESCRIPTORS,
    errno.ENFILE: _NO_DESCRIPTORS,
    errno.EAGAIN: _NO_PROCESS,
}


def describe_limit(error: BaseException) -> str | None:
    """Return what to say if a limit of the system is behind an exception, whatever it was taken for since."""
    for cause in _chain(error):
        if isinstance(cause, MarError):
            if "enough memory" in str(cause):
                return None  # the message of this error is more precise, it does not just quote a library
            continue
        if isinstance(cause, MemoryError):
            return _NO_MEMORY
        if isinstance(cause, OSError) and cause.errno in _ERRNOS:
            return _ERRNOS[cause.errno]
        for pattern, line in _TEXTS:
            if pattern.search(str(cause)):
                return line
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
