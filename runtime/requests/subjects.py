"""What the images of a request show: the part of a request in which families differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypedDict

from numpy.typing import ArrayLike

from runtime.model.engine_spec import Array, Engine
from runtime.model.family_config import FamilyConfig
from runtime.requests.prompt_tokenizer import PromptTokenizer
from runtime.sampling.plan import Condition
from runtime.sampling.settings import SamplingRequest


class ConditionEngines(Protocol):
    """The engines of a model, of which those that compute the condition are used, if there are any."""

    @property
    def condition(self) -> Engine | None:
        """The engine `condition`."""

    @property
    def text_encoder(self) -> Engine | None:
        """The engine `text_encoder`."""


class Subjects(Protocol):
    """What each of B images shows, checked."""

    def __len__(self) -> int:
        """Return B."""

    def part(self, images: slice) -> Subjects:
        """Return those of some of the images."""

    def condition(self, engines: ConditionEngines, guided: bool) -> Condition:
        """Return what the backbone reads.

        Args:
            engines: The engines of the model.
            guided: Whether the unconditional half is there too.
        """

    def given(self, place: int) -> dict[str, Array]:
        """Return the arrays that say what one of the images shows, by their names in `image_records.record.GIVEN`."""

    def record(self, place: int) -> dict[str, Any]:
        """Return the fields of `runtime.image_records.record.ImageRecord` that name one of the subjects."""


class PromptArguments(TypedDict, total=False):
    """The arguments of a request to a model that draws from text.

    Attributes:
        prompt: B prompts, for an artifact with a text encoder.
        negative_prompt: The prompts that guidance leads away from, B of them. None: the empty prompt.
        prompt_embeds: In place of `prompt`: the embeddings of B prompts, arrays [n, d] of d values a row and at most S
            rows, as `mar inspect` shows both.
        negative_prompt_embeds: In place of `negative_prompt`: the same for those.
    """

    prompt: Sequence[str] | None
    negative_prompt: Sequence[str] | None
    prompt_embeds: Sequence[ArrayLike] | None
    negative_prompt_embeds: Sequence[ArrayLike] | None


class ObservationArguments(TypedDict, total=False):
    """The argument of a request to a model that drives robots.

    Attributes:
        observation: What B robots see, see `runtime.requests.observations.check_observation`.
    """

    observation: Mapping[str, ArrayLike] | None


class SubjectArguments(PromptArguments, ObservationArguments, total=False):
    """The named arguments that say what is drawn, where these are no labels."""


SUBJECT_ARGUMENTS = tuple(SubjectArguments.__annotations__)
"""Their names."""


class ImageRequest(SamplingRequest, SubjectArguments, total=False):
    """The named arguments of a request: sampling settings, and what is drawn."""


CheckSubjects = Callable[[Mapping[str, Any], FamilyConfig, Sequence[str], PromptTokenizer | None], Subjects]
"""Checks the arguments of a request that name its subjects, by name, for a model, the names of its classes, and the
tokenizer of its text encoder, if it has one. Raises `RequestError`."""

ExampleRequest = Callable[[Any, int], dict[str, Any]]
"""Returns the named arguments of a request for some images of a model, by its config and their number: what an export
is compared with, and what is timed."""
