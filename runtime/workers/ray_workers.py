"""Work on many items by actors of Ray Data, which starts an actor again when it or its machine dies."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import BackendError
from runtime.workers.ray_cluster import connected
from runtime.workers.worker_group import Item, OpenTask, Result, Workers

_RESTARTS = 10  # of an actor whose process or machine dies; Ray Data repeats its item then


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """What an actor answers; a class of its own, because Ray Data takes dicts and lists apart.

    Attributes:
        number: The number of the item.
        result: The result of the task.
        error: The exception that the task raised, if any.
        traceback: Where it was raised.
    """

    number: int
    result: Any = None
    error: Exception | None = None
    traceback: str = ""


class _Worker:
    """An actor: it opens the task when its first item comes."""

    def __init__(self, open_task: OpenTask[Any, Any], items: Sequence[Any]) -> None:
        self._open_task, self._items = open_task, items
        self._opened = contextlib.ExitStack()  # which the end of the process closes

    @functools.cached_property
    def _task(self) -> Callable[[Any], Any]:
        return self._opened.enter_context(self._open_task())

    def __call__(self, batch: dict[str, NDArray[np.int64]]) -> dict[str, NDArray[np.object_]]:
        outcomes = np.empty(len(batch["number"]), object)
        for place, number in enumerate(batch["number"].tolist()):
            outcomes[place] = self._outcome(number)
        return {"outcome": outcomes}

    def _outcome(self, number: int) -> _Outcome:
        try:
            return _Outcome(number, self._task(self._items[number]))
        except Exception as error:
            return _Outcome(number, error=error, traceback=traceback.format_exc())


def run_on_ray(
    open_task: OpenTask[Item, Result], items: Sequence[Item], workers: Workers
) -> Iterator[tuple[Item, Result]]:
    """Do what `runtime.workers.tasks.run_tasks` says, by actors of Ray Data."""
    with connected(workers) as ray:
        outcomes = _outcomes(ray, open_task, items, workers)
        try:
            for row in outcomes.iter_rows():
                outcome: _Outcome = row["outcome"]
                if outcome.error is not None:
                    raise outcome.error from RuntimeError(f"in a worker:\n{outcome.traceback}")
                yield items[outcome.number], outcome.result
        except ray.exceptions.RayError as error:
            raise BackendError(
                f"workers died again and again before their work was done ({type(error).__name__}); use fewer of them "
                "if memory is short, and give the same command to continue with what is finished"
            ) from error


def _outcomes(ray: Any, open_task: OpenTask[Item, Result], items: Sequence[Item], workers: Workers) -> Any:
    """Return the lazy dataset of the outcomes of all items."""
    numbers = [{"number": number} for number in range(len(items))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray 2.64 will not have max_restarts; pyproject.toml asks for an earlier one
        return ray.data.from_items(numbers, override_num_blocks=len(items)).map_batches(
            _Worker,
            fn_constructor_args=(open_task, items),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=_size(ray, items, workers), max_tasks_in_flight_per_actor=2),
            num_cpus=workers.threads,
            num_gpus=1 if workers.gpu else None,
            max_restarts=_RESTARTS,
        )


def _size(ray: Any, items: Sequence[Any], workers: Workers) -> int:
    """Return the number of actors."""
    resources = ray.cluster_resources()
    possible = int(resources.get("GPU", 0)) if workers.gpu else int(resources.get("CPU", 0)) // workers.threads
    return min(len(items), workers.count or max(1, possible))
