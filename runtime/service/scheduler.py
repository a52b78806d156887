"""The scheduler of one generator: threads draw what waits in the queue, batch by batch.

It knows nothing of HTTP: a request is a `Drawing`, its answer a future, and cancelling the future cancels the request.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Protocol, TypeVar

from runtime.errors import RequestError
from runtime.generator import Generator
from runtime.image_records.subject import subject_arguments
from runtime.result import Result
from runtime.service.batch_queue import BatchQueue
from runtime.service.drawing import (
    DeadlineError,
    Drawing,
    Drawn,
    QueueFullError,
    SchedulerClosedError,
    Shown,
    Timing,
)
from runtime.service.settings import ServiceSettings

_THREADS = 2  # one draws; the other prepares a full batch meanwhile, and waits for the lock of the generator
_FIRST_GUESS = 1.0  # seconds of a batch, before one was drawn
_Value = TypeVar("_Value")


class SchedulerEvents(Protocol):
    """What a scheduler reports, for metrics. Its threads call the methods, which must return at once."""

    def queue_changed(self, depth: int) -> None:
        """Take note that `depth` images wait now."""

    def batch_ended(self, waited: Sequence[float], seconds: float, error: Exception | None) -> None:
        """Take note that a batch was drawn, or failed with `error`.

        Args:
            waited: The seconds that each of its images had waited before.
            seconds: The seconds that it took.
            error: What the generator raised; None for a batch that was drawn, or that nobody waited for.
        """


class Scheduler:
    """Draws the images of requests in batches, oldest first. Several threads may use it."""

    def __init__(self, generator: Generator, settings: ServiceSettings, events: SchedulerEvents | None = None) -> None:
        """Start the threads of a scheduler.

        Args:
            generator: Draws the images.
            settings: How large a batch may be, how long it waits (see `BatchQueue`), and how many images may wait.
            events: Gets reports for metrics.
        """
        self._generator, self._events = generator, events
        self._max_batch, self._max_queue = settings.max_batch, settings.max_queue
        self._changed = threading.Condition()  # guards all that follows
        self._queue: BatchQueue[_WaitingImage] = BatchQueue(settings.max_batch, settings.max_wait)
        self._drawing = 0  # batches
        self._last_end = -math.inf
        self._batch_seconds = _FIRST_GUESS
        self._closing = False
        self._threads = [threading.Thread(target=self._work, name=f"draw-{n}", daemon=True) for n in range(_THREADS)]
        for thread in self._threads:
            thread.start()

    def submit(self, drawing: Drawing) -> Future[Drawn]:
        """Put a request into the queue.

        Returns:
            Its future. Cancelling it takes the images out of the queue; a batch that is being drawn ends after its
            iteration if nobody waits for any of its images. The exception of the future is `DeadlineError`,
            `SchedulerClosedError`, or what the generator raised.

        Raises:
            RequestError: It has more images than may ever wait.
            QueueFullError: Too many images wait.
            SchedulerClosedError: The scheduler was closed.
        """
        (future,) = self.submit_all([drawing])
        return future

    def submit_all(self, drawings: Sequence[Drawing]) -> list[Future[Drawn]]:
        """Put several requests into the queue, or none of them; see `submit`."""
        requests = [_Request(drawing) for drawing in drawings]
        images = [
            _WaitingImage(request, place) for request in requests for place in range(len(request.drawing.subjects))
        ]
        if len(images) > self._max_queue:  # which a later attempt would not change
            raise RequestError(
                f"a request may have at most {self._max_queue} images, as many as may wait; found {len(images)}"
            )
        with self._changed:
            if self._closing:
                raise SchedulerClosedError("the service is stopping; try again later")
            if len(self._queue) + len(images) > self._max_queue:
                raise QueueFullError(
                    f"{len(self._queue)} images wait, of at most {self._max_queue}, and this request has "
                    f"{len(images)}; try again later",
                    self._seconds_until_room(),
                )
            self._queue.add(images)
            self._queue_changed()
        for request in requests:
            request.future.add_done_callback(functools.partial(self._forget_cancelled, request))
        return [request.future for request in requests]

    def close(self) -> None:
        """Fail all requests that are not done, wait for the end of the iteration that runs, and end the threads."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _seconds_until_room(self) -> int:
        batches = len(self._queue) / self._max_batch + self._drawing
        return max(1, math.ceil(batches * self._batch_seconds))

    def _queue_changed(self) -> None:
        self._changed.notify_all()
        if self._events is not None:
            self._events.queue_changed(len(self._queue))

    def _forget_cancelled(self, request: _Request, future: Future[Drawn]) -> None:
        if future.cancelled():
            with self._changed:
                self._drop(lambda image: image.request is request)

    def _drop(self, chosen: Callable[[_WaitingImage], bool]) -> None:
        """Remove images from the queue. The caller holds the lock."""
        before = len(self._queue)
        self._queue.remove(chosen)
        if len(self._queue) < before:
            self._queue_changed()

    def _work(self) -> None:
        """Draw batches until the scheduler is closed. It runs in each thread."""
        while batch := self._next_batch():
            self._draw(batch)

    def _next_batch(self) -> list[_WaitingImage]:
        """Wait for a batch and return it; nothing if the scheduler is closed."""
        with self._changed:
            while not self._closing:
                now = time.monotonic()
                self._drop(functools.partial(_WaitingImage.is_over, now=now))
                if batch := self._queue.take(now, drawing=self._drawing > 0):
                    self._drawing += 1
                    self._queue_changed()
                    return batch
                self._changed.wait(self._seconds_to_wait(now))
            for image in self._queue:
                image.request.fail(SchedulerClosedError("the service stopped before the image was drawn"))
            self._drop(lambda image: True)
            return []

    def _seconds_to_wait(self, now: float) -> float | None:
        """Return after how many seconds something is to be done even if nothing happens; None for never."""
        times = [image.request.drawing.deadline - now for image in self._queue if image.request.drawing.deadline]
        start = None if self._drawing else self._queue.seconds_to_wait(now)
        return min([*times, *([] if start is None else [start])], default=None)

    def _draw(self, batch: Sequence[_WaitingImage]) -> None:
        """Draw a batch, and give its images or its failure to its requests."""
        taken, failure = time.monotonic(), None
        try:
            result = self._generate(batch)
        except _JoinedError:
            self._give_back(batch)
            return
        except _AbandonedError:
            result = None
        except Exception as error:  # whatever a library raises, these requests fail and the service goes on
            result, failure = None, error
        began, ended = self._ended(batch, taken, failure)
        for place, image in enumerate(batch):
            if result is None:
                image.request.fail(failure or SchedulerClosedError("the service stopped while the image was drawn"))
                continue
            timing = Timing(began - image.request.arrived, ended - began, len(batch))
            try:
                image.request.finish(_finished(image, result, place, timing))
            except Exception as error:  # for example of a copy without memory: this thread must not end
                image.request.fail(error)

    def _give_back(self, batch: Sequence[_WaitingImage]) -> None:
        """Put a batch back into the queue, where others wait that are drawn with it."""
        with self._changed:
            self._drawing -= 1
            self._queue.give_back(batch)
            self._queue_changed()

    def _generate(self, batch: Sequence[_WaitingImage]) -> Result:
        drawing = batch[0].request.drawing
        return self._generator.generate(
            seed=[image.of(image.request.drawing.seeds) for image in batch],
            index=[image.of(image.request.drawing.indices) for image in batch],
            edit=drawing.edit,
            progress=functools.partial(self._after_iteration, batch),
            sampling=drawing.sampling,
            **subject_arguments([image.of(image.request.drawing.subjects) for image in batch]),
        )

    def _after_iteration(self, batch: Sequence[_WaitingImage], done: int, total: int) -> None:
        """End a batch that nobody waits for or that others join; show unfinished images to who wants to see them."""
        now = time.monotonic()
        waited_for = [image for image in batch if not image.is_over(now)]
        if self._closing or not waited_for:
            raise _AbandonedError
        if done == 1:
            with self._changed:
                self._drop(functools.partial(_WaitingImage.is_over, now=now))
                if self._queue.is_joined(batch):
                    raise _JoinedError
        shown = [image for image in waited_for if image.request.drawing.shows_after(done, total)]
        if shown:
            images = self._generator.partial_images([batch.index(image) for image in shown])
            for image, pixels in zip(shown, images, strict=True):
                image.request.show(Shown(image.place, done, total, pixels))

    def _ended(self, batch: Sequence[_WaitingImage], taken: float, failure: Exception | None) -> tuple[float, float]:
        """Note the end of a batch that a thread took from the queue at `taken`; return when it began and ended."""
        with self._changed:
            began, ended = max(taken, self._last_end), time.monotonic()
            self._drawing, self._last_end = self._drawing - 1, ended
            self._batch_seconds += (ended - began - self._batch_seconds) / 4
            self._queue.ended(batch[0].key, len(batch), ended)
            self._changed.notify_all()
        if self._events is not None:
            self._events.batch_ended([began - image.request.arrived for image in batch], ended - began, failure)
        return began, ended


