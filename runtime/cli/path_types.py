"""The types of arguments and options that name a file or a folder."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import click

from runtime.errors import RequestError


class GivenPath(click.Path):
    """A file or a folder. An empty name, as of a shell's variable that is not set, would be the current folder."""

    def __init__(self) -> None:
        super().__init__(path_type=pathlib.Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a path; raise `click.BadParameter` for an empty one."""
        if not os.fspath(value):
            self.fail("it is empty; give a name, or . for the current folder", param, ctx)
        return super().convert(value, param, ctx)


class OutputFile(GivenPath):
    """A file to write. The name of a folder, with a slash at its end or of one that exists, is refused in one line."""

    def __init__(self, remedy: str) -> None:
        """`remedy` is what to give instead of a folder; it ends the message."""
        super().__init__()
        self._remedy = remedy

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path of a file; raise `RequestError` for that of a folder."""
        if isinstance(value, str) and value and (value.endswith("/") or pathlib.Path(value).is_dir()):
            option = param.opts[0] if param else "the file to write"
            raise RequestError(f"{option} {value} is a folder; {self._remedy}")
        return super().convert(value, param, ctx)
