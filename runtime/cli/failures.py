"""What the command line says about an exception: a line and an exit code."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import click

from runtime.cli.environment_variables import name_variables
from runtime.errors import MarError, RequestError, reason_and_remedy


def explain(error: BaseException, variables: Mapping[str, str]) -> tuple[str, int] | None:
    """Return the line and the exit code for an exception; None for a bug, whose traceback is to be seen.

    The line is empty if the reader of the output has ended.

    Args:
        error: The exception.
        variables: The variables of the environment from which options have their values. The line names those that it
            is about.
    """
    if isinstance(error, BrokenPipeError):
        return "", 1
    for kind, describe in _KINDS:
        if isinstance(error, kind):
            message, code = describe(error)
            return name_variables(message, variables), code
    return None


def _wrong_use(error: click.UsageError) -> tuple[str, int]:
    command = error.ctx.command_path if error.ctx else "mar"
    message = error.format_message().rstrip(".")
    if isinstance(error, click.NoSuchOption):
        message = _no_such_option(error)
    return f"{message} (see {command} --help)", RequestError.exit_code


def _no_such_option(error: click.NoSuchOption) -> str:
    message = f"No such option {error.option_name}"
    group = error.ctx.parent if error.ctx else None
    if group and any(error.option_name in option.opts for option in group.command.params):
        return f"{message}; it stands before the command: {group.command_path} {error.option_name} ..."
    return f"{message}; did you mean {error.possibilities[0]}?" if error.possibilities else message


def _missing_package(error: ModuleNotFoundError) -> tuple[str, int]:
    return f"this command needs the Python package {error.name}; pip install 'mar-runtime[train,export]'", 1


def _refused(error: OSError) -> tuple[str, int]:
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
    return f"{where}{reason_and_remedy(error)}", 1


# The first that fits counts.
_KINDS: tuple[tuple[type[BaseException], Callable[[Any], tuple[str, int]]], ...] = (
    (click.Abort, lambda error: ("interrupted", 130)),
    (KeyboardInterrupt, lambda error: ("interrupted", 130)),
    (MarError, lambda error: (str(error), error.exit_code)),
    (click.UsageError, _wrong_use),
    (click.ClickException, lambda error: (error.format_message(), error.exit_code)),
    (ModuleNotFoundError, _missing_package),
    (ImportError, lambda error: (f"a package does not load: {error}; install it again", 1)),
    (OSError, _refused),
)
