"""SIGINT, SIGTERM and SIGHUP end the process within two seconds, and leave no file that is not complete."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, NoReturn

_MESSAGES = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "the terminal hung up"}
_SECONDS_TO_LEAVE = 1.5


class Signals:
    """A context manager that turns the first of the signals into the end of the process.

    Where nothing is being written, the process ends at once: a library can swallow an exception while it is imported.
    Otherwise the main thread gets a KeyboardInterrupt, so that its blocks remove what is not complete. If it is in a
    long call of a library, a second thread does so instead. A signal that is ignored on entry stays ignored.

    Attributes:
        received: The signal that came; None for none.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._left = threading.Event()
        self._handlers: dict[signal.Signals, Any] = {}
        self._woken = -1

    def __enter__(self) -> Signals:
        self._handlers = {number: signal.getsignal(number) for number in _MESSAGES}
        for number, handler in self._handlers.items():
            if handler not in (signal.SIG_IGN, None):
                signal.signal(number, self._stop)
        with contextlib.suppress(OSError, RuntimeError):  # without the thread, a signal waits for the main thread
            reader, self._woken = os.pipe()
            os.set_blocking(self._woken, False)
            signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(reader,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._left.set()
        signal.set_wakeup_fd(-1)
        if self._woken >= 0:
            os.close(self._woken)
        for number, handler in self._handlers.items():
            if handler is not None:
                signal.signal(number, handler)

    @property
    def message(self) -> str:
        """What the signal that came did to the process."""
        return "" if self.received is None else _MESSAGES[self.received]

    @property
    def exit_code(self) -> int:
        """The exit code of a process that the signal has ended, as a shell reports it."""
        return 0 if self.received is None else 128 + self.received

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            return  # the first is being obeyed
        self.received = signal.Signals(number)
        if not _files("is_writing"):
            self._leave()
        raise KeyboardInterrupt

    def _watch(self, reader: int) -> None:
        """End the process if the main thread does not."""
        received = os.read(reader, 1)
        while received and received[0] not in set(_MESSAGES):
            received = os.read(reader, 1)
        os.close(reader)
        if received and not self._left.wait(_SECONDS_TO_LEAVE):
            self.received = signal.Signals(received[0])
            _files("abandon")
            self._leave()

    def _leave(self) -> NoReturn:
        with contextlib.suppress(OSError, ValueError):
            os.write(sys.stderr.fileno() if sys.stderr else 2, f"mar: {self.message}\n".encode())
        os._exit(self.exit_code)


def _files(function: str) -> Any:
    """Call a function of `runtime.storage.files` if it is imported; otherwise nothing can have been written."""
    called = getattr(sys.modules.get("runtime.storage.files"), function, None)
    return None if called is None else called()
