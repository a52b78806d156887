"""The lock by which threads share a generator: it runs one request after another."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TypeVar

from runtime.errors import BackendError, RequestError

_Item = TypeVar("_Item")


class RequestLock:
    """Lets one request run at a time. Other threads wait until it is done."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._running, self._closed = False, False
        self._thread: int | None = None  # the one whose request runs

    @property
    def is_mine(self) -> bool:
        """Whether a request of this thread runs: it is in a progress callback."""
        return self._running and self._thread == threading.get_ident()

    @contextlib.contextmanager
    def hold(self, *, closing: bool = False) -> Iterator[None]:
        """Wait for the lock, and hold it during the block.

        Args:
            closing: Whether the block closes the generator. After it, only other blocks with `closing` may run.

        Raises:
            RequestError: This thread holds the lock already, so that it would wait for itself.
            BackendError: The generator was closed.
        """
        with self._lock:
            if self._running:
                raise RequestError(
                    "a progress callback used its own generator, whose request still runs; use it after the request"
                )
            if self._closed and not closing:
                raise BackendError("this generator was closed; load its artifact again")
            self._running, self._closed, self._thread = True, closing, threading.get_ident()
            try:
                yield
            finally:
                self._running = False


class LockedIterator(Iterator[_Item]):
    """An iterator that holds a `RequestLock` during each step, so that threads may share it."""

    def __init__(self, lock: RequestLock, items: Iterator[_Item]) -> None:
        """`items` makes the next item while the lock is held."""
        self._lock, self._items = lock, items

    def __next__(self) -> _Item:
        with self._lock.hold():
            return next(self._items)
