"""The index of a cache of latents: what is cached, in which files, and the hash of each file.

A flipped bit in a file of latents, or a file of another cache, reads without an error. So the hashes of all files are
compared whenever a cache is opened, as those of an artifact are.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import pathlib

from runtime.errors import DataError
from runtime.storage.files import sha256
from runtime.storage.stored_files import read_stored_json, write_stored_json
from runtime.storage.structured_files import FaultReport
from training.checkpoints.run_folder import TOKENIZER_FILE

INDEX_FILE = "index.json"
"""The file whose presence makes a folder a cache."""

_FORMAT = 2
_THREADS = 4  # that read and hash files
_REMEDY = "remove the cache and run mar cache-latents again"


@dataclasses.dataclass(frozen=True)
class CachedFile:
    """A file of latents.

    Attributes:
        name: Its name.
        images: The number of images in it.
        sha256: Its hash.
    """

    name: str
    images: int = dataclasses.field(metadata={"least": 1, "most": 2**40})
    sha256: str


@dataclasses.dataclass(frozen=True)
class CacheIndex:
    """The content of `index.json`.

    Attributes:
        image_size: The side of the images in pixels.
        stride: Pixels along one side of a latent.
        channels: C, the channels of a latent.
        classes: The names of the classes.
        images: The number of images of the dataset.
        dataset: The fingerprint of the images.
        tokenizer: The name of the autoencoder.
        tokenizer_sha256: The hash of its file in the cache.
        next: The first image that no file covers.
        files: The files of latents.
        left_out: One line about each image that could not be read.
        mirrored: Whether the files have the latents of mirror images too.
        format: The version of the format.
    """

    image_size: int = dataclasses.field(metadata={"least": 1, "most": 2**20})
    stride: int = dataclasses.field(metadata={"least": 1, "most": 2**20})
    channels: int = dataclasses.field(metadata={"least": 1, "most": 2**20})
    classes: list[str]
    images: int = dataclasses.field(metadata={"least": 0, "most": 2**40})
    dataset: str
    tokenizer: str
    tokenizer_sha256: str
    next: int = 0
    files: list[CachedFile] = dataclasses.field(default_factory=list)
    left_out: list[str] = dataclasses.field(default_factory=list)
    mirrored: bool = True
    format: int = _FORMAT

    def write(self, cache: pathlib.Path) -> None:
        """Write the index into the folder of a cache."""
        write_stored_json(cache / INDEX_FILE, self)

    @classmethod
    def read(cls, cache: pathlib.Path) -> CacheIndex:
        """Read the index of a cache.

        Raises:
            DataError: It is damaged, altered, or of another version.
        """
        path, fault_report = cache / INDEX_FILE, FaultReport(DataError, _REMEDY)
        index = read_stored_json(path, cls, fault_report)
        if index.format != _FORMAT:
            fault_report.raise_(path, f"format {index.format}, where this version reads {_FORMAT}")
        if [file.name for file in index.files] != [file_name(number) for number in range(len(index.files))]:
            fault_report.raise_(path, "it lists other files than a cache has")
        return index

    def check_files(self, cache: pathlib.Path) -> None:
        """Compare the hash of every file with the index.

        Raises:
            DataError: A file is missing or was altered.
        """
        expected = {TOKENIZER_FILE: self.tokenizer_sha256, **{file.name: file.sha256 for file in self.files}}
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            digests = pool.map(lambda name: _hash(cache / name), expected)
            for (name, digest), found in zip(expected.items(), digests, strict=True):
                if found != digest:
                    raise DataError(f"{cache / name}: altered since it was cached, it has another hash; {_REMEDY}")


def file_name(number: int) -> str:
    """Return the name of a file of latents by its number in the cache."""
    return f"latents-{number:05}.safetensors"


def unreadable(path: pathlib.Path, reason: object) -> DataError:
    """Return the error about a file of a cache that is not what the index says."""
    return DataError(f"{path}: damaged file of latents ({' '.join(str(reason).split())}); {_REMEDY}")


def _hash(path: pathlib.Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise unreadable(path, error.strerror or error) from None
