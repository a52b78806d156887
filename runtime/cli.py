"""The command `mar`: one lazily loaded group, so that running a model never imports what trains it."""

from __future__ import annotations

import importlib
import sys

import click

from runtime.errors import MarError

# Command -> (where it lives, what it does). Named as text: importing one room must not import another.
_COMMANDS = {
    "train": ("training.cli:train", "Train a model, or go on with a run."),
    "export": ("mar_export.cli:export", "Turn a checkpoint into an artifact of engines."),
}


class LazyGroup(click.Group):
    """A group that imports a command's module only when that command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute = _COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


@click.group(cls=LazyGroup)
def mar() -> None:
    """Train, export and run masked autoregressive image models."""


def main() -> None:
    try:
        mar(standalone_mode=False)
    except MarError as error:
        print(f"mar: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
