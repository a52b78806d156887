"""Which images form a batch, and when: the clock is a number that the test sets."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from runtime.service.batch_queue import BatchQueue

MAX_WAIT = 0.02


@dataclasses.dataclass(eq=False)
class Waiting:
    key: str
    number: int = 0
    arrived: float = 0


def queue_of(keys: str, max_batch: int = 4) -> BatchQueue[Waiting]:
    queue: BatchQueue[Waiting] = BatchQueue(max_batch, MAX_WAIT)
    queue.add(Waiting(key, number) for number, key in enumerate(keys))
    return queue


def numbers(batch: list[Waiting]) -> list[int]:
    return [image.number for image in batch]


def test_the_oldest_image_decides_and_others_of_its_key_go_with_it_in_order() -> None:
    queue = queue_of("abaab")
    assert numbers(queue.take(0, drawing=False)) == [0, 2, 3]
    assert numbers(queue.take(0, drawing=False)) == [1, 4]
    assert queue.take(0, drawing=False) == []


def test_a_batch_has_at_most_its_limit() -> None:
    queue = queue_of("aaaaaa")
    assert numbers(queue.take(0, drawing=False)) == [0, 1, 2, 3]
    assert numbers(queue.take(0, drawing=False)) == [4, 5]


def test_a_lone_image_on_an_idle_engine_starts_at_once() -> None:
    queue = queue_of("a")
    assert queue.seconds_to_wait(0) == 0
    assert numbers(queue.take(0, drawing=False)) == [0]
    queue.ended("a", 1, now=1)
    queue.add([Waiting("a", 1, 1.001)])  # the only client is back
    assert numbers(queue.take(1.001, drawing=False)) == [1]


def test_after_a_batch_its_clients_are_waited_for_while_they_return() -> None:
    queue = queue_of("aaa")
    assert len(queue.take(0, drawing=False)) == 3
    queue.ended("a", 3, now=1)
    queue.add([Waiting("a", arrived=1.015)])
    queue.add([Waiting("a", arrived=1.03)])  # more than MAX_WAIT after the batch, but not after the first that returned
    queue.add([Waiting("b", arrived=1.031)])  # it is none of them
    assert queue.take(1.031, drawing=False) == []
    seconds = queue.seconds_to_wait(1.031)
    assert seconds is not None
    assert abs(seconds - (1.015 + MAX_WAIT - 1.031)) < 1e-9
    assert len(queue.take(1.015 + MAX_WAIT, drawing=False)) == 2


def test_an_image_that_waited_starts_if_no_client_of_the_batch_returns() -> None:
    queue = queue_of("aaa")
    queue.take(0, drawing=False)
    queue.add([Waiting("a", arrived=0.5)])
    queue.ended("a", 3, now=1)
    assert queue.take(1 + 0.9 * MAX_WAIT, drawing=False) == []
    assert len(queue.take(1 + MAX_WAIT, drawing=False)) == 1


def test_who_comes_when_the_clients_of_the_last_batch_have_gone_starts_at_once() -> None:
    queue = queue_of("aaa")
    queue.take(0, drawing=False)
    queue.ended("a", 3, now=1)
    queue.add([Waiting("a", arrived=60)])
    assert len(queue.take(60, drawing=False)) == 1


def test_it_starts_at_once_when_all_are_back() -> None:
    queue = queue_of("aaa")
    queue.take(0, drawing=False)
    queue.ended("a", 3, now=1)
    queue.add([Waiting("a", arrived=1.001) for _ in range(3)])
    assert len(queue.take(1.001, drawing=False)) == 3


def test_images_that_waited_count_among_those_that_are_expected() -> None:
    """One client is drawn alone while three wait: when it is back, all four are drawn together."""
    queue = queue_of("a")
    queue.take(0, drawing=False)
    queue.add([Waiting("a", arrived=0.5) for _ in range(3)])
    queue.ended("a", 1, now=1)
    assert queue.take(1.001, drawing=False) == []
    queue.add([Waiting("a", arrived=1.002)])
    assert len(queue.take(1.002, drawing=False)) == 4


def test_another_key_waits_for_nobody() -> None:
    queue = queue_of("aaa")
    queue.take(0, drawing=False)
    queue.ended("a", 3, now=1)
    queue.add([Waiting("b", arrived=1.001)])
    assert len(queue.take(1.001, drawing=False)) == 1


def test_while_a_batch_is_drawn_only_a_full_one_is_taken() -> None:
    queue = queue_of("aaa")
    assert queue.take(0, drawing=True) == []
    queue.add([Waiting("a", 3, 0.1)])
    assert numbers(queue.take(0, drawing=True)) == [0, 1, 2, 3]


def test_a_batch_is_joined_by_images_of_its_key_that_came_soon_after() -> None:
    queue = queue_of("a")
    batch = queue.take(0, drawing=False)
    assert not queue.is_joined(batch)
    queue.add([Waiting("b", 1, 0.001), Waiting("a", 2, 2 * MAX_WAIT)])
    assert not queue.is_joined(batch)
    queue.add([Waiting("a", 3, 1.9 * MAX_WAIT)])
    assert queue.is_joined(batch)


def test_a_full_batch_is_joined_by_nobody() -> None:
    queue = queue_of("aaaa")
    batch = queue.take(0, drawing=False)
    queue.add([Waiting("a", 4, 0.001)])
    assert not queue.is_joined(batch)


def test_a_batch_that_is_given_back_starts_when_its_oldest_image_has_waited_or_when_it_is_full() -> None:
    queue = queue_of("a")
    batch = queue.take(0, drawing=False)
    queue.add([Waiting("a", 1, 0.001), Waiting("b", 2, 0.002)])
    queue.give_back(batch)
    assert queue.take(0.01, drawing=False) == []
    assert queue.seconds_to_wait(0.01) == 0.01
    assert numbers(queue.take(MAX_WAIT, drawing=False)) == [0, 1]
    assert numbers(queue.take(MAX_WAIT, drawing=False)) == [2]
    queue = queue_of("a")
    batch = queue.take(0, drawing=False)
    queue.add([Waiting("a", number, 0.001) for number in (1, 2, 3)])
    queue.give_back(batch)
    assert numbers(queue.take(0.01, drawing=False)) == [0, 1, 2, 3]


def test_an_empty_queue_never_has_a_batch() -> None:
    queue = queue_of("")
    assert queue.seconds_to_wait(0) is None
    assert queue.take(0, drawing=False) == []


@given(st.text("abc", max_size=30), st.integers(1, 5), st.sets(st.integers(0, 29)))
def test_every_image_is_taken_once_and_in_order_of_its_key(keys: str, max_batch: int, removed: set[int]) -> None:
    queue = queue_of(keys, max_batch)
    queue.remove(lambda image: image.number in removed)
    kept = [number for number in range(len(keys)) if number not in removed]
    taken: list[int] = []
    while len(queue):
        oldest = next(iter(queue)).number
        batch = queue.take(0, drawing=False)
        assert batch[0].number == oldest
        assert len({image.key for image in batch}) == 1
        assert len(batch) <= max_batch
        taken += numbers(batch)
    assert sorted(taken) == kept
    for key in "abc":
        of_key = [number for number in taken if keys[number] == key]
        assert of_key == sorted(of_key)