def _finished(image: _WaitingImage, result: Result, place: int, timing: Timing) -> Shown:
    """Return the finished image at one place of a batch."""
    assert result.images is not None  # an artifact without a decoder is not served
    iterations = len(result.plan.iterations)
    record = dataclasses.replace(result.records[place], preset=image.request.drawing.preset)
    return Shown(image.place, iterations, iterations, result.images[place].copy(), record, timing)


def _in_all(timings: Sequence[Timing]) -> Timing:
    """Return the timing of a request from those of its images."""
    began = min(timing.queue_seconds for timing in timings)
    ended = max(timing.queue_seconds + timing.draw_seconds for timing in timings)
    return Timing(began, ended - began, max(timing.batch_size for timing in timings))


class _AbandonedError(Exception):
    """Ends a batch that nobody waits for any more."""


class _JoinedError(Exception):
    """Ends a batch that begins anew with images that came since."""


class _Request:
    """A request, and what is known of its images."""

    def __init__(self, drawing: Drawing) -> None:
        self.drawing, self.arrived = drawing, time.monotonic()
        self.future: Future[Drawn] = Future()
        self._images: dict[int, Shown] = {}

    def is_over(self, now: float) -> bool:
        """Return whether nobody waits for it, after failing it if its deadline is over."""
        deadline = self.drawing.deadline
        if deadline is not None and now >= deadline:
            self.fail(DeadlineError())
        return self.future.done()

    def fail(self, error: Exception) -> None:
        with contextlib.suppress(InvalidStateError):  # it is over already
            self.future.set_exception(error)

    def show(self, shown: Shown) -> None:
        if self.drawing.show is not None and not self.future.done():
            try:
                self.drawing.show(shown)
            except Exception as error:  # a fault of one request must not end the batch
                self.fail(error)

    def finish(self, shown: Shown) -> None:
        """Take a finished image, and set the result of the future if it was the last."""
        self.show(shown)
        self._images[shown.place] = shown
        if len(self._images) == len(self.drawing.subjects):
            images = [self._images[place] for place in range(len(self._images))]
            with contextlib.suppress(InvalidStateError):
                self.future.set_result(Drawn(images, _in_all([shown.timing for shown in images if shown.timing])))


class _WaitingImage:
    """One image of a request."""

    def __init__(self, request: _Request, place: int) -> None:
        self.request, self.place = request, place

    @property
    def key(self) -> Hashable:
        return self.request.drawing.key

    @property
    def arrived(self) -> float:
        return self.request.arrived

    def is_over(self, now: float) -> bool:
        """Return whether nobody waits for it."""
        return self.request.is_over(now)

    def of(self, values: Sequence[_Value]) -> _Value:
        """Return the value of this image, of a list with one for each image of its request."""
        return values[self.place]
