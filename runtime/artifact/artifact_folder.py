"""An artifact on disk: a folder whose manifest is parsed and whose files are compared with it.

Sizes are compared when the folder is opened and hashes before an engine reaches a deserializer: below this layer,
a flipped bit in a weight or a swapped file loads without an error. What was hashed is what is loaded, even if the file
is replaced between the two.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import pathlib
from collections.abc import Iterator
from typing import NoReturn

from runtime.artifact.engine_builds import Build
from runtime.artifact.manifest import MANIFEST, FileEntry, Manifest
from runtime.artifact.verified_files import GraphFile, OpenFile
from runtime.errors import ArtifactError, IntegrityError
from runtime.files import check_writable_folder


def is_artifact(path: pathlib.Path) -> bool:
    """Return whether the folder at `path` contains the manifest of an artifact, of any format version."""
    try:
        value = json.loads((path / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and {"format_version", "files", "engines"} <= value.keys()


def check_artifact_target(out: pathlib.Path) -> None:
    """Check that an artifact can be written to the folder `out`, which may contain an older artifact.

    Raises:
        ArtifactError: The folder exists and is not an artifact.
        MarError: The folder cannot be written.
    """
    if out.exists() and not is_artifact(out):
        raise ArtifactError(f"{out} exists and is not an artifact; choose another --out, or remove it yourself")
    check_writable_folder(out)


class Artifact:
    """An artifact on disk, whose manifest is parsed and whose files have the sizes that the manifest lists.

    Attributes:
        path: The folder of the artifact.
        manifest: Its manifest.
        manifest_bytes: The content of the manifest's file, which a signature covers.
    """

    def __init__(self, path: str | pathlib.Path) -> None:
        """Open the artifact in the folder `path`.

        Raises:
            ArtifactError: The folder has no readable manifest of this format version.
            IntegrityError: A file is missing, has another size, or is outside the folder.
        """
        self.path = pathlib.Path(path)
        manifest = self.path / MANIFEST
        try:
            self.manifest_bytes = manifest.read_bytes()
        except OSError as error:
            raise ArtifactError(
                f"{self.path}: not an artifact, {MANIFEST} cannot be read ({error.strerror}); make one with mar export"
            ) from None
        try:
            value = json.loads(self.manifest_bytes, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"{manifest}: not readable JSON ({error}); export again") from None
        self.manifest = Manifest.from_dict(value, str(manifest))
        for name, entry in self.manifest.files.items():
            self._check_size(name, entry)
        self._verified: dict[str, OpenFile] = {}

    def verify(self, *, builds: bool = False) -> None:
        """Compare the hash of every file with the manifest, and keep the files open for what loads them.

        Args:
            builds: Whether engines built for devices are compared too. `verified_build` compares each of them anyway
                before it is loaded.

        Raises:
            IntegrityError: A file cannot be read or was altered.
        """
        built = {build.file for build in self.manifest.builds}
        self._verified.clear()
        for name in self.manifest.files:
            if builds or name not in built:
                self._open_verified(name)

    def engine_file(self, name: str) -> pathlib.Path:
        """Return the path of the ONNX file of the engine `name`."""
        return self.path / self.manifest.engines[name]

    @contextlib.contextmanager
    def verified_graph(self, name: str) -> Iterator[GraphFile]:
        """Give the graph of the engine `name` to a block that loads it: the files whose hashes were compared.

        Raises:
            IntegrityError: A file cannot be read or was altered, or it changed during the block.
        """
        graph = self.manifest.engines[name]
        weights = f"{graph}.data"
        files = {each: self._open_verified(each) for each in (graph, weights) if each in self.manifest.files}
        external = {pathlib.PurePosixPath(weights).name: files[weights]} if weights in files else {}
        try:
            yield GraphFile(self.path / graph, files[graph].source, external)
        finally:  # a failure in the block may be due to the change
            for file in files.values():
                file.check_unchanged()

    def verified_build(self, build: Build) -> bytes:
        """Return the content of a built engine after comparing its hash with the manifest.

        The file is read once, so that the bytes that run are the bytes that were compared: a built engine is machine
        code.

        Raises:
            IntegrityError: The file cannot be read or was altered.
        """
        try:
            engine = (self.path / build.file).read_bytes()
        except OSError as error:
            raise self._unreadable(build.file, error) from None
        self._check_hash(build.file, hashlib.sha256(engine).hexdigest())
        return engine

    def _open_verified(self, name: str) -> OpenFile:
        """Open a file and compare its hash with the manifest, or return it if that was done before."""
        if name not in self._verified:
            try:
                file = OpenFile(self.path / name)
            except OSError as error:
                raise self._unreadable(name, error) from None
            self._check_hash(name, file.sha256)
            self._verified[name] = file
        return self._verified[name]

    def _unreadable(self, name: str, error: OSError) -> IntegrityError:
        return IntegrityError(f"{self.path / name}: cannot be read ({error.strerror})")

    def _check_hash(self, name: str, digest: str) -> None:
        expected = self.manifest.files[name].sha256
        if digest != expected:
            raise IntegrityError(
                f"{self.path / name}: altered since export, sha256 {digest[:12]}… where the manifest has "
                f"{expected[:12]}…; copy the artifact again or export again"
            )

    def _check_size(self, name: str, entry: FileEntry) -> None:
        file = self.path / name
        try:
            size = file.stat().st_size if file.is_file() else None
        except OSError:  # for example a name that is too long for the file system
            size = None
        if size is None:
            raise IntegrityError(f"{file}: missing, the manifest lists it; copy the artifact again or export again")
        if not file.resolve().is_relative_to(self.path.resolve()):
            raise IntegrityError(
                f"{file}: is outside the artifact, at {file.resolve()}; copy the artifact again without links"
            )
        if size != entry.bytes:
            raise IntegrityError(
                f"{file}: {size} bytes where the manifest has {entry.bytes}; copy the artifact again or export again"
            )


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
