"""The real images that generated ones are compared with."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

from runtime.checks import pluralize
from runtime.errors import DataError, RequestError
from runtime.image_files import WHITE, Color
from runtime.model.family_config import FamilyConfig
from training.data.class_names import check_known_classes
from training.data.datasets import ImageDataset
from training.data.validation_split import open_train_and_test


@dataclasses.dataclass(frozen=True)
class RealImages:
    """The real images of a comparison.

    Attributes:
        train: The images that the model and the classifier were trained on.
        compared: The images that generated ones are compared with.
        split: The name of their split, `train` or `test`.
        count: How many of them are used.
    """

    train: ImageDataset
    compared: ImageDataset
    split: str
    count: int


def open_real_images(
    data: pathlib.Path,
    source: pathlib.Path,
    config: FamilyConfig,
    class_names: Sequence[str],
    *,
    split: str = "test",
    count: int | None = None,
    background: Color = WHITE,
    validation_share: float = 0.0,
) -> RealImages:
    """Open a dataset in the size of a model's images, and check that it has the model's classes.

    Args:
        data: The folder of the dataset.
        source: The checkpoint or artifact of the model, for messages.
        config: The model's shape.
        class_names: The names of the model's classes, or none.
        split: The split to compare with, `train` or `test`.
        count: How many images to compare with; None for all of the split.
        background: The colour under transparent pixels.
        validation_share: The share that training held out: the test split of a dataset that has none.

    Raises:
        DataError: The dataset cannot be read, or its splits have different classes.
        RequestError: It has other classes than the model.
    """
    side = config.image_shape[0]
    train, test = open_train_and_test(data, side, background, validation_share, with_test=split == "test")
    compared = train if test is None else test
    check_known_classes(train.classes, class_names, str(data), str(source))
    if train.classes != compared.classes:
        raise DataError(f"{data}: the training and the test images have different classes")
    if len(train.classes) != config.class_num:
        classes = pluralize(len(train.classes), "class")
        raise RequestError(f"{data} has {classes}, but the model has {config.class_num}; give the model's own dataset")
    available = len(compared.labels)
    return RealImages(train, compared, split, min(count or available, available))
