"""Images in one folder for each class, or in one folder: which files are images of which class, what is left out."""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import os
import pathlib

import numpy as np
from numpy.typing import NDArray

from runtime.checks import pluralize, printable
from runtime.errors import DataError
from runtime.image_files import IMAGE_SUFFIXES, WHITE, Color, ImageFileError, read_square, read_transparency
from training.data.class_names import describe_classes, list_some
from training.data.unreadable_images import UnreadableImageError

# Folders that archives, file systems, servers and interpreters leave behind; others of this kind are hidden.
_SYSTEM_FOLDERS = (
    "__macosx",
    "__pycache__",
    "@eadir",
    "@recycle",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "lost+found",
    "recycler",
    "system volume information",
)

_ARRAYS = (".npz", ".npy")  # what the published code and its relatives cache latents in

_LOOKED_AT = 64  # images of which transparency is told

THE_ONE_CLASS = "image"
"""The name of the class of images that lie in no class folder."""


class FolderDataset:
    """RGB images in one sub-folder for each class, in alphabetical order; without such folders all are of one class.

    An image is scaled so that its shorter side is `image_size`, and cropped to the square in its middle. Hidden files
    and folders are left out, because notebooks keep copies there, and macOS writes one beside each file. Links to
    folders are followed.

    Attributes:
        notes: What was taken as classes, and what was left out and why, one line each.
    """

    channels = 3

    def __init__(self, path: pathlib.Path, image_size: int, background: Color) -> None:
        """Find the classes and the images.

        Args:
            path: The folder of the class folders, or of the images.
            image_size: The side of the square images that the dataset returns, in pixels.
            background: The colour under transparent pixels.

        Raises:
            DataError: There are no classes or no images.
            OSError: A folder cannot be read.
        """
        self.warnings: list[str] = []
        self._path, self._image_size, self._background = path, image_size, background
        self._files: list[pathlib.Path] = []
        left_out, labels = _LeftOut(), list[int]()
        folders = _class_folders(path, left_out)
        for label, folder in enumerate(folders):
            files = _image_files(folder, left_out)
            if not files:
                self.warnings.append(f"{printable(str(folder))}: a class without images")
            self._files += files
            labels += [label] * len(files)
        self.classes = tuple(printable(folder.name) for folder in folders) or (THE_ONE_CLASS,)
        if not folders:
            left_out = _LeftOut()
            self._files = _image_files(path, left_out)
            labels = [0] * len(self._files)
        self.labels = np.array(labels, dtype=np.int64)
        where = printable(str(path))
        left = [f"{where}: left out {line}" for line in left_out.lines()]
        if not labels:
            raise DataError(_nothing_here(where, left_out, [*self.warnings[:1], *left]))
        found = describe_classes(self.classes, self.labels) if folders else _describe_one_class(len(labels))
        self.notes: tuple[str, ...] = (f"{where}: {found}", *left, *_transparency(self._files, background, where))

    @functools.cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of name, size and time of change of every file; reading a million files would take hours."""
        files = [(self._relative(file), *_size_and_time(file)) for file in self._files]
        settings = (self._image_size, self._background, self.classes)
        return hashlib.sha256(repr((*settings, files)).encode()).hexdigest()

    @functools.cached_property
    def content(self) -> str:
        """The SHA-256 of name and size of every file, which a copy of them elsewhere has too."""
        files = [(self._relative(file), *_size_and_time(file)[:1]) for file in self._files]
        return hashlib.sha256(repr(files).encode()).hexdigest()

    def images(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the images at `indices`: uint8 [len(indices), H, W, 3].

        Raises:
            UnreadableImageError: One of them cannot be read.
        """
        return np.stack([self._load(self._files[index]) for index in indices])

    def name(self, index: int) -> str:
        """Return the path of the image's file, on one line of valid Unicode whatever the path is."""
        return printable(str(self._files[index]))

    def _relative(self, file: pathlib.Path) -> str:
        """Return the path of a file below the dataset, the same in every locale."""
        return printable(file.relative_to(self._path).as_posix())

    def _load(self, file: pathlib.Path) -> NDArray[np.uint8]:
        try:
            pixels, warnings = read_square(file, self._image_size, self._background)
        except ImageFileError as error:
            raise UnreadableImageError(str(error)) from error
        self.warnings += warnings
        return pixels


