"""Prompts as the subjects of a request: rows of text embeddings, of which a NOVA draws an image each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from runtime.checks import truncate
from runtime.errors import BackendError, RequestError
from runtime.model.engine_spec import Array
from runtime.model.family_config import FamilyConfig
from runtime.model.nova_config import NovaConfig
from runtime.requests.subjects import ConditionEngines
from runtime.requests.validation import as_array
from runtime.sampling.plan import Condition

Rows = NDArray[np.float32]
"""The embeddings of a prompt, float32 [n, text_token_dim]."""


@dataclasses.dataclass(frozen=True)
class PromptSubjects:
    """A prompt for each image; a `runtime.requests.subjects.Subjects`.

    Attributes:
        prompts: B prompts.
        negative: The prompts that guidance leads away from, B of them; None for the empty prompt.
        length: S, the most rows of a prompt.
    """

    prompts: tuple[Rows, ...]
    negative: tuple[Rows, ...] | None
    length: int

    def __len__(self) -> int:
        return len(self.prompts)

    def part(self, images: slice) -> PromptSubjects:
        """Return the prompts of some of the images."""
        negative = None if self.negative is None else self.negative[images]
        return dataclasses.replace(self, prompts=self.prompts[images], negative=negative)

    def condition(self, engines: ConditionEngines, guided: bool) -> Condition:
        """Return c [B, Lc, C]; guided, both halves [2B, Lc, C]."""
        if engines.condition is None:
            raise BackendError("the engine condition is missing, which a model that draws from prompts needs")
        asked = self.prompts + (self.negative or () if guided else ())
        text = np.zeros((len(asked), self.length, asked[0].shape[1]), np.float32)
        for rows, prompt in zip(text, asked, strict=True):
            rows[: len(prompt)] = prompt
        lengths = np.array([len(prompt) for prompt in asked], np.int64)
        condition, unconditional = engines.condition(text=text, lengths=lengths)
        if len(asked) == len(self) and guided:
            return np.concatenate([condition, np.broadcast_to(unconditional, condition.shape)])
        return condition

    def given(self, place: int) -> dict[str, Array]:
        """Return the prompts of one of the images."""
        negative = {} if self.negative is None else {"negative_prompt_embeds": self.negative[place]}
        return {"prompt_embeds": self.prompts[place], **negative}

    def record(self, place: int) -> dict[str, Any]:
        """Return number and name of no class."""
        return {"class_number": 0, "class_name": ""}


def check_prompts(inputs: Mapping[str, Any], config: FamilyConfig, names: Sequence[str]) -> PromptSubjects:
    """Check the embeddings of a request; a `runtime.requests.subjects.CheckSubjects`.

    Raises:
        RequestError: They are missing, or not one array [n, text_token_dim] for each image.
    """
    nova = cast(NovaConfig, config)
    for name in ("labels", "observation"):
        if inputs.get(name) is not None:
            raise RequestError(
                f"this model draws from prompts; give prompt_embeds, a list of arrays [n, {nova.text_token_dim}], "
                f"found {name} {truncate(inputs[name])}"
            )
    if inputs.get("prompt_embeds") is None:
        raise RequestError(f"prompt_embeds is missing, a list of arrays [n, {nova.text_token_dim}], one for each image")
    prompts = _check_rows("prompt_embeds", inputs["prompt_embeds"], nova)
    if not prompts:
        raise RequestError("prompt_embeds is empty; give at least one prompt")
    negative = inputs.get("negative_prompt_embeds")
    if negative is None:
        return PromptSubjects(prompts, None, nova.text_token_len)
    checked = _check_rows("negative_prompt_embeds", negative, nova)
    if len(checked) != len(prompts):
        raise RequestError(f"negative_prompt_embeds must have one array a prompt, {len(prompts)}; found {len(checked)}")
    return PromptSubjects(prompts, checked, nova.text_token_len)


def _check_rows(name: str, values: Any, config: NovaConfig) -> tuple[Rows, ...]:
    """Return the argument `name` as one array for each prompt."""
    if not isinstance(values, (list, tuple, np.ndarray)) or (isinstance(values, np.ndarray) and values.ndim != 3):
        raise RequestError(
            f"{name} must be a list of arrays [n, {config.text_token_dim}], one for each image, found "
            f"{list(values.shape) if isinstance(values, np.ndarray) else truncate(values)}"
        )
    return tuple(_check_prompt(f"{name}[{number}]", rows, config) for number, rows in enumerate(values))


def _check_prompt(name: str, rows: Any, config: NovaConfig) -> Rows:
    array = as_array(name, rows)
    if array.ndim != 2 or array.shape[1] != config.text_token_dim or array.dtype.kind != "f":
        raise RequestError(
            f"{name} must be floating point of shape [n, {config.text_token_dim}], found {array.dtype} "
            f"{list(array.shape)}"
        )
    if len(array) > config.text_token_len:
        raise RequestError(f"{name} must have at most {config.text_token_len} rows, found {len(array)}; cut it")
    with np.errstate(over="ignore"):
        checked = array.astype(np.float32)
    if not np.isfinite(checked).all():
        raise RequestError(f"{name} holds values that are not finite in float32")
    return checked
