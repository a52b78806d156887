"""A model that a service offers: its generator, its scheduler, and the checks of what is asked of it."""

from __future__ import annotations

import functools
import re
import secrets
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.checks import truncate
from runtime.errors import RequestError
from runtime.generator import Generator
from runtime.image_records.subject import PromptText, Subject
from runtime.model.families import check_supported
from runtime.requests.inpainting import Edit, check_mask
from runtime.requests.prompt_subjects import check_prompts
from runtime.requests.validation import check_batch, check_labels, parse_class
from runtime.sampling.constraints import is_editable, plan_for
from runtime.sampling.plan import Plan
from runtime.sampling.settings import Sampling
from runtime.service.drawing import Drawing
from runtime.service.scheduler import Scheduler, SchedulerEvents
from runtime.service.settings import ServiceSettings

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RANDOM_SEEDS = 2**32  # a seed that is drawn at random is a number that every JSON reader can hold
_PLANS_KEPT = 256
_WARM_UP = PromptText("an image")


class ServedModel:
    """A model under a name.

    Attributes:
        name: The name by which requests ask for it.
        generator: Draws its images.
        scheduler: Decides when, and which of them together.
        default_preset: The preset of requests that name none; None for the artifact's own settings.
        created: When it was loaded, in seconds since 1970.
        ready: Whether it has drawn an image.
    """

    def __init__(
        self, name: str, generator: Generator, settings: ServiceSettings, events: SchedulerEvents | None = None
    ) -> None:
        """Start the scheduler of a model.

        Args:
            name: Its name.
            generator: Its generator, which the model closes.
            settings: The settings of the service.
            events: Gets the reports of the scheduler.

        Raises:
            RequestError: The name or the preset has a wrong value, or the artifact makes no images.
        """
        check_model_name(name)
        check_supported(generator.manifest.model, "mar serve")
        generator.manifest.check_decoder(f"the artifact of {name}")
        generator.manifest.check_text_encoder(f"the artifact of {name}")
        self.name, self.generator, self.created, self.ready = name, generator, int(time.time()), False
        self.default_preset, self._settings = settings.preset, settings
        self._plan = functools.lru_cache(_PLANS_KEPT)(self._checked_plan)
        self.sampling(self.default_preset)
        self.scheduler = Scheduler(generator, settings, events)

    @property
    def reads_text(self) -> bool:
        """Whether a prompt is a text, and not the name of a class."""
        return self.generator.tokenizer is not None

    def subject(self, prompt: object, negative_prompt: str | None = None) -> Subject:
        """Return what a prompt names: for a model of classes, a class by name or number.

        Raises:
            RequestError: The model has no such class, or does not read such a prompt.
            BackendError: The library that reads texts is not installed.
        """
        if (tokenizer := self.generator.tokenizer) is not None:
            config, negative = self.generator.manifest.model, negative_prompt or None
            inputs = {"prompt": [prompt], "negative_prompt": None if negative is None else [negative]}
            check_prompts(inputs, config, (), tokenizer)
            return PromptText(str(prompt), negative_prompt or "")
        if negative_prompt:
            raise RequestError("a model of classes has no negative prompt; leave it out, and set guidance_scale")
        if isinstance(prompt, bool) or not isinstance(prompt, (str, int)):
            raise RequestError(f"the prompt must be the name or the number of a class, found {truncate(prompt)}")
        label = parse_class(prompt, self.generator.class_names) if isinstance(prompt, str) else prompt
        return int(check_labels([label], self.generator.manifest.model)[0])

    def text_tokens(self, subject: Subject) -> int:
        """Return the tokens of text that a request reads; a class is one."""
        tokenizer = self.generator.tokenizer
        if not isinstance(subject, PromptText) or tokenizer is None:
            return 1
        return sum(tokenizer.count(text) for text in (subject.prompt, subject.negative))

    def sampling(self, preset: str | None, **overrides: Any) -> Sampling:
        """Return the complete settings of a request.

        Args:
            preset: The name of a preset. None: the artifact's own settings.
            **overrides: Single settings; None for those that are not given.

        Raises:
            RequestError: A name is unknown, or the model does not allow a setting.
        """
        sampling = self.generator.sampling(preset=preset, **overrides)
        self._plan(sampling, 0)
        return sampling

    def edit(self, known: NDArray[np.uint8], mask: NDArray[np.bool_], sampling: Sampling) -> Edit:
        """Return a checked edit.

        Args:
            known: The image, uint8 [H, W, c].
            mask: True where it is regenerated, bool [H, W].
            sampling: The settings of the request.

        Raises:
            RequestError: The model cannot edit images, or the mask or the settings do not go with it.
        """
        if not self.can_edit:
            raise RequestError(
                f"{self.name} cannot edit images: it needs an artifact with an encoder (mar export --encoder), of a "
                "model that was trained in random order"
            )
        self._plan(sampling, check_mask(mask, False, self.generator.manifest.model).known)
        return Edit(known, mask)

    @property
    def can_edit(self) -> bool:
        """Whether the model can regenerate a part of an image."""
        manifest = self.generator.manifest
        return is_editable(manifest.model) and (manifest.tokenizer == "pixel" or "encoder" in manifest.engines)

    @property
    def iterations(self) -> dict[str, int]:
        """The number of iterations of each preset, by its name."""
        return {name: len(self._plan(each, 0).iterations) for name, each in self.generator.presets.items()}

    def warm_up(self) -> Drawing:
        """Return the request whose image shows that the model works."""
        return Drawing((_WARM_UP if self.reads_text else 0,), (0,), (0,), self.sampling(self.default_preset))

    def close(self) -> None:
        """Fail what waits, and free the engines."""
        self.scheduler.close()
        self.generator.close()

    def _checked_plan(self, sampling: Sampling, known: int) -> Plan:
        config = self.generator.manifest.model
        plan = plan_for(config, sampling, known)
        check_batch(self._settings.max_batch, plan.noise_steps, config)
        return plan


def check_model_name(name: str) -> None:
    """Raise `RequestError` unless a model can have this name."""
    if not _NAME.fullmatch(name):
        raise RequestError(
            f"the name of a model must have 1 to 64 letters, digits, '-', '_' and '.', found {truncate(name)}; "
            "write NAME=ARTIFACT"
        )


def random_seed() -> int:
    """Return the seed of a request that gives none."""
    return secrets.randbelow(_RANDOM_SEEDS)


def image_indices(first: int | None, count: int) -> Sequence[int]:
    """Return the numbers of the images of a request in the sequence of their seed."""
    return range(first or 0, (first or 0) + count)
