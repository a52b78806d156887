"""Prompts as the subjects of a request, of which a NOVA draws an image each: texts, or rows of their embeddings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from runtime.checks import check_finite, truncate
from runtime.errors import BackendError, RequestError
from runtime.model.engine_spec import CONDITION, TEXT_ENCODER, Array, Engine
from runtime.model.family_config import FamilyConfig
from runtime.model.nova_config import NovaConfig
from runtime.requests.prompt_tokenizer import PromptTokenizer
from runtime.requests.subjects import ConditionEngines
from runtime.requests.validation import as_array, finite_float32
from runtime.sampling.plan import Condition, Int

Rows = NDArray[np.float32]
"""The embeddings of a prompt, float32 [n, text_token_dim]."""


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt, as embeddings or as a text.

    Attributes:
        rows: Its embeddings, as the caller gave them; None for a text.
        text: The text; empty for embeddings.
        ids: The tokens of the text, int64 [n]; none for embeddings.
    """

    rows: Rows | None = None
    text: str = ""
    ids: Int = dataclasses.field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def key(self) -> object:
        """Prompts with equal keys are the same, and their condition is computed once."""
        return self.text if self.rows is None else id(self.rows)


@dataclasses.dataclass(frozen=True)
class PromptSubjects:
    """A prompt for each image; a `runtime.requests.subjects.Subjects`.

    Attributes:
        prompts: B prompts.
        negative: The prompts that guidance leads away from, B of them; None for the empty prompt.
        config: The model.
    """

    prompts: tuple[Prompt, ...]
    negative: tuple[Prompt, ...] | None
    config: NovaConfig

    def __len__(self) -> int:
        return len(self.prompts)

    def part(self, images: slice) -> PromptSubjects:
        """Return the prompts of some of the images."""
        negative = None if self.negative is None else self.negative[images]
        return dataclasses.replace(self, prompts=self.prompts[images], negative=negative)

    def condition(self, engines: ConditionEngines, guided: bool) -> Condition:
        """Return c [B, Lc, C]; guided, both halves [2B, Lc, C].

        Raises:
            BackendError: An engine is missing or failed, or its values are not finite.
        """
        asked = self.prompts + (self.negative or () if guided else ())
        different = {prompt.key: prompt for prompt in asked}
        places = {key: place for place, key in enumerate(different)}
        rows = self._rows([*different.values()], engines.text_encoder)
        text = np.zeros((len(rows), self.config.text_token_len, self.config.text_token_dim), np.float32)
        for row, given in zip(text, rows, strict=True):
            row[: len(given)] = given
        lengths = np.array([len(given) for given in rows], np.int64)
        computed, unconditional = _present(CONDITION, engines.condition)(text=text, lengths=lengths)
        check_finite(computed, f"engine {CONDITION}")
        condition: Condition = computed[[places[prompt.key] for prompt in asked]]
        if guided and self.negative is None:
            return np.concatenate([condition, np.broadcast_to(unconditional, condition.shape)])
        return condition

    def _rows(self, prompts: Sequence[Prompt], text_encoder: Engine | None) -> list[Rows]:
        """Return the embeddings of prompts; all texts among them are encoded together."""
        texts = [prompt for prompt in prompts if len(prompt.ids)]
        encoded: dict[str, Rows] = {}
        if texts:
            token_ids = np.zeros((len(texts), max(len(prompt.ids) for prompt in texts)), np.int64)
            for row, prompt in zip(token_ids, texts, strict=True):
                row[: len(prompt.ids)] = prompt.ids
            (outputs,) = _present(TEXT_ENCODER, text_encoder)(token_ids=token_ids)
            check_finite(outputs, f"engine {TEXT_ENCODER}")
            encoded = {prompt.text: rows[: len(prompt.ids)] for prompt, rows in zip(texts, outputs, strict=True)}
        none = np.empty((0, self.config.text_token_dim), np.float32)
        return [encoded.get(prompt.text, none) if prompt.rows is None else prompt.rows for prompt in prompts]

    def given(self, place: int) -> dict[str, Array]:
        """Return the embeddings that the caller gave for one of the images."""
        halves = {"prompt_embeds": self.prompts, "negative_prompt_embeds": self.negative or ()}
        found = {name: prompts[place].rows for name, prompts in halves.items() if prompts}
        return {name: rows for name, rows in found.items() if rows is not None}

    def record(self, place: int) -> dict[str, Any]:
        """Return number and name of no class, and the texts of one of the images."""
        negative = "" if self.negative is None else self.negative[place].text
        return {"class_number": 0, "class_name": "", "prompt": self.prompts[place].text, "negative_prompt": negative}


