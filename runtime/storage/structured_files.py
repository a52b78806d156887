"""The one reader of JSON, TOML and `.npz` files, both those of this project and those of others.

Limits are checked before a file is parsed: its bytes, its nesting, the digits of its numbers, and the members, sizes
and compressions of an archive. Text is UTF-8 with or without a byte order mark, whatever the locale. Every fault
of a file is one line, raised as the error that the caller names.
"""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import json
import math
import pathlib
import sys
import zipfile
from collections.abc import Iterator
from types import TracebackType
from typing import IO, Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from runtime.checks import truncate
from runtime.errors import MarError
from runtime.storage.schema import parse_object

JSON_BYTES = 32 * 2**20
"""The most bytes of a JSON file, and of a line of a log."""
TOML_BYTES = 2**16
"""The most bytes of a TOML file."""
DEPTH = 32
"""How deep objects and lists may be nested."""
MEMBERS = 20_000
"""The most arrays in an .npz file."""
ARRAY_BYTES = 8 * 2**30
"""The most bytes of an array."""

_TOML_LINE = 8192  # characters: a key of n parts takes tomllib n^2 steps
_DIGITS = 20
_INTEGERS = (-(2**63), 2**64 - 1)
_BLOCK = 2**20
_ENCRYPTED = 1  # bit of a member's flags
_MARKS = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}

_Kind = TypeVar("_Kind")


@dataclasses.dataclass(frozen=True)
class FaultReport:
    """How a failure to read a file is reported.

    Attributes:
        error: The class of the error.
        remedy: What a person can do; it ends the message.
    """

    error: type[MarError]
    remedy: str = ""

    def raise_(self, where: object, reason: object, what: str = "") -> NoReturn:
        """Raise the error: `where: what (reason); remedy`, on one line."""
        text = " ".join(str(reason).split())
        problem = f"{what} ({text})" if what else text
        raise self.error(f"{where}: {problem}{f'; {self.remedy}' if self.remedy else ''}") from None


def read_json(path: pathlib.Path, fault_report: FaultReport) -> Any:
    """Return the value in a JSON file.

    Raises:
        MarError: The class in `fault_report`; the file is missing, too large, not UTF-8 or not JSON; an object has a
            key twice; or a value is nested too deep, has too many digits or is not finite.
    """
    content = _read_bytes(path, JSON_BYTES, fault_report)
    try:
        return parse_json(content)
    except ValueError as error:
        fault_report.raise_(path, error, "not readable JSON")


def read_object(path: pathlib.Path, kind: type[_Kind], fault_report: FaultReport) -> _Kind:
    """Return the object of the dataclass `kind` that a JSON file describes; see `read_json` and `parse_object`."""
    value = read_json(path, fault_report)
    try:
        return parse_object(kind, value, str(path))
    except ValueError as error:
        fault_report.raise_(path, str(error).removeprefix(f"{path}: "))


def read_json_object(path: pathlib.Path, fault_report: FaultReport) -> dict[str, Any]:
    """Return the object in a JSON file, whose keys the caller checks; see `read_json`."""
    value = read_json(path, fault_report)
    if not isinstance(value, dict):
        fault_report.raise_(path, f"expected a JSON object, found {type(value).__name__}")
    return value


def read_json_lines(path: pathlib.Path, kind: type[_Kind], fault_report: FaultReport) -> list[_Kind]:
    """Return the entries of a log, one JSON object a line; see `read_json` and `parse_object`.

    A last line that is no entry is left out: a running or a killed process leaves one. Any other is an error.
    """
    entries: list[_Kind] = []
    problem: tuple[int, ValueError] | None = None
    for number, line in enumerate(_lines(path, fault_report), start=1):
        if problem is not None:
            fault_report.raise_(f"{path}: line {problem[0]}", problem[1], "no entry of this log")
        try:
            entries.append(parse_object(kind, parse_json(line), "entry"))
        except ValueError as error:
            problem = number, error
    return entries


