"""Which images a dataset has, and in which parts they are drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from runtime.checks import check_int
from runtime.errors import RequestError
from runtime.image_records.record import ImageRecord
from runtime.requests.validation import MAX_BATCH, check_seed

_MAX_COUNT = 100_000_000
_MAX_SHARD = 1_000_000


@dataclasses.dataclass(frozen=True)
class DrawingPlan:
    """The images 0..count - 1 of a seed, as `mar generate` makes them: image i has class `classes[i % len(classes)]`.

    They are drawn in batches, and in shards of whole batches. So every image is drawn together with the same others,
    whoever draws it, and is the same to the last bit.

    Attributes:
        model: How all the images are made: a record with their seed, model and settings.
        classes: The classes that the images take in turn.
        class_names: The names of all classes of the model, or none.
        count: The number of images.
        batch_size: The number of images that are generated together.
        shard_size: The number of images in a shard, a multiple of `batch_size`. A worker draws one shard at a time.
    """

    model: ImageRecord
    classes: Sequence[int]
    class_names: Sequence[str]
    count: int
    batch_size: int
    shard_size: int

    def __post_init__(self) -> None:
        """Check the numbers; raise `RequestError` if one is wrong."""
        check_seed(self.model.seed)
        check_int("--count", self.count, 1, _MAX_COUNT)
        check_int("--batch-size", self.batch_size, 1, MAX_BATCH)
        check_int("--shard-size", self.shard_size, 1, _MAX_SHARD)
        if self.shard_size % self.batch_size:
            raise RequestError(
                f"--shard-size must be a multiple of --batch-size ({self.batch_size}), found {self.shard_size}"
            )

    def shards(self) -> list[range]:
        """Return the indices of the images of each shard; the last shard may have fewer."""
        images = range(self.count)
        return [images[start : start + self.shard_size] for start in range(0, self.count, self.shard_size)]

    def records(self, indices: range) -> Iterator[ImageRecord]:
        """Yield how each of the images is made."""
        for index in indices:
            label = self.classes[index % len(self.classes)]
            name = self.class_names[label] if self.class_names else ""
            yield dataclasses.replace(self.model, class_number=label, class_name=name, index=index)
