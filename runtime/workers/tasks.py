"""One task for many items, done in this process or by several workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from runtime.workers.worker_group import Item, OpenTask, Result, Workers


def run_tasks(
    open_task: OpenTask[Item, Result], items: Sequence[Item], workers: Workers
) -> Iterator[tuple[Item, Result]]:
    """Call a task once for each item, and yield each item with its result as soon as it is there, in any order.

    A worker that is killed is started again, and its item is done again. The first failure of a task ends all work.

    Args:
        open_task: Opens the task. With several workers it must be possible to pickle it, and items and results too.
        items: The items.
        workers: Who works.

    Raises:
        BackendError: Ray is not installed, its cluster cannot be reached, or workers died again and again.
        Exception: Whatever the task raises.
    """
    if not items:
        return
    if workers.in_this_process:
        with open_task() as task:
            for item in items:
                yield item, task(item)
    else:
        from runtime.workers.ray_workers import run_on_ray

        yield from run_on_ray(open_task, items, workers)
