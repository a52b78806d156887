"""A folder of generated images, which a run fills and, if it was stopped, continues to fill."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterable, Sequence
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from runtime.errors import MarError, RequestError, cannot_write
from runtime.image_records.encoding import FORMATS, encode_image, read_records
from runtime.image_records.index import INDEX, IndexEntry, append_entries, is_cut, read_index, write_index
from runtime.image_records.names import class_folder, image_name
from runtime.image_records.record import ImageRecord
from runtime.storage.files import holding, scratch_beside, sync

_INDEX_OF_A_SHARD = "index-{}-of-{}.jsonl"
_INDEXES = "index*.jsonl"


class ImageFolder:
    """A folder of images that one process fills at a time, or one process for each shard. A context manager.

    An image is written under another name and then renamed, and only then its line is appended to the index. So at any
    moment every file is complete, and every line of the index has its file. What is finished is never drawn again.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        shard: tuple[int, int] | None = None,
        by_class: bool = False,
        format_name: str = "png",
    ) -> None:
        """Prepare to use a folder, which may be missing; entering the context opens it.

        Args:
            folder: The folder.
            shard: K and N, 1 to N, of a process that draws one of N shards into the folder. It has an index of its own.
            by_class: Whether each class has a folder of its own in `folder`.
            format_name: The format of the files, one of `runtime.image_records.encoding.FORMATS`.
        """
        self.folder, self._by_class, self._format = folder, by_class, format_name
        self._index = folder / (INDEX if shard is None else _INDEX_OF_A_SHARD.format(*shard))
        self._entries: dict[str, IndexEntry] = {}
        self._unlisted: list[IndexEntry] = []
        self._checked: set[str] = set()
        self._open = contextlib.ExitStack()

    def __enter__(self) -> ImageFolder:
        """Hold the folder, and read which images it has.

        Raises:
            MarError: Another process fills it, or it cannot be written.
            DataError: An index in it is damaged.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise MarError(f"cannot write into {self.folder}: it is a file; give a folder")
        with contextlib.ExitStack() as stack:
            for missing in [each for each in (self.folder, *self.folder.parents) if not each.exists()][::-1]:
                stack.callback(_remove_empty, missing)
            stack.enter_context(holding(self._index))
            self._work = stack.enter_context(scratch_beside(self.folder / "images"))
            self._read()
            self._open = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()

    def file_of(self, record: ImageRecord) -> str:
        """Return the file of an image, relative to the folder."""
        name = image_name(record, FORMATS[self._format])
        return f"{class_folder(record)}/{name}" if self._by_class else name

    def has(self, record: ImageRecord) -> bool:
        """Return whether the folder has an image already.

        Raises:
            DataError: Its file was altered since it was written.
            RequestError: The file of this image holds another one, which was made with other settings.
        """
        name = self.file_of(record)
        entry = self._entries.get(name)
        if entry is None:
            if not (self.folder / name).exists():
                return False
            entry = self._adopted(name)
        if not entry.record.draws_as(record):
            raise RequestError(
                f"{self.folder / name} was made with {entry.record.difference(record)}; choose another folder"
            )
        self._check_content(entry)
        return True

    def add(self, records: Sequence[ImageRecord], images: NDArray[np.uint8]) -> None:
        """Write images that the folder does not have yet.

        Args:
            records: How the images were made, B of them.
            images: The images, uint8 [B, H, W, c].

        Raises:
            RequestError: The file of an image holds another one.
            MarError: A file cannot be written.
        """
        missing = [(record, image) for record, image in zip(records, images, strict=True) if not self.has(record)]
        encoded = [encode_image(image, record, self._format) for record, image in missing]
        self.add_packed([record for record, _ in missing], encoded)

    def add_packed(self, records: Sequence[ImageRecord], packed: Sequence[bytes]) -> None:
        """Write images as `add` does, which are the bytes of files already; their records are in them."""
        entries = []
        for record, content in zip(records, packed, strict=True):
            if not self.has(record):
                entries.append(self._write(record, content))
                self._entries[entries[-1].file] = entries[-1]
                self._checked.add(entries[-1].file)
        self._append(entries)

    def complete(self, records: Iterable[ImageRecord]) -> bool:
        """Write the sorted index of the whole folder if all images of a run are finished, by all its shards.

        Returns:
            Whether they are.
        """
        self._append([])
        self._read()
        if any(self.file_of(record) not in self._entries for record in records):
            return False
        write_index(self.folder / INDEX, self._entries.values())
        return True

    def _write(self, record: ImageRecord, content: bytes) -> IndexEntry:
        name = self.file_of(record)
        target, temporary = self.folder / name, self._work / pathlib.PurePosixPath(name).name
        try:
            target.parent.mkdir(exist_ok=True)
            temporary.write_bytes(content)
            sync(temporary)
            temporary.replace(target)
        except OSError as error:
            raise cannot_write(target, error) from error
        return IndexEntry.of(name, content, record)

    def _check_content(self, entry: IndexEntry) -> None:
        """Raise `DataError` unless a file is what the index says; what was read or written here is not read again."""
        if entry.file not in self._checked:
            entry.check_file(self.folder)
            self._checked.add(entry.file)

    def _adopted(self, name: str) -> IndexEntry:
        """Return the entry of a file that has no line in an index, because its run was stopped between the two."""
        (record, *others) = read_records(self.folder / name)
        if others:
            raise RequestError(f"{self.folder / name} is a grid of images; choose another folder")
        entry = self._entries[name] = IndexEntry.of(name, (self.folder / name).read_bytes(), record)
        self._unlisted.append(entry)
        return entry

    def _append(self, entries: Sequence[IndexEntry]) -> None:
        """Append entries to the index, and those of files that had no line."""
        if entries or self._unlisted:
            append_entries(self._index, (*self._unlisted, *entries))
        self._unlisted.clear()

    def _read(self) -> None:
        """Read every index in the folder. The own one is mended if it has a line that was cut or lacks its image."""
        own = read_index(self._index)
        kept = [entry for entry in own if self._is_there(entry)]
        if len(kept) < len(own) or is_cut(self._index):
            write_index(self._index, kept)
        others = [
            entry for path in sorted(self.folder.glob(_INDEXES)) if path != self._index for entry in read_index(path)
        ]
        self._entries = {entry.file: entry for entry in (*filter(self._is_there, others), *kept)}

    def _is_there(self, entry: IndexEntry) -> bool:
        return (self.folder / entry.file).is_file()


def _remove_empty(folder: pathlib.Path) -> None:
    """Remove a folder that was made and stayed empty."""
    with contextlib.suppress(OSError):
        folder.rmdir()
