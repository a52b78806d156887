"""The images that wait, and which of them form the next batch, and when. It has no thread and reads no clock."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar


class Groupable(Protocol):
    """What can wait in a queue."""

    @property
    def key(self) -> Hashable:
        """What two images that are drawn together have in common."""

    @property
    def arrived(self) -> float:
        """When it came, in seconds."""


_Image = TypeVar("_Image", bound=Groupable)


@dataclasses.dataclass(frozen=True)
class _Expected:
    """The images that are worth a wait: clients that got an image often ask for the next one at once.

    Attributes:
        key: What they have in common.
        count: How many: those of the last batch, and those of its key that waited when it ended.
        since: When the wait begins, in seconds: at the end of that batch.
    """

    key: Hashable
    count: int
    since: float


class BatchQueue(Generic[_Image]):
    """Images in the order in which they came. The oldest one decides what the next batch has in common.

    A batch that is full can be taken at any time. Another one is taken once nothing is being drawn, and

    - at once, if it is as large as the clients of the last batch can make it;
    - otherwise after `max_wait`, so that these clients can return: from the end of the last batch, or from the time
      at which the oldest image came, if that is later.

    So one client never waits for others, no image waits for more than `max_wait` once nothing is drawn, and eight
    clients that repeat their requests are soon drawn together. A batch that has just begun may be given back, see
    `is_joined`: eight clients that begin at the same time are drawn together too, and one that returns a little late
    does not wait for a whole batch of the others.
    """

    def __init__(self, max_batch: int, max_wait: float) -> None:
        """Make an empty queue.

        Args:
            max_batch: The most images in a batch.
            max_wait: How long a batch that is not full waits for further images, in seconds.
        """
        self._max_batch, self._max_wait = max_batch, max_wait
        self._waiting: list[_Image] = []
        self._expected = _Expected(None, 0, -math.inf)

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[_Image]:
        return iter(self._waiting)

    def add(self, images: Iterable[_Image]) -> None:
        """Add images behind all others."""
        self._waiting.extend(images)

    def remove(self, chosen: Callable[[_Image], bool]) -> None:
        """Remove the images that `chosen` is true for."""
        self._waiting = [image for image in self._waiting if not chosen(image)]

    def take(self, now: float, drawing: bool) -> list[_Image]:
        """Remove and return the next batch, oldest image first; nothing if no batch is to be drawn now.

        Args:
            now: The time in seconds, on the clock of `arrived` and `ended`.
            drawing: Whether another batch is being drawn.
        """
        batch = self._next_batch()
        if not batch or (len(batch) < self._max_batch and (drawing or now < self._start(batch))):
            return []
        taken = set(map(id, batch))
        self._waiting = [image for image in self._waiting if id(image) not in taken]
        return batch

    def is_joined(self, batch: Sequence[_Image]) -> bool:
        """Return whether a batch should be given back: others came within twice `max_wait` of its oldest image.

        Twice, because the batch may have waited once before it began. The limit keeps images that come one by one from
        making a batch begin anew again and again.
        """
        key, latest = batch[0].key, batch[0].arrived + 2 * self._max_wait
        return len(batch) < self._max_batch and any(
            image.key == key and image.arrived < latest for image in self._waiting
        )

    def give_back(self, batch: Sequence[_Image]) -> None:
        """Put a batch that `take` returned before all others. It starts `max_wait` after its oldest image came."""
        self._waiting = [*batch, *self._waiting]
        self._expected = _Expected(batch[0].key, self._max_batch, batch[0].arrived)

    def seconds_to_wait(self, now: float) -> float | None:
        """Return after how many seconds `take` gives a batch if nothing comes and nothing is drawn; None for never."""
        batch = self._next_batch()
        return max(0.0, self._start(batch) - now) if batch else None

    def ended(self, key: Hashable, size: int, now: float) -> None:
        """Note that a batch of `size` images of one key was drawn."""
        waiting = sum(image.key == key for image in self._waiting)
        self._expected = _Expected(key, size + waiting, now)

    def _next_batch(self) -> list[_Image]:
        if not self._waiting:
            return []
        key = self._waiting[0].key
        return [image for image in self._waiting if image.key == key][: self._max_batch]

    def _start(self, batch: list[_Image]) -> float:
        """Return the time at which a batch starts if no further image comes."""
        expected, oldest = self._expected, batch[0]
        count = min(expected.count, self._max_batch) if oldest.key == expected.key else 0
        given_up = expected.since + self._max_wait  # who has not come by then is no longer expected
        if len(batch) >= count or oldest.arrived >= given_up:
            return -math.inf
        return max(expected.since, oldest.arrived) + self._max_wait
