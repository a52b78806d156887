"""Requests in batches: what is drawn together, what is cancelled, and what fails without harm to others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import pytest

from runtime.errors import BackendError, RequestError
from runtime.sampling.settings import Sampling
from runtime.service import scheduler
from runtime.service.drawing import DeadlineError, Drawing, QueueFullError, SchedulerClosedError, Shown
from runtime.service.scheduler import Scheduler
from runtime.service.settings import ServiceSettings
from tests.helpers.fake_generators import SAMPLING, WAIT, FakeEngines, Gate, fake_generator

OTHER = SAMPLING.changed({"iterations": 2})


def drawing(label: int = 0, seed: int = 0, count: int = 1, sampling: Sampling = SAMPLING, **more: Any) -> Drawing:
    return Drawing([label] * count, [seed] * count, range(count), sampling, **more)


class Events:
    def __init__(self) -> None:
        self.depths: list[int] = []
        self.batches: list[tuple[int, Exception | None]] = []

    def queue_changed(self, depth: int) -> None:
        self.depths.append(depth)

    def batch_ended(self, waited: Any, seconds: float, error: Exception | None) -> None:
        assert all(each >= 0 for each in waited)
        assert seconds >= 0
        self.batches.append((len(waited), error))


class Drawn:
    """A scheduler whose engine waits at a gate."""

    def __init__(self, **limits: Any) -> None:
        self.gate, self.events = Gate(), Events()
        self.engines = FakeEngines(self.gate)
        self.generator = fake_generator(self.engines)
        self.scheduler = Scheduler(
            self.generator, ServiceSettings(**({"max_batch": 4, "max_wait": 0} | limits)), self.events
        )

    def close(self) -> None:
        self.gate.open()
        self.scheduler.close()
        self.generator.close()


@pytest.fixture
def made() -> Iterator[Callable[..., Drawn]]:
    all_made: list[Drawn] = []

    def make(**limits: Any) -> Drawn:
        all_made.append(Drawn(**limits))
        return all_made[-1]

    yield make
    for each in all_made:
        each.close()


@pytest.fixture
def busy(made: Callable[..., Drawn]) -> Drawn:
    """A scheduler that draws one image, which waits in its first pass."""
    busy = made()
    busy.scheduler.submit(drawing(seed=99))
    busy.gate.wait_until_reached()
    return busy


def alone(request: Drawing) -> list[Any]:
    with fake_generator() as generator:
        images = generator.generate(
            request.subjects, seed=request.seeds, index=request.indices, sampling=request.sampling, edit=request.edit
        ).images
    assert images is not None
    return list(images)


def test_images_are_those_drawn_alone_whatever_they_are_drawn_with(made: Callable[..., Drawn]) -> None:
    scheduled = made(max_queue=1000)
    scheduled.gate.open()
    rng = np.random.default_rng(0)
    requests = [
        drawing(int(rng.integers(3)), int(rng.integers(5)), int(rng.integers(1, 7)), rng.choice([SAMPLING, OTHER]))
        for _ in range(60)
    ]
    with ThreadPoolExecutor(8) as threads:
        futures = list(threads.map(scheduled.scheduler.submit, requests))
    for request, future in zip(requests, futures, strict=True):
        drawn = future.result(WAIT)
        assert [shown.place for shown in drawn.images] == list(range(len(request.subjects)))
        for shown, expected in zip(drawn.images, alone(request), strict=True):
            assert np.array_equal(shown.pixels, expected)
            assert shown.record is not None
            assert (shown.record.seed, shown.record.index) == (request.seeds[0], request.indices[shown.place])
    assert max(scheduled.engines.batches) == 4
    assert sum(scheduled.engines.batches) == sum(len(request.subjects) for request in requests)


def test_what_waits_is_drawn_together_by_settings_and_large_requests_are_split(busy: Drawn) -> None:
    futures = busy.scheduler.submit_all(
        [drawing(seed=1, count=3), drawing(seed=2, sampling=OTHER), drawing(seed=3, count=3)]
    )
    busy.gate.open()
    sizes = [future.result(WAIT).timing.batch_size for future in futures]
    assert busy.engines.batches[1] == 4  # three of seed 1 and one of seed 3
    assert sorted(busy.engines.batches) == [1, 1, 2, 4]
    assert sizes == [4, 1, 4]


def test_a_batch_that_has_just_begun_begins_anew_with_images_that_came_since(made: Callable[..., Drawn]) -> None:
    scheduled = made(max_wait=60)
    lone = scheduled.scheduler.submit(drawing(seed=99))
    scheduled.gate.wait_until_reached()
    others = [scheduled.scheduler.submit(drawing(seed=seed)) for seed in range(3)]
    scheduled.gate.open()
    drawn = [future.result(WAIT) for future in [lone, *others]]
    assert scheduled.engines.batches == [1, 4]
    assert [each.timing.batch_size for each in drawn] == [4] * 4
    assert scheduled.events.batches == [(4, None)]
    for each, seed in zip(drawn, (99, 0, 1, 2), strict=True):
        np.testing.assert_array_equal(each.images[0].pixels, alone(drawing(seed=seed))[0])


def test_a_batch_goes_on_after_its_first_iteration_though_others_came(made: Callable[..., Drawn]) -> None:
    scheduled = made(max_wait=60)
    lone = scheduled.scheduler.submit(drawing(seed=99))
    scheduled.gate.wait_until_reached()
    scheduled.gate.let(1)
    scheduled.gate.wait_until_reached()
    later = scheduled.scheduler.submit(drawing(seed=1))
    scheduled.gate.open()
    assert lone.result(WAIT).timing.batch_size == 1
    scheduled.scheduler.submit(drawing(seed=2))  # the client of the first image is back, and so nobody is waited for
    assert later.result(WAIT).timing.batch_size == 2


def test_a_full_batch_is_prepared_while_another_is_drawn(busy: Drawn) -> None:
    full = busy.scheduler.submit(drawing(seed=1, count=4))
    while busy.events.depths[-1]:  # it leaves the queue, though the gate is closed
        time.sleep(0.001)
    later = busy.scheduler.submit(drawing(seed=2))
    busy.gate.open()
    wait([full, later], WAIT)
    assert busy.engines.batches == [1, 4, 1]


def test_a_cancelled_request_leaves_the_queue_and_is_not_drawn(busy: Drawn) -> None:
    cancelled, kept = busy.scheduler.submit(drawing(seed=1, count=2)), busy.scheduler.submit(drawing(seed=2))
    assert cancelled.cancel()
    assert busy.events.depths[-1] == 1
    busy.gate.open()
    assert len(kept.result(WAIT).images) == 1
    assert busy.engines.batches == [1, 1]


def test_a_batch_that_nobody_waits_for_ends_after_its_iteration(made: Callable[..., Drawn]) -> None:
    scheduled = made()
    cancelled = scheduled.scheduler.submit(drawing())
    scheduled.gate.wait_until_reached()
    assert cancelled.cancel()
    scheduled.gate.let(1)
    following = scheduled.scheduler.submit(drawing(seed=1))
    scheduled.gate.open()
    following.result(WAIT)
    assert scheduled.engines.passes == 1 + 4
    assert [error for _, error in scheduled.events.batches][:1] == [None]


def test_a_batch_goes_on_while_one_of_its_requests_is_waited_for(busy: Drawn) -> None:
    cancelled, kept = busy.scheduler.submit_all([drawing(seed=1), drawing(seed=2)])
    busy.gate.let(4)
    for _ in range(4):  # the others of the first image, and the first of the next batch
        busy.gate.wait_until_reached()
    assert cancelled.cancel()
    busy.gate.open()
    assert np.array_equal(kept.result(WAIT).images[0].pixels, alone(drawing(seed=2))[0])
    with pytest.raises(CancelledError):
        cancelled.result(0)


def test_a_full_queue_refuses_and_says_when_to_come_back(busy: Drawn, made: Callable[..., Drawn]) -> None:
    small = made(max_queue=3)
    small.scheduler.submit(drawing(seed=9))
    small.gate.wait_until_reached()
    small.scheduler.submit(drawing(seed=1, count=2))
    with pytest.raises(QueueFullError, match="2 images wait, of at most 3") as refused:
        small.scheduler.submit_all([drawing(seed=2), drawing(seed=3)])
    assert refused.value.seconds >= 1
    small.scheduler.submit(drawing(seed=4))  # neither of the two refused ones is there
    with pytest.raises(RequestError, match="at most 3 images, as many as may wait; found 4"):  # at no time
        small.scheduler.submit(drawing(seed=5, count=4))


def test_a_request_fails_at_its_deadline_whether_it_waits_or_is_drawn(made: Callable[..., Drawn]) -> None:
    scheduled = made()
    drawn = scheduled.scheduler.submit(drawing(deadline=time.monotonic() + 0.05))
    scheduled.gate.wait_until_reached()
    waiting = scheduled.scheduler.submit(drawing(seed=1, deadline=time.monotonic() + 0.05))
    with pytest.raises(DeadlineError):
        waiting.result(WAIT)  # although the engine stands still
    scheduled.gate.let(1)
    with pytest.raises(DeadlineError, match="not done in time"):
        drawn.result(WAIT)
    assert scheduled.engines.passes == 1


def test_an_engine_that_fails_fails_the_requests_of_its_batch_only(made: Callable[..., Drawn]) -> None:
    scheduled = made()
    scheduled.gate.open()
    failing, failure = threading.Event(), BackendError("engine backbone failed")

    def fail_once() -> None:
        if failing.is_set():
            failing.clear()
            raise failure

    scheduled.engines.before_pass = fail_once
    failing.set()
    first = scheduled.scheduler.submit(drawing(count=2))
    with pytest.raises(BackendError, match="engine backbone failed"):
        first.result(WAIT)
    assert scheduled.scheduler.submit(drawing()).result(WAIT).images
    assert scheduled.events.batches == [(2, failure), (1, None)]


def test_an_image_that_cannot_be_delivered_fails_its_request_and_the_thread_goes_on(
    made: Callable[..., Drawn], monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduled = made()
    scheduled.gate.open()
    finished = scheduler._finished

    def without_memory(image: Any, *rest: Any) -> Shown:
        if image.request.drawing.seeds[0] < 2:
            raise MemoryError
        return finished(image, *rest)

    monkeypatch.setattr(scheduler, "_finished", without_memory)
    for seed in range(2):  # as many as there are threads
        with pytest.raises(MemoryError):
            scheduled.scheduler.submit(drawing(seed=seed)).result(WAIT)
    assert scheduled.scheduler.submit(drawing(seed=2)).result(WAIT).images


def test_closing_fails_what_waits_and_ends_what_is_drawn(busy: Drawn) -> None:
    waiting = busy.scheduler.submit(drawing(seed=1))
    closing = threading.Thread(target=busy.scheduler.close)
    closing.start()
    with pytest.raises(SchedulerClosedError):
        waiting.result(WAIT)
    busy.gate.let(1)
    closing.join(WAIT)
    assert not closing.is_alive()
    assert busy.engines.passes == 1
    with pytest.raises(SchedulerClosedError):
        busy.scheduler.submit(drawing())


def test_images_are_shown_while_they_are_drawn(made: Callable[..., Drawn]) -> None:
    scheduled = made()
    scheduled.gate.open()
    shown: list[Shown] = []
    watched = scheduled.scheduler.submit(drawing(count=2, partial_images=2, show=shown.append))
    images = watched.result(WAIT).images
    assert [(each.place, each.done) for each in shown] == [(0, 1), (1, 1), (0, 3), (1, 3), (0, 4), (1, 4)]
    assert [each.record is None for each in shown] == [True] * 4 + [False] * 2
    assert all(np.array_equal(each.pixels, image.pixels) for each, image in zip(shown[4:], images, strict=True))
    early = shown[0].pixels
    assert (early == 128).sum() > (shown[2].pixels == 128).sum()  # grey where nothing is known


@pytest.mark.parametrize(
    ("partial", "total", "after"),
    [(0, 14, []), (1, 14, [7]), (3, 14, [4, 7, 10]), (16, 4, [1, 2, 3]), (3, 1, []), (3, 64, [16, 32, 48])],
)
def test_partial_images_come_at_equal_distances(partial: int, total: int, after: list[int]) -> None:
    shown = [done for done in range(1, total + 1) if drawing(partial_images=partial).shows_after(done, total)]
    assert shown == after


def test_a_watcher_that_fails_fails_its_own_request(busy: Drawn) -> None:
    def broken(shown: Shown) -> None:
        raise ValueError("the watcher is broken")

    bad, good = busy.scheduler.submit_all([drawing(seed=1, partial_images=1, show=broken), drawing(seed=2)])
    busy.gate.open()
    with pytest.raises(ValueError, match="the watcher is broken"):
        bad.result(WAIT)
    assert good.result(WAIT).timing.batch_size == 2
