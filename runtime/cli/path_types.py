"""The type of an option that names a file to write."""

from __future__ import annotations

import pathlib
from typing import Any

import click

from runtime.errors import RequestError


class OutputFile(click.Path):
    """A file to write. The name of a folder, with a slash at its end or of one that exists, is refused in one line."""

    def __init__(self, remedy: str) -> None:
        """`remedy` is what to give instead of a folder; it ends the message."""
        super().__init__(path_type=pathlib.Path)
        self._remedy = remedy

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path of a file; raise `RequestError` for that of a folder."""
        if isinstance(value, str) and (value.endswith("/") or pathlib.Path(value).is_dir()):
            option = param.opts[0] if param else "the file to write"
            raise RequestError(f"{option} {value} is a folder; {self._remedy}")
        return super().convert(value, param, ctx)
