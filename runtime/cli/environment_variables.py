"""Options about the machine, whose values a variable of the environment can give to all commands.

What decides the images, such as `--preset` or `--seed`, has no variable: a command line generates the same images in
every shell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import click

Variables = dict[str, str]
"""The variables from which options took their values, with these values as text. The object of the root context."""


class MachineOption(click.Option):
    """An option with a variable of the environment: `MAR_` and the option's name, such as `MAR_THREADS`."""

    def __init__(self, *declarations: Any, **settings: Any) -> None:
        super().__init__(*declarations, **settings)
        self.envvar = "MAR_" + self.opts[0].removeprefix("--").replace("-", "_").upper()
        self.show_envvar = True  # in the help

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        """Return the value of the variable, and note that it is used."""
        value = super().resolve_envvar_value(ctx)
        variables = ctx.find_object(dict)
        if value is not None and variables is not None:
            variables[str(self.envvar)] = value
        return value

    def get_error_hint(self, ctx: click.Context | None) -> str:
        """Return the name of the option. `name_variables` adds the variable, if the value is from there."""
        return click.Parameter.get_error_hint(self, ctx)


def name_variables(message: str, variables: Mapping[str, str]) -> str:
    """Add to an error message the variables of the environment that it is about.

    Args:
        message: The message.
        variables: The variables that were used, with their values.
    """
    named = [f"{name}={value}" for name, value in variables.items() if _is_about(message, name, value)]
    return f"{message}; the environment sets {', '.join(named)}" if named else message


def _is_about(message: str, variable: str, value: str) -> bool:
    """Return whether a message contains the name of the variable's option, or a value that is no number."""
    option = variable.removeprefix("MAR_").lower().replace("_", "[-_ ]")
    words = option if value.isdigit() else f"{option}|{re.escape(value)}"
    return re.search(rf"(?<!\w)({words})(?!\w)", message) is not None
