"""The index of a folder of images: one JSON object a line, each for one image, appended after the image is complete."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from runtime.checks import truncate
from runtime.errors import DataError, cannot_write
from runtime.image_records.record import ImageRecord, parse_record
from runtime.storage.files import replacing, sha256
from runtime.storage.schema import REST
from runtime.storage.structured_files import FaultReport, read_json_lines

INDEX = "index.jsonl"
"""The name of the index of a folder."""

_FAULTS = FaultReport(DataError, "delete the index; the next run makes it again from the images")


@dataclasses.dataclass(frozen=True)
class IndexEntry:
    """One line of an index.

    Attributes:
        file: The image's file, relative to the folder, with `/` between folders.
        sha256: The SHA-256 hash of the image; that of the file, if it has one image.
        record: How the image was made.
        shard_sha256: The SHA-256 hash of a file of several images; None for a file of one.
    """

    file: str
    sha256: str
    record: ImageRecord
    shard_sha256: str | None = None

    @classmethod
    def of(cls, file: str, content: bytes, record: ImageRecord) -> IndexEntry:
        """Return the entry of a file with these bytes."""
        return cls(file, hashlib.sha256(content).hexdigest(), record)

    @property
    def order(self) -> tuple[int, int, int]:
        """What a complete index is sorted by: seed, index, class."""
        return self.record.seed, self.record.index, self.record.class_number

    def check_file(self, folder: pathlib.Path) -> None:
        """Read the file in `folder` whole. Raises `DataError` if it was altered since it was written."""
        if sha256(folder / self.file) != (self.shard_sha256 or self.sha256):
            raise DataError(
                f"{folder / self.file} was altered: its SHA-256 is not the one in its index; remove it, and it is made "
                "again"
            )

    def to_line(self) -> str:
        """Return the line, without its end."""
        hashes = {"sha256": self.sha256, **({"shard_sha256": self.shard_sha256} if self.shard_sha256 else {})}
        return json.dumps({"file": self.file, **hashes, **self.record.to_dict()}, allow_nan=False)


@dataclasses.dataclass(frozen=True)
class _Line:
    """A parsed line."""

    file: str
    sha256: str
    record: dict[str, Any] = dataclasses.field(metadata={REST: True})
    shard_sha256: str | None = None


def read_index(path: pathlib.Path) -> list[IndexEntry]:
    """Return the entries of an index, none if there is no file. A last line that a killed process cut is left out.

    Raises:
        DataError: It is not such an index.
    """
    if not path.exists():
        return []
    entries = []
    for line in read_json_lines(path, _Line, _FAULTS):
        file = pathlib.PurePosixPath(line.file)
        if file.is_absolute() or ".." in file.parts or "\0" in line.file:
            _FAULTS.raise_(path, f"file {truncate(line.file)} must be inside the folder")
        try:
            record = parse_record(line.record, str(path))
            entries.append(IndexEntry(line.file, line.sha256, record, line.shard_sha256))
        except ValueError as error:
            _FAULTS.raise_(path, str(error).removeprefix(f"{path}: "))
    return entries


def is_cut(path: pathlib.Path) -> bool:
    """Return whether the last line of an index has no end, because the process that wrote it was killed."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        return file.read() not in (b"", b"\n")
    return False


def append_entries(path: pathlib.Path, entries: Iterable[IndexEntry]) -> None:
    """Append entries to an index and wait until they are on the disk. Their images must be there already.

    Raises:
        MarError: The index cannot be written.
    """
    content = "".join(f"{entry.to_line()}\n" for entry in entries).encode()
    try:
        with path.open("ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise cannot_write(path, error) from error


def write_index(path: pathlib.Path, entries: Iterable[IndexEntry]) -> None:
    """Write a complete index, sorted, completely or not at all."""
    lines = [f"{entry.to_line()}\n" for entry in sorted(entries, key=lambda entry: (entry.order, entry.file))]
    with replacing(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")
