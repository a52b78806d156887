"""Files that a command writes under a name that the user gave: images, charts and reports.

An image in PNG, a report in JSON and an array in `.npy` carry a mark of the command and the arguments that made them. A
command replaces a file that it has made with the same arguments. Anything else that has the name is replaced only with
`--force`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import click

from runtime.cli.path_types import GivenPath, OutputFile
from runtime.errors import MarError, RequestError
from runtime.storage.files import check_writable, replacing
from runtime.storage.structured_files import FaultReport, parse_json, read_json_object

OUTPUT = GivenPath()
"""The type of an option that names what is written. It is no part of a mark, because a file may be renamed."""

_Command = TypeVar("_Command", bound=Callable[..., Any])

_MARK = "made_by"  # the key in a JSON object, and in the text of a PNG file
_FORCE = "mar.force"
_PNG, _NPY = b"\x89PNG\r\n\x1a\n", b"\x93NUMPY"
_HEADER_END = 33  # of a PNG file: the signature, and the chunk IHDR
_LONGEST_MARK = 200  # bytes
_NPY_MARK = re.compile(rb"\nmade_by (mar [a-z-]+ [0-9a-f]{16})\n\Z")  # behind the array, which readers do not look at
_MOST_CHUNKS = 64  # in front of the pixels of a PNG file, among which the mark is looked for
_DIGITS = 16


def force_option(help_text: str) -> Callable[[_Command], _Command]:
    """Return the decorator that adds the option `--force` to a command; `is_forced` reads it."""

    def store(context: click.Context, option: click.Parameter, value: bool) -> None:
        context.meta[_FORCE] = value

    return click.option("--force", is_flag=True, expose_value=False, callback=store, help=help_text)


def is_forced() -> bool:
    """Return whether the current command was given `--force`."""
    return bool(click.get_current_context().meta.get(_FORCE, False))


def check_result_file(path: pathlib.Path) -> None:
    """Check that the current command can write a file, so that long work does not start in vain.

    Raises:
        MarError: The file cannot be written.
        RequestError: The file exists, and another command or other arguments made it.
    """
    check_writable(path)
    if path.exists() and not is_forced() and _read_mark(path) != _own_mark():
        raise RequestError(
            f"{path} exists, and this command with these arguments did not make it; choose another name, or give "
            "--force to replace it"
        )


@contextlib.contextmanager
def result_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Give a temporary file, as `runtime.storage.files.replacing` does, and mark what is written there."""
    with replacing(path) as temporary:
        yield temporary
        _mark(temporary, _own_mark())


def write_result_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
    """Write a report as JSON with a mark. Raises `MarError` if it cannot be written."""
    with result_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _own_mark() -> str:
    """Return the mark of the current command: its name, and the hash of its arguments.

    The arguments themselves are left out: they hold paths, which say more than is wanted about who shares an image.
    """
    context = click.get_current_context()
    options = context.command.params
    outputs = {each.name for each in options if each.type is OUTPUT or isinstance(each.type, OutputFile)}
    arguments = {name: value for name, value in context.params.items() if name not in {"as_json", *outputs}}
    text = json.dumps(arguments, sort_keys=True, default=_as_text)
    return f"mar {context.command.name} {hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]}"


def _as_text(value: object) -> str:
    return str(value.resolve()) if isinstance(value, pathlib.Path) else repr(value)


def _read_mark(path: pathlib.Path) -> str | None:
    """Return the mark of a file; None if it has none."""
    try:
        with path.open("rb") as file:
            if file.read(len(_PNG)) == _PNG:
                for _ in range(_MOST_CHUNKS):
                    size, kind = struct.unpack(">I4s", file.read(8))
                    if kind == b"IDAT":
                        return None
                    if kind == b"tEXt" and size <= _LONGEST_MARK:
                        key, _, text = file.read(size).partition(b"\0")
                        if key == _MARK.encode():
                            return text.decode("latin-1")
                        size = 0
                    file.seek(size + 4, 1)  # the content, and its checksum
                return None
            file.seek(-min(_LONGEST_MARK, path.stat().st_size), os.SEEK_END)
            if match := _NPY_MARK.search(file.read()):
                return match[1].decode()
        mark = read_json_object(path, FaultReport(MarError)).get(_MARK)
    except (OSError, MarError, struct.error):
        return None
    return mark if isinstance(mark, str) else None


def _mark(path: pathlib.Path, mark: str) -> None:
    """Put a mark into a PNG file, a `.npy` file or a JSON object; a file of another kind stays as it is."""
    content = path.read_bytes()
    if content.startswith(_PNG):
        text = b"tEXt" + _MARK.encode() + b"\0" + mark.encode()
        chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
        path.write_bytes(content[:_HEADER_END] + chunk + content[_HEADER_END:])
    elif content.startswith(_NPY):
        with path.open("ab") as file:
            file.write(f"\n{_MARK} {mark}\n".encode())
    elif content.startswith(b"{"):
        value = {**parse_json(content), _MARK: mark}
        path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
