"""Old spellings of options, and the one line that names the new spelling of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

from runtime.errors import RequestError

RENAMED: Mapping[str, Mapping[str, str]] = {
    "train": {"--preset": "--model", "--attention": "--attention-precision"},
    "train-tokenizer": {"--preset": "--model", "--judged": "--eval-count"},
    "flow-head": {"--images": "--count", "--pictures": "--count", "--config": "--model-config"},
    "distill": {"--images": "--count", "--pictures": "--count", "--config": "--model-config"},
    "import": {"--config": "--model-config"},
    "export": {"--config": "--model-config"},
    "calibrate": {"--samples": "--count", "--judged": "--eval-count", "--steps": "mar optimize-steps"},
    "optimize-steps": {"--images": "--count", "--pictures": "--count"},
    "bench": {"--plan": "--preset", "--contestant": "--runner", "--config": "--model-config"},
    "study": {"--images": "--count"},
    "evaluate": {
        "--images": "--count",
        "--real": "--real-count",
        "--at-least": "--min-accuracy",
        "--config": "--model-config",
    },
}
"""For each command its old options, and for each of these the option or the command that replaces it."""


def check_renamed(name: str, command: click.Command, arguments: Sequence[str]) -> None:
    """Check that no argument of a command is an option under its old name.

    Args:
        name: The command's name, such as `bench`.
        command: The command itself. An option that it still has is never an old one.
        arguments: Everything that follows the command's name on the command line.

    Raises:
        RequestError: An argument is an old spelling; the message names the new one.
    """
    current = {spelling for option in command.params for spelling in (*option.opts, *option.secondary_opts)}
    for argument in arguments:
        if argument == "--":
            return
        old = argument.split("=")[0]
        new = RENAMED.get(name, {}).get(old)
        if new is None or old in current:
            continue
        if new.startswith("mar "):
            raise RequestError(f"{old} of mar {name} is now a command of its own: {new} (see {new} --help)")
        raise RequestError(f"{old} of mar {name} is now {new} (see mar {name} --help)")
