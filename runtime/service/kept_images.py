"""Finished images that a client fetches by a URL, kept in memory for a limited time."""

from __future__ import annotations

import dataclasses
import secrets
import threading
from collections import OrderedDict


@dataclasses.dataclass(frozen=True)
class KeptImage:
    """An image file.

    Attributes:
        content: Its bytes.
        media_type: Its type, such as `image/png`.
        expires: When it is dropped, in seconds on the clock of the caller.
    """

    content: bytes
    media_type: str
    expires: float


class KeptImages:
    """Image files by names that cannot be guessed."""

    def __init__(self, seconds: float, most_bytes: int) -> None:
        """Make an empty store.

        Args:
            seconds: How long a file is kept.
            most_bytes: The most bytes of all files together; the oldest make room.
        """
        self._seconds, self._most_bytes = seconds, most_bytes
        self._lock = threading.Lock()
        self._files: OrderedDict[str, KeptImage] = OrderedDict()  # oldest first
        self._bytes = 0

    def add(self, content: bytes, media_type: str, suffix: str, now: float) -> str:
        """Keep a file, and return its name, which ends in `suffix`."""
        name = f"{secrets.token_urlsafe(24)}{suffix}"
        with self._lock:
            self._files[name] = KeptImage(content, media_type, now + self._seconds)
            self._bytes += len(content)
            self._drop_old(now)
        return name

    def get(self, name: str, now: float) -> KeptImage | None:
        """Return a file; None if it was never there, or is no longer."""
        with self._lock:
            self._drop_old(now)
            return self._files.get(name)

    def _drop_old(self, now: float) -> None:
        while self._files:
            oldest = next(iter(self._files.values()))
            if oldest.expires > now and self._bytes <= self._most_bytes:
                return
            self._files.popitem(last=False)
            self._bytes -= len(oldest.content)