def parse_json(content: bytes | str) -> Any:
    """Return the value of a JSON text, within the limits of this module. Raises `ValueError`."""
    text = content if isinstance(content, str) else _decode(content)
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys, parse_int=_parse_int, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError(f"nested more than {DEPTH} deep") from None
    _check_values(value)
    return value


def read_toml(path: pathlib.Path, fault_report: FaultReport) -> dict[str, Any]:
    """Return the values in a TOML file; raises the error in `fault_report`, as `read_json` does."""
    content = _read_bytes(path, TOML_BYTES, fault_report)
    try:
        return parse_toml(content)
    except ValueError as error:  # also of a number with more digits than Python converts
        fault_report.raise_(path, str(error).split("; use sys.set")[0], "not TOML")


def parse_toml(content: bytes | str) -> dict[str, Any]:
    """Return the values of a TOML text, within the limits of this module. Raises `ValueError`."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    text = content if isinstance(content, str) else _decode(content)
    if max(map(len, text.splitlines()), default=0) > _TOML_LINE:
        raise ValueError(f"a line of more than {_TOML_LINE} characters")
    try:
        values: dict[str, Any] = tomllib.loads(text)
    except RecursionError:
        raise ValueError(f"nested more than {DEPTH} deep") from None
    _check_values(values, finite=False)
    return values


class NpzFile:
    """An open `.npz` file, whose arrays are checked before they are read. It is a context manager.

    Attributes:
        names: The names of its arrays.
    """

    def __init__(self, path: pathlib.Path, fault_report: FaultReport) -> None:
        """Open a file.

        Raises:
            MarError: The class in `fault_report`; the file is missing, or not an archive within the limits.
        """
        self._path, self._fault_report = path, fault_report
        try:
            if path.exists() and not (path.is_file() or path.is_dir()):
                raise ValueError("it is not a regular file")  # a pipe has no end to seek, a device none at all
            self._file = path.open("rb")
        except (OSError, ValueError) as error:
            fault_report.raise_(path, getattr(error, "strerror", None) or error, "cannot be read")
        with contextlib.ExitStack() as unless_opened:
            unless_opened.callback(self._file.close)
            with self._damage("not an .npz file"):
                self._archive = zipfile.ZipFile(self._file)
                members = self._archive.infolist()
                self._members = {member.filename.removesuffix(".npy"): member for member in members}
                if len(members) > MEMBERS or len(self._members) < len(members):
                    raise ValueError(f"more than {MEMBERS} arrays, or two of one name")
            unless_opened.pop_all()
        self.names = tuple(self._members)

    def read(
        self, name: str, kinds: str, shape: tuple[int | None, ...] | None = None, most_bytes: int = ARRAY_BYTES
    ) -> NDArray[Any]:
        """Return an array.

        Args:
            name: Its name.
            kinds: The kinds of numpy dtypes that it may have, such as `iu` or `f`.
            shape: Its shape, with None for sizes that are not known; None for any shape.
            most_bytes: The most bytes that it may have.

        Raises:
            MarError: The class in the file's `FaultReport`; there is no such array, or it is damaged.
        """
        if name not in self._members:
            self._fault_report.raise_(self._path, f"not an .npz file with an array {name}")
        with self._damage(f"the array {truncate(name)} cannot be read"):
            return self._read(self._members[name], kinds, shape, most_bytes)

    def _read(
        self, member: zipfile.ZipInfo, kinds: str, shape: tuple[int | None, ...] | None, most_bytes: int
    ) -> NDArray[Any]:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & _ENCRYPTED:
            raise ValueError("it is compressed in a way that numpy does not use, or encrypted")
        with self._archive.open(member) as file:
            version = np.lib.format.read_magic(file)
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }.get(version)
            if read_header is None:
                raise ValueError(f"an array of format {version}")
            actual, fortran, dtype = read_header(file)
            if dtype.kind not in kinds or not (shape is None or shape_fits(actual, shape)):
                expected = "" if shape is None else f" {['any' if size is None else size for size in shape]}"
                raise ValueError(f"{truncate(dtype)} {truncate(list(actual))}, expected dtypes {kinds}{expected}")
            size = member.file_size - file.tell()
            if any(side < 0 for side in actual) or math.prod(actual) * dtype.itemsize != size:
                raise ValueError(f"{size} bytes for {truncate(dtype)} {truncate(list(actual))}")
            if size > most_bytes:
                raise ValueError(f"{size} bytes, expected at most {most_bytes}")
            data = _read_exactly(file, size)
        return np.frombuffer(data, dtype).reshape(actual, order="F" if fortran else "C")

    @contextlib.contextmanager
    def _damage(self, what: str) -> Iterator[None]:
        """Turn whatever damaged bytes raise into the file's error; zip files can raise nearly any exception."""
        try:
            yield
        except (MarError, MemoryError):
            raise
        except Exception as error:
            self._fault_report.raise_(self._path, error or type(error).__name__, what)

    def __enter__(self) -> NpzFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._archive.close()
        self._file.close()


