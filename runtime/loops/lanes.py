"""A batch in parts that are generated at the same time: each part has a thread and engines of its own, its lane.

The operators of a small model are too short to be shared by threads: two threads make one image of the example a fifth
faster, but two lanes make twice as many images.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.sampling.plan import AfterIteration, Float, Int, Plan, PlanLoop

_MOST_BYTES = 64 * 2**20


def share_threads(threads: int, engine_bytes: int) -> list[int]:
    """Return the number of processor threads of each lane; nothing if batches are better not split.

    Args:
        threads: The number of processor threads in all.
        engine_bytes: The size of the engines that the loop calls. Each lane loads them once more, and all lanes
            together at most 64 MiB: a model that does not fit in twice has operators that threads can share.
    """
    lanes = min(threads, _MOST_BYTES // max(1, engine_bytes))
    return [threads // lanes + (number < threads % lanes) for number in range(lanes)] if lanes > 1 else []


def in_lanes(lanes: Sequence[PlanLoop], whole: PlanLoop) -> PlanLoop:
    """Return a loop that splits batches among lanes.

    Args:
        lanes: The loop of each lane. They run at the same time.
        whole: The loop of a single image, while no lane runs.

    Returns:
        The loop. An exception of a lane or of `after_iteration`, which the calling thread calls, ends all lanes.
    """

    def run(
        plan: Plan,
        condition: NDArray[Any],
        order: Int,
        noise: Float,
        known: Float,
        after_iteration: AfterIteration | None,
    ) -> Float:
        batch = order.shape[1]
        if batch == 1:
            return whole(plan, condition, order, noise, known, after_iteration)
        halves = condition.reshape(-1, batch, *condition.shape[1:])  # [G, B, ...]

        def run_part(lane: PlanLoop, part: slice, after: AfterIteration | None) -> Float:
            of_part = halves[:, part].reshape(-1, *condition.shape[1:])
            return lane(plan, of_part, order[:, part], noise[:, :, part], known[:, part], after)

        parts = _parts(batch, min(len(lanes), batch))
        return np.concatenate(_run_together(run_part, lanes, parts, after_iteration), axis=1)

    return run


def _parts(batch: int, count: int) -> list[slice]:
    """Return the slices of a batch in `count` parts, whose sizes differ by one at most."""
    borders = [batch * number // count for number in range(count + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(borders)]


def _run_together(
    run_part: Callable[[PlanLoop, slice, AfterIteration | None], Float],
    lanes: Sequence[PlanLoop],
    parts: Sequence[slice],
    after_iteration: AfterIteration | None,
) -> list[Float]:
    """Run each part in its lane, and return their tokens. The calling thread runs the first part."""
    from concurrent.futures import ThreadPoolExecutor  # the import takes 7 ms, which a single image need not wait for

    in_step = threading.Barrier(len(parts))
    unfinished: list[Callable[[], Float]] = [lambda: np.empty(0, np.float32)] * len(parts)

    def run_lane(number: int) -> Float:
        def after(done: int, total: int, tokens: Callable[[], Float]) -> None:
            unfinished[number] = tokens
            in_step.wait()
            if number == 0 and after_iteration is not None:
                # The others are in their next iteration, which changes none of the tokens known so far.
                after_iteration(done, total, lambda: np.concatenate([part() for part in unfinished], axis=1))

        try:
            return run_part(lanes[number], parts[number], after)
        except BaseException:
            in_step.abort()
            raise

    with ThreadPoolExecutor(len(parts) - 1, "lane") as threads:
        others = [threads.submit(run_lane, number) for number in range(1, len(parts))]
        with contextlib.suppress(threading.BrokenBarrierError):  # another lane failed, and its exception tells why
            first = run_lane(0)
    failures = [error for error in (other.exception() for other in others) if error is not None]
    for error in failures:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    return [first, *(other.result() for other in others)]
