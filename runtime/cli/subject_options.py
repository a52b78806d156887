"""Options that say what images show: `--class` for a model of classes, `--prompt` for one that draws from text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from runtime.errors import RequestError
from runtime.generator import Generator
from runtime.image_records.subject import PromptText, Subject
from runtime.requests.validation import check_labels, parse_class

_Command = TypeVar("_Command", bound=Callable[..., Any])


def subject_options(class_help: str, prompt_help: str) -> Callable[[_Command], _Command]:
    """Return a decorator that adds `--class`, `--prompt` and `--negative-prompt`, for `ChosenSubjects` to take."""

    def add(command: _Command) -> _Command:
        for option in (
            click.option(
                "--negative-prompt",
                metavar="TEXT",
                help="What the images should not show, for a model that draws from text.",
            ),
            click.option("--prompt", "prompts", metavar="TEXT", multiple=True, help=prompt_help),
            click.option("--class", "classes", metavar="NUMBER|NAME", multiple=True, help=class_help),
        ):
            command = option(command)
        return command

    return add


@dataclasses.dataclass(frozen=True)
class ChosenSubjects:
    """The values of these options."""

    classes: Sequence[str]
    prompts: Sequence[str]
    negative_prompt: str | None

    def of(self, generator: Generator, artifact: object) -> list[Subject]:
        """Return the subjects that are given for a model, none if none is.

        Args:
            generator: The generator of the model.
            artifact: Its artifact, for messages.

        Raises:
            RequestError: They are of the other kind, or the model does not know one of them.
            BackendError: The library that reads prompts is not installed.
        """
        config = generator.manifest.model
        if config.class_num:
            if self.prompts or self.negative_prompt is not None:
                option = "--prompt" if self.prompts else "--negative-prompt"
                raise RequestError(f"{artifact} draws classes, not prompts; give --class in place of {option}")
            labels = [parse_class(text, generator.class_names) for text in self.classes]
            return [*check_labels(labels, config).tolist()] if labels else []
        if self.classes:
            raise RequestError(f"{artifact} draws from text, not from classes; give --prompt in place of --class")
        generator.manifest.check_text_encoder(str(artifact))
        return [PromptText(prompt, self.negative_prompt or "") for prompt in self.prompts]
