"""The entry point of the command `mar`: signals, exit codes, and errors as one line.

Everything else is imported by `main`, so that a signal or a limit during the imports is one line too.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import NoReturn

from runtime.cli.limits import describe_limit
from runtime.cli.signals import Signals


def main() -> None:
    """Run the command line `mar`, and end the process with its exit code.

    The exit code is 0 for success, 1 for a failure, 2 for wrong use; 129, 130 and 143 after SIGHUP, Ctrl-C and SIGTERM.
    An error is one line on standard error. A reader of the output that ends first, such as `head`, is no error to tell.
    """
    _open_standard_descriptors()
    variables: dict[str, str] = {}
    with Signals() as signals:
        try:
            code = _run(variables)
        except BaseException as error:  # a library can turn the end by a signal into an exception of its own
            _end(error, signals, variables)
    sys.exit(code)


def _open_standard_descriptors() -> None:
    """Open /dev/null where standard input, output or error is closed.

    The next file that is opened would take its number, and get what a library prints.
    """
    with contextlib.suppress(OSError):  # a limit, about which the next file says a line
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            os.set_inheritable(descriptor, True)  # for child processes, as the others are
        os.close(descriptor)


def _run(variables: dict[str, str]) -> int:
    """Run the command line, and return its exit code. `variables` receives the environment that options are from."""
    from runtime.backends import available_threads
    from runtime.backends.control_groups import cpu_quota
    from runtime.cli.group import mar

    if cpu_quota() is not None:  # OpenMP, whose threads PyTorch uses, knows no quota
        os.environ.setdefault("OMP_NUM_THREADS", str(available_threads()))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # letters that the locale's encoding lacks
    code: int | None = mar(prog_name="mar", standalone_mode=False, obj=variables)
    if sys.stdout is not None:
        sys.stdout.flush()
    return code or 0


def _end(error: BaseException, signals: Signals, variables: dict[str, str]) -> NoReturn:
    """End the process with the line and the exit code of an exception; raise one that is a bug."""
    if _shows_tracebacks() and not isinstance(error, SystemExit):
        import traceback

        traceback.print_exc()
    if signals.received is not None:
        message, code = signals.message, signals.exit_code
    elif isinstance(error, SystemExit):
        message, code = "", error.code if isinstance(error.code, int) else 1
    elif (limit := describe_limit(error)) is not None:
        message, code = limit, 1
    else:
        from runtime.cli.failures import explain

        explained = explain(error, variables)
        if explained is None:
            raise error
        message, code = explained
    if message and sys.stderr is not None:  # without a file, print would take standard output
        with contextlib.suppress(OSError):
            print(f"mar: {' '.join(message.split())}", file=sys.stderr, flush=True)
    _drop_unwritten_output()
    sys.exit(code)


def _shows_tracebacks() -> bool:
    """Return whether the log level is debug, which it cannot be before the options of `mar` are read."""
    log = sys.modules.get("runtime.log")
    return log is not None and bool(log.LOG.isEnabledFor(log.LEVELS["debug"]))


def _drop_unwritten_output() -> None:
    """Drop what standard output does not take, about which Python would complain at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, stream.fileno())
            os.close(nothing)


if __name__ == "__main__":
    main()
