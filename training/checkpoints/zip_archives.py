"""Zip archives, as `torch.save` has written them since PyTorch 1.6: what is in a file before PyTorch reads it."""

from __future__ import annotations

import pathlib
import zipfile


def is_archive(path: pathlib.Path) -> bool:
    """Return whether a file is a zip archive."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # an archive that says it spans several disks
        return True


def member_names(path: pathlib.Path) -> list[str]:
    """Return the names of the members of an archive; none if it cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except Exception:  # damaged bytes can raise any exception; what reads the file reports them
        return []


def read_member(path: pathlib.Path, ending: str, most: int) -> bytes:
    """Return the content of the first member of an archive whose name ends so and that has at most `most` bytes.

    It is empty if there is none, or if the archive cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.filename.endswith(ending) and member.file_size <= most:
                    return archive.read(member)
    except Exception:  # damaged bytes can raise any exception; what reads the file reports them
        pass
    return b""
