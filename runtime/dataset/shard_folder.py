"""A folder of shards, each one file, which a run fills and, if it was stopped, continues to fill."""

from __future__ import annotations

import contextlib
import hashlib
import pathlib
from collections.abc import Iterable, Sequence
from types import TracebackType

from runtime.errors import RequestError
from runtime.image_records.index import INDEX, IndexEntry, append_entries, read_index, write_index
from runtime.image_records.record import ImageRecord
from runtime.storage.files import holding_folder, replacing

PackedShard = tuple[bytes, Sequence[str]]
"""The bytes of the file of a shard, and the hash of each image in it."""


def shard_name(number: int, suffix: str) -> str:
    """Return the name of the file of a shard, such as `shard-000003.tar`."""
    return f"shard-{number:06d}{suffix}"


class ShardFolder:
    """A folder of shards that one process fills at a time. A context manager.

    A shard is written under another name and then renamed, and only then the lines of its images are appended to the
    index `index.jsonl`. So every file is complete at any moment, and what is finished is never drawn again. A file
    that was altered is an error.
    """

    def __init__(self, folder: pathlib.Path, suffix: str, shard_size: int) -> None:
        """Prepare to use a folder, which may be missing; entering the context opens it.

        Args:
            folder: The folder.
            suffix: The ending of the names of the shards, such as `.tar`.
            shard_size: The number of images in a shard.
        """
        self.folder, self._suffix, self._size = folder, suffix, shard_size
        self._entries: dict[int, IndexEntry] = {}
        self._open = contextlib.ExitStack()

    def __enter__(self) -> ShardFolder:
        """Hold the folder, and read which images it has.

        Raises:
            MarError: Another process fills it, or it cannot be written.
            DataError: Its index is damaged, or a shard was altered.
        """
        self._open.enter_context(holding_folder(self.folder))
        with contextlib.ExitStack() as unless_read:
            unless_read.callback(self._open.close)
            entries = read_index(self.folder / INDEX)
            shards = {entry.file: entry for entry in entries if (self.folder / entry.file).is_file()}
            for one_of_shard in shards.values():
                one_of_shard.check_file(self.folder)
            self._entries = {entry.record.index: entry for entry in entries if entry.file in shards}
            if entries:
                write_index(self.folder / INDEX, self._entries.values())  # without a line that a kill has cut
            unless_read.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()

    def file_of(self, record: ImageRecord) -> str:
        """Return the file of the shard of an image."""
        return shard_name(record.index // self._size, self._suffix)

    def has(self, record: ImageRecord) -> bool:
        """Return whether the folder has an image already.

        Raises:
            RequestError: It has another image in its place, or the image is in a shard of another size.
        """
        entry = self._entries.get(record.index)
        if entry is None:
            return False
        if not entry.record.draws_as(record):
            raise RequestError(
                f"{self.folder / entry.file} was made with {entry.record.difference(record)}; choose another folder"
            )
        if entry.file != self.file_of(record):
            raise RequestError(f"{self.folder} has shards of another format or --shard-size; choose another folder")
        return True

    def add_packed(self, records: Sequence[ImageRecord], packed: PackedShard) -> None:
        """Write the file of a shard, then the lines of its images. Raises `MarError` if they cannot be written."""
        content, hashes = packed
        name, index = self.file_of(records[0]), self.folder / INDEX
        with replacing(self.folder / name) as temporary:
            temporary.write_bytes(content)
        of_shard = hashlib.sha256(content).hexdigest()
        entries = [IndexEntry(name, each, record, of_shard) for record, each in zip(records, hashes, strict=True)]
        append_entries(index, entries)
        self._entries |= {entry.record.index: entry for entry in entries}

    def complete(self, records: Iterable[ImageRecord]) -> bool:
        """Write the sorted index if all images of a run are finished, and return whether they are."""
        if any(record.index not in self._entries for record in records):
            return False
        write_index(self.folder / INDEX, self._entries.values())
        return True
