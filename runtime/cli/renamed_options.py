"""Old spellings of options, and the one line that names the new spelling of each."""

from __future__ import annotations

import itertools
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
    "optimize-steps": {"--images": "--count", "--pictures": "--count", "--replace": "--force", "--json": "--report"},
    "bench": {"--plan": "--preset", "--contestant": "--runner", "--config": "--model-config"},
    "study": {"--images": "--count", "--json": "--report"},
    "evaluate": {
        "--images": "--count",
        "--real": "--real-count",
        "--at-least": "--min-accuracy",
        "--config": "--model-config",
    },
}
"""For each command its old options, and for each of these the option or the command that replaces it."""

FLAGS: Mapping[str, Mapping[str, str]] = {"bench": {"--json": "--report"}, "evaluate": {"--json": "--report"}}
"""For each command its options that took a file and are flags now, and the option that takes the file."""


def check_renamed(name: str, command: click.Command, arguments: Sequence[str]) -> None:
    """Check that no argument of a command is an option under its old name, or with a file that it no longer takes.

    Args:
        name: The command's name, such as `bench`.
        command: The command itself. An option that it still has is never an old one.
        arguments: Everything that follows the command's name on the command line.

    Raises:
        RequestError: An argument is an old spelling; the message names the new one.
    """
    current = {spelling for option in command.params for spelling in (*option.opts, *option.secondary_opts)}
    for argument, following in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
        if argument == "--":
            return
        old, _, value = argument.partition("=")
        _check_flag(name, old, value or following)
        new = RENAMED.get(name, {}).get(old)
        if new is None or old in current:
            continue
        if new.startswith("mar "):
            raise RequestError(f"{old} of mar {name} is now a command of its own: {new} (see {new} --help)")
        raise RequestError(f"{old} of mar {name} is now {new} (see mar {name} --help)")


def _check_flag(name: str, option: str, file: str) -> None:
    new = FLAGS.get(name, {}).get(option)
    if new is not None and file.endswith(".json"):
        raise RequestError(
            f"{option} of mar {name} now prints to standard output; to write the file, use {new} {file} "
            f"(see mar {name} --help)"
        )
