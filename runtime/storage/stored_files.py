"""Files that this project writes and reads again: each carries the hash of its content, which is compared when read.

A flipped bit in a number or a swapped array can be read without an error, so only a hash shows it. The error for a
damaged file says what to delete.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import IO, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from runtime.storage.files import replacing, write_json
from runtime.storage.schema import parse_object
from runtime.storage.structured_files import FaultReport, NpzFile, parse_json, read_json_object

HASH_KEY = "mar_content_sha256"
"""The key of the hash in a header."""

_HEADER = "header"
_HEADER_BYTES = 2**24
_ALTERED = "altered since it was written, its content has another hash"

_Kind = TypeVar("_Kind")


def content_sha256(header: Mapping[str, Any], arrays: Iterable[tuple[str, NDArray[Any]]] = ()) -> str:
    """Return the hash of a header of JSON values, and of the names, dtypes, shapes and bytes of arrays in order."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, array in arrays:
        digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def array_sha256(array: NDArray[Any]) -> str:
    """Return the hash of the dtype, the shape and the bytes of an array."""
    return content_sha256({}, [("", array)])


def with_hash(header: Mapping[str, Any], arrays: Iterable[tuple[str, NDArray[Any]]] = ()) -> dict[str, Any]:
    """Return a header with the hash of it and of arrays."""
    return {**header, HASH_KEY: content_sha256(header, arrays)}


def check_hash(
    header: Mapping[str, Any],
    arrays: Iterable[tuple[str, NDArray[Any]]],
    where: pathlib.Path,
    fault_report: FaultReport,
) -> dict[str, Any]:
    """Return a header without its hash, after comparing it with the hash of the header and of arrays.

    Raises:
        MarError: The class in `fault_report`; the header has no hash, or another one.
    """
    values = {key: value for key, value in header.items() if key != HASH_KEY}
    if HASH_KEY not in header:
        fault_report.raise_(where, "it carries no hash of its content, as files of earlier versions")
    if header[HASH_KEY] != content_sha256(values, arrays):
        fault_report.raise_(where, _ALTERED)
    return values


def write_stored_json(path: pathlib.Path, value: Any) -> None:
    """Write an object of a dataclass as JSON with its hash, completely or not at all, for `read_stored_json`."""
    write_json(path, with_hash(_as_json(dataclasses.asdict(value))))


def read_stored_json(path: pathlib.Path, kind: type[_Kind], fault_report: FaultReport) -> _Kind:
    """Return the object of the dataclass `kind` that `write_stored_json` wrote.

    Raises:
        MarError: The class in `fault_report`; the file is missing, damaged or altered.
    """
    values = check_hash(read_json_object(path, fault_report), (), path, fault_report)
    return _parse(kind, values, path, fault_report)


def save_arrays(path: pathlib.Path, header: Any, arrays: Mapping[str, NDArray[Any]], compress: bool = False) -> None:
    """Write arrays and a header to an `.npz` file, completely or not at all, for `load_arrays`.

    Args:
        path: The file.
        header: An object of a dataclass of JSON values.
        arrays: The arrays by name.
        compress: Whether they are compressed.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        _write_arrays(file, header, arrays, compress)


def pack_arrays(header: Any, arrays: Mapping[str, NDArray[Any]], compress: bool = False) -> bytes:
    """Return the bytes of the `.npz` file that `save_arrays` writes."""
    file = io.BytesIO()
    _write_arrays(file, header, arrays, compress)
    return file.getvalue()


def _write_arrays(file: IO[bytes], header: Any, arrays: Mapping[str, NDArray[Any]], compress: bool) -> None:
    text = json.dumps(with_hash(_as_json(dataclasses.asdict(header)), sorted(arrays.items()))).encode()
    save = np.savez_compressed if compress else np.savez
    save(file, **{_HEADER: np.frombuffer(text, np.uint8)}, **arrays)  # type: ignore[arg-type]


def load_arrays(
    path: pathlib.Path, kind: type[_Kind], fault_report: FaultReport
) -> tuple[_Kind, dict[str, NDArray[Any]]]:
    """Return the header, an object of the dataclass `kind`, and the arrays that `save_arrays` wrote.

    Raises:
        MarError: The class in `fault_report`; the file is missing, damaged or altered.
    """
    with NpzFile(path, fault_report) as file:
        text = file.read(_HEADER, "u", (None,), _HEADER_BYTES).tobytes()
        arrays = {name: file.read(name, "biuf") for name in file.names if name != _HEADER}
    try:
        header = parse_json(text)
    except ValueError as error:
        fault_report.raise_(path, error, "its header is not JSON")
    if not isinstance(header, dict):
        fault_report.raise_(path, "its header is no object")
    return _parse(kind, check_hash(header, sorted(arrays.items()), path, fault_report), path, fault_report), arrays


def _as_json(value: Any) -> Any:
    """Return a value as JSON gives it back, so that its hash does not depend on tuples."""
    return json.loads(json.dumps(value, allow_nan=False))


def _parse(kind: type[_Kind], values: Mapping[str, Any], path: pathlib.Path, fault_report: FaultReport) -> _Kind:
    try:
        return parse_object(kind, values, str(path))
    except ValueError as error:
        fault_report.raise_(path, str(error).removeprefix(f"{path}: "))
