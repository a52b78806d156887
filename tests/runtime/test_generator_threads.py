"""Threads share a generator: its requests run one after another, on every backend, and images are right."""

from __future__ import annotations

import contextlib
import pathlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from runtime.errors import BackendError, RequestError
from runtime.generator import Generator
from runtime.requests.inpainting import Edit

FAST: dict[str, Any] = {"iterations": 4, "diffusion_steps": "ddim5", "cfg_scale": 2.0}
WAIT = 60  # seconds, after which a test fails


@pytest.fixture(params=["onnxruntime", "openvino"])
def generator(request: pytest.FixtureRequest, golden_artifacts: dict[str, pathlib.Path]) -> Iterator[Generator]:
    with Generator.load(golden_artifacts["small"], backend=request.param, threads=1) as loaded:
        yield loaded


def images_of(generator: Generator, number: int) -> bytes:
    """Request `number`: it differs from every other in batch, class and seed, and every third one is an edit."""
    labels, edit = [(number + place) % 6 for place in range(1 + number % 3)], None
    if number % 3 == 0:
        mask = np.zeros((4, 4), bool)
        mask[1:3] = True
        edit = Edit(np.full((len(labels), 8, 4, 4), 0.5, np.float32), mask)
    return generator.generate(labels, seed=number, edit=edit, **FAST).latents.tobytes()


def test_requests_of_many_threads_give_the_images_of_one_thread(generator: Generator) -> None:
    alone = [images_of(generator, number) for number in range(12)]
    with ThreadPoolExecutor(6) as threads:
        together = list(threads.map(lambda number: images_of(generator, number % 12), range(48)))
    assert together == alone * 4


def test_batches_of_two_threads_give_the_images_of_one_thread(generator: Generator) -> None:
    def batches(seed: int) -> list[bytes]:
        results = generator.generate_batches([0, 1, 2, 3, 4], 2, seed=seed, **FAST)
        return [result.latents.tobytes() for result in results]

    alone = [batches(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(batches, range(4))) == alone


def test_threads_that_share_an_iterator_get_every_batch_once(generator: Generator) -> None:
    labels = [0, 1, 2, 3, 4, 5, 0, 1]
    alone = [result.latents.tobytes() for result in generator.generate_batches(labels, 1, **FAST)]
    shared = generator.generate_batches(labels, 1, **FAST)
    with ThreadPoolExecutor(4) as threads:
        parts = list(threads.map(lambda _: [result.latents.tobytes() for result in shared], range(4)))
    assert sorted(image for part in parts for image in part) == sorted(alone)


def in_the_middle(generator: Generator, act: Callable[[], None]) -> bytes:
    """Call `act` in this thread while another generates; returns the image of the other."""
    begun, go_on = threading.Event(), threading.Event()

    def progress(done: int, of: int) -> None:
        begun.set()
        assert go_on.wait(WAIT)

    with ThreadPoolExecutor(2) as threads:
        image = threads.submit(generator.generate, [2], seed=7, progress=progress, **FAST)
        assert begun.wait(WAIT)
        acting = threads.submit(act)
        with contextlib.suppress(TimeoutError):
            acting.result(0.2)  # it is given the time to do harm
        go_on.set()
        acting.result(WAIT)
        return image.result(WAIT).latents.tobytes()


def test_closing_waits_for_the_request_that_runs(generator: Generator) -> None:
    expected = generator.generate([2], seed=7, **FAST).latents.tobytes()
    assert in_the_middle(generator, generator.close) == expected
    with pytest.raises(BackendError, match="closed"):
        generator.generate([2], **FAST)
    generator.close()  # twice is once


def test_an_engine_that_fails_in_one_thread_leaves_the_generator_to_the_others(generator: Generator) -> None:
    expected = images_of(generator, 1)

    def interrupt(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generator.generate([0], progress=interrupt, **FAST)
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(images_of, generator, 1).result(WAIT) == expected


@pytest.mark.parametrize("begun", [False, True])
def test_an_abandoned_iterator_disturbs_nobody(generator: Generator, begun: bool) -> None:
    expected = images_of(generator, 5)
    for _ in range(3):
        abandoned = generator.generate_batches([0] * 6, 1, **FAST)
        if begun:
            next(abandoned)
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(images_of, generator, 5).result(WAIT) == expected
    del abandoned
    assert images_of(generator, 5) == expected


def test_an_iterator_whose_generator_was_closed_is_refused(generator: Generator) -> None:
    batches = generator.generate_batches([0, 1, 2], 1, **FAST)
    next(batches)
    generator.close()
    for _ in range(2):
        with pytest.raises(BackendError, match="closed"):
            next(batches)


def test_a_progress_callback_may_not_use_its_own_generator(generator: Generator) -> None:
    """It would wait for itself; and a loop on a GPU has one set of arrays."""
    batches = generator.generate_batches([0, 1], 1, **FAST)
    uses: list[Callable[[], object]] = [lambda: images_of(generator, 1), generator.close, lambda: next(batches)]
    refused = []

    def progress(done: int, of: int) -> None:
        for use in uses:
            with pytest.raises(RequestError, match="progress callback") as refusal:
                use()
            refused.append(refusal)

    expected = generator.generate([2], seed=7, **FAST).latents
    assert np.array_equal(generator.generate([2], seed=7, progress=progress, **FAST).latents, expected)
    assert len(refused) == 4 * len(uses)
    assert len(list(batches)) == 2
