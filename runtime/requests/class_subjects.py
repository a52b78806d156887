"""Classes as the subjects of a request: the labels of MAR."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from runtime.errors import RequestError
from runtime.model.engine_spec import Array
from runtime.model.family_config import FamilyConfig
from runtime.requests.prompt_tokenizer import PromptTokenizer
from runtime.requests.subjects import SUBJECT_ARGUMENTS, ConditionEngines
from runtime.requests.validation import check_labels
from runtime.sampling.plan import Condition, Int


@dataclasses.dataclass(frozen=True)
class ClassSubjects:
    """A class for each image; a `runtime.requests.subjects.Subjects`.

    Attributes:
        labels: The numbers of the classes, int64 [B].
        none: The number that stands for no class.
        names: The names of the model's classes in order, or none.
    """

    labels: Int
    none: int
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, images: slice) -> ClassSubjects:
        """Return the classes of some of the images."""
        return dataclasses.replace(self, labels=self.labels[images])

    def condition(self, engines: ConditionEngines, guided: bool) -> Condition:
        """Return the labels [B]; guided, both halves [2B]: the labels, and the class "none" B times."""
        return both_halves(self.labels, self.none) if guided else self.labels

    def given(self, place: int) -> dict[str, Array]:
        """Return nothing: a class is no array."""
        return {}

    def record(self, place: int) -> dict[str, Any]:
        """Return number and name of the class of one of the images."""
        label = int(self.labels[place])
        return {"class_number": label, "class_name": self.names[label] if self.names else ""}


def both_halves(labels: Int, none: int) -> Int:
    """Return the labels of both guidance halves [2B]: the labels [B], and the class `none` B times."""
    return np.concatenate([labels, np.full_like(labels, none)])


def example_classes(config: FamilyConfig, count: int) -> dict[str, Any]:
    """Return a request for `count` images of the last class; a `runtime.requests.subjects.ExampleRequest`."""
    return {"labels": [config.class_num - 1] * count}


def check_classes(
    inputs: Mapping[str, Any], config: FamilyConfig, names: Sequence[str], tokenizer: PromptTokenizer | None
) -> ClassSubjects:
    """Check the classes of a request; a `runtime.requests.subjects.CheckSubjects`.

    Raises:
        RequestError: They are not a list of classes of this model.
    """
    for name in SUBJECT_ARGUMENTS:
        if inputs.get(name) is not None:
            raise RequestError(f"this model draws classes; give labels, found {name}")
    if inputs.get("labels") is None:
        raise RequestError("labels is missing; give at least one class, such as labels=[0]")
    return ClassSubjects(check_labels(inputs["labels"], config, names), config.class_num, names)
