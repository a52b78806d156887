"""Drawing of a dataset: whoever draws a shard, one process writes it, and no shard is drawn twice."""

from __future__ import annotations

import contextlib
import functools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.dataset.formats import FORMATS
from runtime.dataset.plan import DrawingPlan
from runtime.image_records.record import ImageRecord
from runtime.workers.tasks import run_tasks
from runtime.workers.worker_group import Workers

Draw = Callable[[Sequence[ImageRecord], int], Iterable[NDArray[np.uint8]]]
"""Draws images in batches of a size: B records -> parts uint8 [b, H, W, c] of them, in order."""

OpenModel = Callable[[], AbstractContextManager[Draw]]
"""Opens a model in a worker. It must be possible to pickle it."""


def draw_dataset(
    plan: DrawingPlan,
    open_model: OpenModel,
    format_name: str,
    out: pathlib.Path,
    workers: Workers,
    progress: Callable[[int, bool], None],
) -> None:
    """Draw those images of a plan that are not in a folder yet.

    Args:
        plan: The images.
        open_model: Opens the model in each worker.
        format_name: How images are stored, one of `FORMATS`.
        out: The folder.
        workers: Who draws.
        progress: Called with a number of images that are finished, and whether they were before.

    Raises:
        RequestError: The folder has images of another model or of other settings.
        MarError: Another process fills the folder, or it cannot be written.
        BackendError: An engine failed, or workers died again and again.
    """
    chosen = FORMATS[format_name]
    with chosen.open(out, plan.shard_size) as folder:
        missing = [shard for shard in plan.shards() if not all(map(folder.has, plan.records(shard)))]
        progress(plan.count - sum(map(len, missing)), True)
        task = functools.partial(_opened, open_model, plan, chosen.pack)
        for shard, packed in run_tasks(task, missing, workers):
            folder.add_packed(list(plan.records(shard)), packed)
            progress(len(shard), False)
        folder.complete(plan.records(range(plan.count)))


@contextlib.contextmanager
def _opened(open_model: OpenModel, plan: DrawingPlan, pack: Callable[..., Any]) -> Iterator[Callable[[range], Any]]:
    """Open a model, and give the task of drawing one shard."""
    with open_model() as draw:

        def draw_shard(shard: range) -> Any:
            records = list(plan.records(shard))
            return pack(np.concatenate(list(draw(records, plan.batch_size))), records)

        yield draw_shard
