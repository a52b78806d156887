"""Names of classes: a summary of those of a dataset, and a check that they are those that a model was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from runtime.checks import pluralize
from runtime.errors import DataError

_NAMES_LISTED = 10


def describe_classes(classes: Sequence[str], labels: NDArray[np.int64]) -> str:
    """Return the numbers of images and of classes, and the number of images of each of the first ten classes."""
    counts = np.bincount(labels, minlength=len(classes))
    listed = list_some([f"{name} {count}" for name, count in zip(classes, counts, strict=True)])
    return f"{pluralize(len(labels), 'image')} of {pluralize(len(classes), 'class')}: {listed}"


def list_some(names: Sequence[str], first: int = 0) -> str:
    """Return at most ten names in one text, those from number `first` on, with dots for the others."""
    listed = list(names[first : first + _NAMES_LISTED])
    before, after = ["..."] * (first > 0), ["..."] * (first + _NAMES_LISTED < len(names))
    return ", ".join(before + listed + after)


def check_same_classes(found: Sequence[str], expected: Sequence[str], data: str, whose: str) -> None:
    """Check that a dataset has the classes that a run or a model has, so that no label means another class.

    Args:
        found: The classes of the dataset.
        expected: The classes of the run or the model.
        data: The path of the dataset, for the message.
        whose: The run or the model, for the message.

    Raises:
        DataError: They differ.
    """
    differing = [number for number, (a, b) in enumerate(zip_longest(found, expected)) if a != b]
    if not differing:
        return
    first = differing[0] if max(len(found), len(expected)) > _NAMES_LISTED else 0
    raise DataError(
        f"{data} has the classes {list_some(found, first)}, but {whose} has {list_some(expected, first)}, so the "
        f"meaning of labels would change from number {differing[0]} on; restore the class folders"
    )


def check_no_gaps(classes: Sequence[str], labels: NDArray[np.int64], data: str) -> None:
    """Check that every class has images where classes are but numbers: one wrong label would make hundreds of classes.

    Raises:
        DataError: A number below the largest label has no image.
    """
    empty = np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0).tolist()
    if empty and not _has_names(classes):
        raise DataError(
            f"{data}: {len(empty)} of {pluralize(len(classes), 'class')} have no images "
            f"({list_some([classes[number] for number in empty])}), because the largest label is {len(classes) - 1}; "
            f"correct the labels, or give --empty-classes to train a model of {len(classes)}"
        )


def check_known_classes(found: Sequence[str], expected: Sequence[str], data: str, whose: str) -> None:
    """Do what `check_same_classes` does, except where one side has only numbers for its classes, or nothing."""
    if _has_names(found) and _has_names(expected):
        check_same_classes(found, expected, data, whose)


def _has_names(classes: Sequence[str]) -> bool:
    return list(classes) != [str(number) for number in range(len(classes))]
