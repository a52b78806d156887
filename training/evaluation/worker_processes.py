"""Calls of a function in new processes, which end with the process that started them."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar, cast

from runtime.errors import BackendError

_Argument = TypeVar("_Argument")
_Result = TypeVar("_Result")


def run_in_processes(
    task: Callable[[_Argument], _Result],
    arguments: Sequence[_Argument],
    processes: int,
    on_result: Callable[[_Argument, _Result], None],
) -> None:
    """Call `task` once for each of `arguments`, in new processes.

    After the first failure, or a signal, all calls are stopped. The script that calls this function needs no
    `if __name__ == "__main__"`.

    Args:
        task: A function that can be pickled.
        arguments: The arguments of the calls.
        processes: The number of processes.
        on_result: Is called in this process with the argument and the result of each call when it is done.

    Raises:
        BackendError: A process ended without an exception, for example because the system killed it.
        Exception: Whatever `task` raises.
    """
    waiting = list(reversed(arguments))
    workers: dict[Connection, SpawnProcess] = {}
    busy: dict[Connection, _Argument] = {}
    try:
        for _ in range(min(processes, len(arguments))):
            connection = _start(task, workers)
            busy[connection] = waiting.pop()
            _send(connection, busy[connection])
        while busy:
            for connection in cast("list[Connection]", wait(list(busy))):
                argument, result = busy.pop(connection), _receive(connection)
                on_result(argument, result)
                if waiting:
                    busy[connection] = waiting.pop()
                    _send(connection, busy[connection])
    finally:
        for connection, process in workers.items():
            connection.close()
            process.kill()  # one that is idle, or whose work is no longer wanted
        for process in workers.values():
            process.join()


def _start(task: Callable[[Any], Any], workers: dict[Connection, SpawnProcess]) -> Connection:
    """Start a process, add it to `workers`, and return the connection to it."""
    context = multiprocessing.get_context("spawn")  # a fork would inherit PyTorch's threads
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(task, theirs), daemon=True)
    with theirs, _inherited_by_workers():
        process.start()
    workers[ours] = process
    return ours


@contextlib.contextmanager
def _inherited_by_workers() -> Iterator[None]:
    """Have processes that start in the block know nothing of the main module, and not hear the keyboard.

    A new process would run the main module again, from a script without a guard too. Ctrl-C and a hang-up reach all
    processes of a terminal; it is the first one that ends the others.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGHUP, signal.SIGTERM))
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(task: Callable[[Any], Any], connection: Connection) -> None:
    """Answer each argument with whether `task` succeeded, and its result or its exception, until nobody asks."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            argument = connection.recv()
            try:
                answer: tuple[bool, Any] = (True, task(argument))
            except Exception as error:
                error.__cause__ = RuntimeError(f"in a process that generates images:\n{traceback.format_exc()}")
                answer = (False, error)
            connection.send(answer)


def _send(connection: Connection, argument: Any) -> None:
    with contextlib.suppress(BrokenPipeError):  # of a process that was killed, which `_receive` reports
        connection.send(argument)


def _receive(connection: Connection) -> Any:
    try:
        succeeded, value = connection.recv()
    except (EOFError, OSError):
        raise BackendError("a process that generates images was killed; it may need more memory") from None
    if not succeeded:
        raise value
    return value