def _present(name: str, engine: Engine | None) -> Engine:
    if engine is None:
        raise BackendError(f"the engine {name} is missing, which a model that draws from prompts needs")
    return engine


def example_prompts(config: NovaConfig, count: int) -> dict[str, Any]:
    """Return a request with random embeddings of half the rows; a `runtime.requests.subjects.ExampleRequest`."""
    shape = (count, max(1, config.text_token_len // 2), config.text_token_dim)
    return {"prompt_embeds": [*np.random.default_rng(0).standard_normal(shape, np.float32)]}


def check_prompts(
    inputs: Mapping[str, Any], config: FamilyConfig, names: Sequence[str], tokenizer: PromptTokenizer | None
) -> PromptSubjects:
    """Check the prompts of a request; a `runtime.requests.subjects.CheckSubjects`.

    Raises:
        RequestError: They are missing, given twice, or not a text or an array [n, text_token_dim] for each image.
        BackendError: The library that reads texts is not installed.
    """
    nova = cast(NovaConfig, config)
    for name in ("labels", "observation"):
        if inputs.get(name) is not None:
            raise RequestError(
                f"this model draws from prompts; give {_wanted(nova, tokenizer)}, found {name} {truncate(inputs[name])}"
            )
    prompts = _check_half("prompt", inputs, nova, tokenizer)
    if prompts is None:
        raise RequestError(f"the prompts are missing; give {_wanted(nova, tokenizer)}, one for each image")
    if not prompts:
        raise RequestError("the prompts are an empty list; give at least one")
    if "prompt_embeds" not in inputs or inputs["prompt_embeds"] is None:
        for number, prompt in enumerate(prompts):
            if not prompt.text.strip():
                raise RequestError(f"prompt[{number}] is empty; say what the image shows")
    negative = _check_half("negative_prompt", inputs, nova, tokenizer)
    if negative is not None and len(negative) != len(prompts):
        raise RequestError(f"there must be as many negative prompts as prompts, {len(prompts)}; found {len(negative)}")
    return PromptSubjects(prompts, negative, nova)


def _wanted(config: NovaConfig, tokenizer: PromptTokenizer | None) -> str:
    """Return what a request must have, for messages."""
    arrays = f"prompt_embeds, a list of arrays [n, {config.text_token_dim}]"
    return arrays if tokenizer is None else f"prompt, a list of texts, or {arrays}"


def _check_half(
    name: str, inputs: Mapping[str, Any], config: NovaConfig, tokenizer: PromptTokenizer | None
) -> tuple[Prompt, ...] | None:
    """Return the prompts of one guidance half, `name` or its embeddings; None if neither is given."""
    texts, arrays = inputs.get(name), inputs.get(f"{name}_embeds")
    if texts is not None and arrays is not None:
        raise RequestError(f"{name} and {name}_embeds are both given; leave one out")
    if arrays is not None:
        return tuple(Prompt(rows) for rows in _check_rows(f"{name}_embeds", arrays, config))
    if texts is None:
        return None
    if tokenizer is None:
        raise RequestError(
            f"this artifact has no text encoder, so it reads no {name}; export it with --text-encoder FOLDER, or give "
            f"{name}_embeds in Python"
        )
    if not isinstance(texts, (list, tuple)):
        raise RequestError(f"{name} must be a list of texts, one for each image, found {truncate(texts)}")
    return tuple(
        Prompt(text=text, ids=tokenizer.ids(f"{name}[{number}]", text, config.text_token_len))
        for number, text in enumerate(texts)
    )


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
    return finite_float32(name, array)
