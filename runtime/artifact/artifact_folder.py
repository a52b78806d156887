"""An artifact on disk: a folder whose manifest is parsed and whose files are compared with it.

Sizes are compared when the folder is opened and hashes before an engine reaches a deserializer: below this layer,
a flipped bit in a weight or a swapped file loads without an error.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import NoReturn, TypeVar

from runtime.artifact.engine_builds import Build
from runtime.artifact.manifest import MANIFEST, FileEntry, Manifest
from runtime.errors import ArtifactError, IntegrityError
from runtime.files import check_writable_folder, sha256

_Content = TypeVar("_Content")


def is_artifact(path: pathlib.Path) -> bool:
    """Whether the folder at `path` was written by an export, whatever has happened to it since."""
    try:
        value = json.loads((path / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and {"format_version", "files", "engines"} <= value.keys()


def check_artifact_target(out: pathlib.Path) -> None:
    """Refuse to write an artifact over what is none, and where nothing can be written. Raises `MarError`."""
    if out.exists() and not is_artifact(out):
        raise ArtifactError(f"{out} exists and is not an artifact; choose another --out, or remove it yourself")
    check_writable_folder(out)


class Artifact:
    """An artifact on disk whose manifest is whole and whose files have the sizes it names."""

    def __init__(self, path: str | pathlib.Path) -> None:
        self.path = pathlib.Path(path)
        manifest = self.path / MANIFEST
        try:
            text = manifest.read_bytes()
        except OSError as error:
            raise ArtifactError(
                f"{self.path}: not an artifact, {MANIFEST} cannot be read ({error.strerror}); make one with mar export"
            ) from None
        try:
            value = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"{manifest}: not readable JSON ({error}); export again") from None
        self.manifest = Manifest.from_dict(value, str(manifest))
        for name, entry in self.manifest.files.items():
            self._check_size(name, entry)

    def verify(self, *, builds: bool = False) -> None:
        """Compare the hash of every file with the manifest, built engines only if asked. Raises `IntegrityError`."""
        built = {build.file for build in self.manifest.builds}
        for name in self.manifest.files:
            if builds or name not in built:
                self._check_hash(name, self._read(name, sha256))

    def engine_file(self, name: str) -> pathlib.Path:
        return self.path / self.manifest.engines[name]

    def verified_build(self, build: Build) -> bytes:
        """A built engine whose hash is the manifest's. Raises `IntegrityError`.

        It is code, so its file is read once: what was hashed is what is run, whoever writes to the file meanwhile.
        """
        engine = self._read(build.file, pathlib.Path.read_bytes)
        self._check_hash(build.file, hashlib.sha256(engine).hexdigest())
        return engine

    def _read(self, name: str, read: Callable[[pathlib.Path], _Content]) -> _Content:
        try:
            return read(self.path / name)
        except OSError as error:
            raise IntegrityError(f"{self.path / name}: cannot be read ({error.strerror})") from None

    def _check_hash(self, name: str, found: str) -> None:
        expected = self.manifest.files[name].sha256
        if found != expected:
            raise IntegrityError(
                f"{self.path / name}: altered since export, sha256 {found[:12]}… where the manifest has "
                f"{expected[:12]}…; copy the artifact again or export again"
            )

    def _check_size(self, name: str, entry: FileEntry) -> None:
        file = self.path / name
        try:
            found = file.stat().st_size if file.is_file() else None
        except OSError:  # such as a name longer than any file's
            found = None
        if found is None:
            raise IntegrityError(f"{file}: missing, the manifest lists it; copy the artifact again or export again")
        if not file.resolve().is_relative_to(self.path.resolve()):
            raise IntegrityError(f"{file}: leads out of the artifact, to {file.resolve()}")
        if found != entry.bytes:
            raise IntegrityError(
                f"{file}: {found} bytes where the manifest has {entry.bytes}; copy the artifact again or export again"
            )


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