def shape_fits(actual: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    """Return whether a shape is the expected one, in which None stands for any size."""
    return len(actual) == len(expected) and all(
        want in (None, size) for want, size in zip(expected, actual, strict=True)
    )


def read_bytes(path: pathlib.Path, most: int = JSON_BYTES) -> bytes:
    """Return the content of a file. Raises `OSError`, and `ValueError` if it has more than `most` bytes."""
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"more than {most} bytes")
    return content


def _read_bytes(path: pathlib.Path, most: int, fault_report: FaultReport) -> bytes:
    try:
        return read_bytes(path, most)
    except (OSError, ValueError) as error:  # ValueError also of a path with a null byte
        fault_report.raise_(path, getattr(error, "strerror", None) or error, "cannot be read")


def _read_exactly(file: IO[bytes], size: int) -> bytearray:
    """Read a file of `size` bytes to its end, where a member of an archive compares its checksum."""
    data = bytearray()
    while part := file.read(min(_BLOCK, size + 1 - len(data))):
        data += part
    if len(data) != size:
        raise ValueError(f"{len(data)} bytes where its header has {size}")
    return data


def _lines(path: pathlib.Path, fault_report: FaultReport) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while line := file.readline(JSON_BYTES + 1):
                if len(line) > JSON_BYTES:
                    fault_report.raise_(path, f"a line of more than {JSON_BYTES} bytes")
                yield line
    except (OSError, ValueError) as error:
        fault_report.raise_(path, getattr(error, "strerror", None) or error, "cannot be read")


def _decode(content: bytes) -> str:
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            raise ValueError(f"the text is {encoding}, expected UTF-8; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text, byte {error.start} is 0x{content[error.start]:02x}") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {truncate(next(key for key in keys if keys.count(key) > 1))} is there twice")
    return value


def _parse_int(digits: str) -> int:
    if len(digits.lstrip("-")) > _DIGITS:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _check_values(root: object, finite: bool = True) -> None:
    """Check nesting, numbers and texts of a parsed value, without recursion. Raises `ValueError`.

    Args:
        root: The value.
        finite: Whether infinity and NaN are refused here; TOML has them, and the schema of a config refuses them.
    """
    waiting: list[tuple[object, int]] = [(root, 0)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, (dict, list)):
            if depth == DEPTH:
                raise ValueError(f"nested more than {DEPTH} deep")
            waiting += [(each, depth + 1) for each in (value.values() if isinstance(value, dict) else value)]
            if isinstance(value, dict):
                waiting += [(key, depth) for key in value]
        elif isinstance(value, str):
            value.encode("utf-8", "surrogateescape")  # which Python writes for names of files that are not UTF-8
        elif isinstance(value, int) and not _INTEGERS[0] <= value <= _INTEGERS[1]:
            raise ValueError("a whole number of more than 64 bits")
        elif finite and isinstance(value, float) and not math.isfinite(value):
            raise ValueError("a number that is not finite")
