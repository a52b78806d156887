"""Recorded examples in one `.npz` file: arrays with a row for each example, checked when the file is opened."""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from runtime.checks import pluralize
from runtime.errors import DataError
from runtime.storage.structured_files import FaultReport, NpzFile


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """One array of a file.

    Attributes:
        kinds: The kinds of numpy dtypes that it may have, see `runtime.storage.structured_files.NpzFile.read`.
        shape: The shape of an example, with None for a size that the file decides.
        required: Whether a file must have it.
    """

    kinds: str
    shape: tuple[int | None, ...]
    required: bool = True


class RecordedArrays(abc.ABC):
    """The examples of a file; it also has what a training run asks of its data.

    Attributes:
        arrays: The arrays of the file by name, each [n, ...]; floating point as float32.
        labels: Zeros, int64 [n]: there are no classes.
        notes: What the file holds.
        warnings: Empty: a file with a fault is refused.
    """

    ARRAYS: ClassVar[Mapping[str, ArraySpec]]
    """The arrays that such a file can have, by name."""
    NOUN: ClassVar[str]
    """What an example is called."""

    tokenizer = "none"
    mirrored = False

    def __init__(self, path: pathlib.Path) -> None:
        """Read and check a file.

        Args:
            path: The file.

        Raises:
            DataError: It is missing or damaged, lacks an array or has another one, an array has another shape or dtype
                than expected, or holds a number that is not finite.
        """
        self._path, self.warnings, self.classes = path, list[str](), (self.NOUN,)
        if path.is_dir():
            raise DataError(f"{path}: a folder, expected an .npz file with the arrays {', '.join(self.ARRAYS)}")
        with NpzFile(path, FaultReport(DataError)) as file:
            self._check_names(file.names)
            self.arrays = {name: self._read(file, name) for name in file.names}
        counts = {name: len(array) for name, array in self.arrays.items()}
        if len(set(counts.values())) > 1:
            raise DataError(f"{path}: the arrays must have a row for each {self.NOUN}, found {_listed(counts)} rows")
        self.labels = np.zeros(next(iter(counts.values())), np.int64)
        if not len(self.labels):
            raise DataError(f"{path}: there is no {self.NOUN} in it")
        self._check()
        sizes = ", ".join(f"{name} {list(array.shape[1:])}" for name, array in self.arrays.items())
        self.notes = (f"{path}: {pluralize(len(self.labels), self.NOUN)} of {sizes}",)

    def _check_names(self, names: Sequence[str]) -> None:
        missing = [name for name, spec in self.ARRAYS.items() if spec.required and name not in names]
        if strangers := [name for name in names if name not in self.ARRAYS]:
            raise DataError(f"{self._path}: the array {strangers[0]!r} is not one of {', '.join(self.ARRAYS)}")
        if missing:
            raise DataError(f"{self._path}: the array {missing[0]} is missing")

    def _read(self, file: NpzFile, name: str) -> NDArray[Any]:
        spec = self.ARRAYS[name]
        array = file.read(name, spec.kinds, (None, *spec.shape))
        if array.dtype.kind != "f":
            return array
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite then
            converted = array.astype(np.float32)
        if not np.isfinite(converted).all():
            raise DataError(f"{self._path}: the array {name} holds a number that is not finite in float32")
        return converted

    @abc.abstractmethod
    def _check(self) -> None:
        """Check what the arrays hold. Raises `DataError`."""

    @property
    def content(self) -> str:
        """A text that differs for other arrays."""
        digest = hashlib.sha256()
        for name, array in sorted(self.arrays.items()):
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @abc.abstractmethod
    def sizes(self, config: Any) -> dict[str, Any]:
        """Return the fields of the config of a model that the shapes of the arrays decide.

        Raises:
            ConfigError: No such field makes the model `config` fit the arrays.
        """

    def check_fits(self, config: Any) -> None:
        """Check that a model was made for arrays of these sizes.

        Raises:
            ConfigError: It is of another kind.
            DataError: A size differs.
        """
        for name, found in self.sizes(config).items():
            if found != getattr(config, name):
                raise DataError(f"{self._path}: {name} is {found}, but the model was made for {getattr(config, name)}")

    def fitted(self) -> dict[str, Any]:
        """Return the fields of a new model's config that follow from the values of the arrays."""
        return {}

    @abc.abstractmethod
    def request(self, examples: Sequence[int]) -> dict[str, Any]:
        """Return the named arguments of a request that asks for what was recorded in some examples."""

    @abc.abstractmethod
    def recorded(self, examples: Sequence[int], config: Any) -> NDArray[np.float32]:
        """Return what was recorded in some examples as the latents [B, C, h, w] that a model of `config` draws."""

    def save_tokenizer(self, run: pathlib.Path) -> None:  # noqa: B027  # a training run calls it of any data
        """Write nothing: the file has no autoencoder."""

    def name(self, index: int) -> str:
        """Return where a person finds an example."""
        return f"{self._path}: {self.NOUN} {index}"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
