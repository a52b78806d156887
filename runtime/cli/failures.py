"""What the command line says about an exception: a line and an exit code."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import click

from runtime.errors import MarError, RequestError

_NO_MEMORY = "not enough memory; process fewer images at once, with a smaller --batch-size"
_NO_DESCRIPTORS = "too few file descriptors; raise the limit with ulimit -n, or use fewer --workers or --processes"
_NO_PROCESS = "no further thread or process can be started; raise the limits of memory and processes, or use fewer"

# What libraries say in exceptions of their own when the system refuses them something.
_TEXTS = (
    (
        re.compile(r"bad_?alloc|out of memory|can(no|')t allocate|failed to allocate|failed to map segment", re.I),
        _NO_MEMORY,
    ),
    (re.compile(r"too many open files|errno 24|error 24", re.I), _NO_DESCRIPTORS),
    (re.compile(r"can't start new thread|resource temporarily unavailable", re.I), _NO_PROCESS),
)
_ERRNOS = {
    errno.ENOMEM: _NO_MEMORY,
    errno.EMFILE: _NO_DESCRIPTORS,
    errno.ENFILE: _NO_DESCRIPTORS,
    errno.EAGAIN: _NO_PROCESS,
}
_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EACCES: "give this user the permission",
    errno.EPERM: "give this user the permission",
}


def explain(error: BaseException) -> tuple[str, int] | None:
    """Return the line and the exit code for an exception; None for a bug, whose traceback is to be seen.

    The line is empty if the reader of the output has ended.
    """
    if isinstance(error, BrokenPipeError):
        return "", 1
    if (limit := _limit(error)) is not None:
        return limit, 1
    return next((describe(error) for kind, describe in _KINDS if isinstance(error, kind)), None)


def _limit(error: BaseException) -> str | None:
    """Return what to say if a limit of the system is behind an exception, whatever it was taken for since."""
    for cause in _chain(error):
        if isinstance(cause, MarError):
            if "memory" in str(cause):
                return None  # says it better
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


def _wrong_use(error: click.UsageError) -> tuple[str, int]:
    command = error.ctx.command_path if error.ctx else "mar"
    return f"{error.format_message().rstrip('.')} (see {command} --help)", RequestError.exit_code


def _missing_package(error: ModuleNotFoundError) -> tuple[str, int]:
    return f"this command needs the Python package {error.name}; pip install 'mar-runtime[train,export]'", 1


def _refused(error: OSError) -> tuple[str, int]:
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
    remedy = f"; {_REMEDIES[error.errno]}" if error.errno in _REMEDIES else ""
    return f"{where}{error.strerror or error}{remedy}", 1


# The first that fits counts.
_KINDS: tuple[tuple[type[BaseException], Callable[[Any], tuple[str, int]]], ...] = (
    (click.Abort, lambda error: ("interrupted", 130)),
    (KeyboardInterrupt, lambda error: ("interrupted", 130)),
    (MarError, lambda error: (str(error), error.exit_code)),
    (click.UsageError, _wrong_use),
    (click.ClickException, lambda error: (error.format_message(), error.exit_code)),
    (ModuleNotFoundError, _missing_package),
    (ImportError, lambda error: (f"a package does not load: {error}; install it again", 1)),
    (OSError, _refused),
)
