"""What an image shows, as a record and a command line name it: a class by its number, or a prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, cast


@dataclasses.dataclass(frozen=True)
class PromptText:
    """A prompt.

    Attributes:
        prompt: What the image shows.
        negative: What guidance leads away from; empty for the empty prompt.
    """

    prompt: str
    negative: str = ""


Subject = int | PromptText
"""What an image shows."""


def subject_arguments(subjects: Sequence[Subject]) -> dict[str, Any]:
    """Return the named arguments of `Generator.generate` for images of these subjects, which are all of one kind."""
    if not any(isinstance(subject, PromptText) for subject in subjects):
        return {"labels": list(subjects)}
    prompts = cast(Sequence[PromptText], subjects)
    negative = [each.negative for each in prompts]
    return {
        "labels": None,
        "prompt": [each.prompt for each in prompts],
        "negative_prompt": negative if any(negative) else None,
    }
