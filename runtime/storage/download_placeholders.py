"""Files that a download left in place of the content: pointers of large-file stores, web pages, and archives."""

from __future__ import annotations

import pathlib

_BYTES = 512
_TAR = slice(257, 262), b"ustar"  # where every tar archive says that it is one
_PACKED = "an archive in place of the content; unpack it and give what is in it"

# How such files begin, in lower case; what they are, and what to do.
_PLACEHOLDERS: tuple[tuple[tuple[bytes, ...], str], ...] = (
    (
        (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/"),
        "a Git LFS pointer in place of the content; get the content with git lfs pull",
    ),
    ((b"/annex/objects/",), "a git-annex pointer in place of the content; get the content with git annex get"),
    ((b"# xet version",), "a Xet pointer in place of the content; download the file with the client of its host"),
    (
        (b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--"),
        "a web page in place of the content; download the file itself, signed in if its host asks for it",
    ),
    ((b'{"error',), "an error message of a server in place of the content; download the file again"),
    ((b"\x1f\x8b", b"bzh", b"\xfd7zxz", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf\x27\x1c", b"rar!"), _PACKED),
)


def placeholder(path: pathlib.Path) -> str | None:
    """Return what a file is that a download left in place of the content, and what to do; None for any other file."""
    try:
        with path.open("rb") as file:
            start = file.read(_BYTES)
    except OSError:
        return None
    if start[_TAR[0]] == _TAR[1]:
        return _PACKED
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next((what for beginnings, what in _PLACEHOLDERS if text.startswith(beginnings)), None)
