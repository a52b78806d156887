"""The option `--json`: standard output gets one JSON document, and nothing else.

`docs/reference/json.md` describes the documents, and `docs/reference/schemas` has a JSON Schema of each.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import click

from runtime.errors import RequestError
from runtime.log import LOG

FORMAT = 1
"""The version of the documents. New keys do not change it; it grows if a key is removed or gets another meaning."""

PrintDocument = Callable[[Mapping[str, Any]], None]
"""Takes the document of a command. Without `--json` it does nothing."""


def json_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add the option `--json` to a command, which gets a function as its argument `print_document`.

    The command calls it once, when everything else has succeeded. A command that fails before has printed nothing. One
    whose finding is a failure, such as a damaged artifact, calls it and then raises.
    """

    @click.option(
        "--json",
        "as_json",
        is_flag=True,
        help="Print one JSON document to standard output, the rest to standard error.",
    )
    @functools.wraps(command)
    def run(*arguments: Any, as_json: bool, **options: Any) -> None:
        if not as_json:
            command(*arguments, print_document=lambda document: None, **options)
            return
        if sys.stdout is None:
            raise RequestError("--json prints to standard output, which is closed; open it, or leave --json out")
        documents: list[Mapping[str, Any]] = []
        try:
            with _output_elsewhere():
                command(*arguments, print_document=documents.append, **options)
        finally:
            for document in documents:
                click.echo(json.dumps(document, indent=2, allow_nan=False))

    return run


def json_document(command: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document of a command: its name, the version of the format, and the content."""
    return {"command": command, "format": FORMAT, **content}


@contextlib.contextmanager
def _output_elsewhere() -> Iterator[None]:
    """Write to standard error what this process, its libraries and its child processes print on standard output.

    If the log level has no notes, or there is no standard error, nobody gets it.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    with pathlib.Path(os.devnull).open("w", encoding="utf-8") as nothing:
        shown = sys.stderr is not None and LOG.isEnabledFor(logging.INFO)
        try:
            os.dup2(2 if shown else nothing.fileno(), 1)
            with contextlib.redirect_stdout(sys.stderr if shown else nothing):
                yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)