def _transparency(files: list[pathlib.Path], background: Color, where: str) -> list[str]:
    """Return a line about transparent images among a sample, if there are any; decoding all would take hours."""
    sample = files[:: -(-len(files) // _LOOKED_AT)]
    transparent = 0
    for file in sample:
        with contextlib.suppress(ImageFileError):  # whoever reads it reports it
            transparent += bool(read_transparency(file).any())
    if not transparent:
        return []
    looked_at = "" if len(sample) == len(files) else " looked at"
    color = "white" if background == WHITE else "#{:02x}{:02x}{:02x}".format(*background)
    return [
        f"{where}: {transparent} of {pluralize(len(sample), 'image')}{looked_at} with transparent pixels, which show "
        f"{color} (--background)"
    ]


def _describe_one_class(images: int) -> str:
    return f"{pluralize(images, 'image')} without class sub-folders, so all of them are one class, {THE_ONE_CLASS}"


def _nothing_here(where: str, left_out: _LeftOut, details: list[str]) -> str:
    """Return the message about a folder without images."""
    if left_out.latents():
        return (
            f"{where}: no images, but {pluralize(left_out.latents(), 'file')} of arrays ({', '.join(_ARRAYS)}), as "
            "the published code caches latents; make a cache of the images with mar cache-latents and name that"
        )
    return "; ".join([f"{where}: neither IDX files nor images here", *details])


class _LeftOut:
    """What is left out of a dataset, by its kind."""

    def __init__(self) -> None:
        self.hidden: list[str] = []
        self.outside: list[str] = []
        self.linked_twice: list[str] = []
        self.suffixes: collections.Counter[str] = collections.Counter()

    def latents(self) -> int:
        """Return the number of files of arrays, in class folders and beside them."""
        return sum(self.suffixes[suffix] for suffix in _ARRAYS) + sum(name.endswith(_ARRAYS) for name in self.outside)

    def lines(self) -> list[str]:
        """Return one line for each kind of which there is something, with its number."""
        suffixes = [f"{suffix or 'without one'} {count}" for suffix, count in self.suffixes.most_common()]
        kinds = (
            ("hidden or system file", "", self.hidden),
            ("file", " outside of the class folders", self.outside),
            ("link", " to folders that were read already", self.linked_twice),
        )
        lines = [
            f"{pluralize(len(found), noun)}{rest}: {list_some(sorted(set(found)))}"
            for noun, rest, found in kinds
            if found
        ]
        if self.suffixes:
            ranked = sorted(self.suffixes.items(), key=lambda item: (-item[1], item[0]))
            suffixes = [f"{suffix or 'no suffix'} {count}" for suffix, count in ranked]
            lines.append(f"{pluralize(self.suffixes.total(), 'file')} of other types: {list_some(suffixes)}")
        return lines


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _SYSTEM_FOLDERS


def _class_folders(path: pathlib.Path, left_out: _LeftOut) -> list[pathlib.Path]:
    """Return the folders of the classes in alphabetical order."""
    folders = []
    for entry in sorted(path.iterdir()):
        if _is_hidden(entry.name):
            left_out.hidden.append(printable(entry.name))
        elif entry.is_dir():
            folders.append(entry)
        else:
            left_out.outside.append(printable(entry.name))
    return folders


def _image_files(folder: pathlib.Path, left_out: _LeftOut) -> list[pathlib.Path]:
    """Return the images in a class folder and the folders below it, sorted. A folder with two names is read once."""

    def fail(error: OSError) -> None:
        raise error

    files, seen = list[pathlib.Path](), {_identity(folder)}
    for parent, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        left_out.hidden += [printable(name) for name in (*folders, *names) if _is_hidden(name)]
        descend = []
        for name in sorted(folders):
            below = pathlib.Path(parent, name)
            if _is_hidden(name):
                continue
            if (identity := _identity(below)) in seen:
                left_out.linked_twice.append(printable(str(below)))
                continue
            seen.add(identity)
            descend.append(name)
        folders[:] = descend
        for name in names:
            file = pathlib.Path(parent, name)
            if _is_hidden(name):
                continue
            if file.suffix.lower() in IMAGE_SUFFIXES:
                files.append(file)
            else:
                left_out.suffixes[printable(file.suffix.lower())] += 1
    return sorted(files)


def _identity(folder: pathlib.Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _size_and_time(file: pathlib.Path) -> tuple[int, ...]:
    """Return the size of a file in bytes and its time of change in nanoseconds.

    A broken link has neither; reading it later reports it as an unreadable image.
    """
    try:
        status = file.stat()
    except OSError:
        return ()
    return status.st_size, status.st_mtime_ns
