"""What a run records of its data, to tell when they have changed since the run began."""

from __future__ import annotations

import dataclasses

import numpy as np

from runtime.checks import pluralize
from training.data.class_names import list_some
from training.data.latent_dataset import LatentDataset


@dataclasses.dataclass(frozen=True)
class DataRecord:
    """The images of a run.

    Attributes:
        images: The number of images of each class, by its name.
        content: A text that differs for other images, and is the same for a copy of them elsewhere.
    """

    images: dict[str, int]
    content: str

    @classmethod
    def of(cls, dataset: LatentDataset) -> DataRecord:
        """Return the record of a dataset."""
        counts = np.bincount(dataset.labels, minlength=len(dataset.classes)).tolist()
        return cls(dict(zip(dataset.classes, counts, strict=True)), dataset.content)

    def changes_since(self, before: DataRecord) -> str:
        """Return in words how these images differ from those of an earlier record; nothing where they do not."""
        names = dict.fromkeys([*before.images, *self.images])
        counts = [(name, before.images.get(name, 0), self.images.get(name, 0)) for name in names]
        changed = [f"{name} {now} instead of {then}" for name, then, now in counts if now != then]
        if changed:
            images, then = pluralize(sum(self.images.values()), "image"), sum(before.images.values())
            return f"{images} instead of {then} ({list_some(changed)})"
        return "" if self.content == before.content else "as many images of each class, but not the same files"
