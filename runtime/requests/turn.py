"""The rule by which threads share a generator: one request after another."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TypeVar

from runtime.errors import BackendError, RequestError

_Item = TypeVar("_Item")


class Turn:
    """Lets one request in at a time. Other threads wait until it is done."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._taken, self._closed = False, False

    @contextlib.contextmanager
    def take(self, *, closing: bool = False) -> Iterator[None]:
        """Wait for the turn, and hold it.

        Args:
            closing: Whether this turn is the last one. It may be taken several times.

        Raises:
            RequestError: This thread holds the turn already, so that it would wait for itself.
            BackendError: The last turn is over.
        """
        with self._lock:
            if self._taken:
                raise RequestError(
                    "a progress callback used its own generator, whose request still runs; use it after the request"
                )
            if self._closed and not closing:
                raise BackendError("this generator was closed; load its artifact again")
            self._taken, self._closed = True, closing
            try:
                yield
            finally:
                self._taken = False


class InTurn(Iterator[_Item]):
    """An iterator whose every step takes its turn, so that threads may share it."""

    def __init__(self, turn: Turn, items: Iterator[_Item]) -> None:
        """`items` makes the next item while the turn is held."""
        self._turn, self._items = turn, items

    def __next__(self) -> _Item:
        with self._turn.take():
            return next(self._items)
