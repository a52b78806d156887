"""The batches of `mar generate`, with their progress on standard error."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from runtime.generator import Generator
from runtime.image_records.record import ImageRecord
from runtime.image_records.subject import subject_arguments
from runtime.progress import Progress, terminal_shown
from runtime.result import Result


def generate_batches(
    generator: Generator, records: Sequence[ImageRecord], batch_size: int, settings: Mapping[str, Any], **request: Any
) -> Iterator[Result]:
    """Generate images with a progress bar, and yield the result of each batch.

    Args:
        generator: The generator.
        records: Which images, at least one.
        batch_size: The number of images in a batch.
        settings: Their sampling settings, as the caller gave them.
        **request: Other arguments of `Generator.generate_batches`.
    """
    iterations = len(generator.plan(**settings).iterations)
    on_terminal = terminal_shown()
    with Progress(math.ceil(len(records) / batch_size) * iterations, "generating") as bar:
        batches = generator.generate_batches(
            batch_size=batch_size,
            seed=[record.seed for record in records],
            index=[record.index for record in records],
            progress=(lambda done, total: bar.update(1)) if on_terminal else None,
            **subject_arguments([record.subject for record in records]),
            **request,
            **settings,
        )
        for result in batches:
            if not on_terminal:
                bar.update(iterations)
            yield result
