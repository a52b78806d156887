"""An artifact on disk: a folder whose manifest is parsed and whose files are compared with it.

Sizes are compared when the folder is opened and hashes before an engine reaches a deserializer: below this layer,
a flipped bit in a weight or a swapped file loads without an error. What was hashed is what is loaded, even if the file
is replaced between the two.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import mmap
import os
import pathlib
from collections.abc import Iterator

from runtime.artifact.engine_builds import Build
from runtime.artifact.manifest import MANIFEST, FileEntry, Manifest
from runtime.artifact.verified_files import GraphFile, OpenFile
from runtime.checks import truncate
from runtime.errors import ArtifactError, IntegrityError, RequestError
from runtime.storage.download_placeholders import placeholder
from runtime.storage.files import check_writable_folder
from runtime.storage.folder_kinds import FolderKind
from runtime.storage.structured_files import FaultReport, parse_json, read_bytes, read_json_object


def is_artifact(path: pathlib.Path) -> bool:
    """Return whether the folder at `path` contains the manifest of an artifact, of any format version."""
    try:
        value = read_json_object(path / MANIFEST, FaultReport(ArtifactError))
    except ArtifactError:
        return False
    return {"format_version", "files", "engines"} <= value.keys()


ARTIFACT_FOLDER = FolderKind("artifact", is_artifact)


def check_artifact_target(out: pathlib.Path) -> bool:
    """Check that an artifact can be written to the folder `out`, which may hold an older artifact.

    Returns:
        Whether it does.

    Raises:
        RequestError: Something else is there.
        MarError: The folder cannot be written.
    """
    exists = ARTIFACT_FOLDER.check(out)
    check_writable_folder(out)
    return exists


def read_manifest(path: pathlib.Path) -> tuple[Manifest, bytes]:
    """Return the manifest of the artifact in the folder `path`, and the content of its file.

    Raises:
        ArtifactError: The folder has no readable manifest of this format version.
    """
    manifest = path / MANIFEST
    try:
        content = read_bytes(manifest)
        value = parse_json(content)
    except OSError as error:
        raise ArtifactError(
            f"{path}: not an artifact, {MANIFEST} cannot be read ({error.strerror}); make one with mar export"
        ) from None
    except ValueError as error:
        raise ArtifactError(f"{manifest}: not readable JSON ({error}); export again") from None
    return Manifest.from_dict(value, str(manifest)), content


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
            IntegrityError: A file is missing or has another size.
            RequestError: `path` is no path.
        """
        if not isinstance(path, (str, os.PathLike)):
            raise RequestError(f"an artifact must be the path of its folder, found {truncate(path)}")
        self.path = pathlib.Path(path)
        self.manifest, self.manifest_bytes = read_manifest(self.path)
        for name, entry in self.manifest.files.items():
            self._check_size(name, entry)
        self._opened: dict[str, OpenFile] = {}

    def check_changeable(self) -> None:
        """Check that the artifact's own files would be changed, and not those of a cache to which they are links.

        Raises:
            ArtifactError: The manifest is a link.
        """
        manifest = self.path / MANIFEST
        if manifest.is_symlink():
            raise ArtifactError(
                f"{self.path}: its files are links, such as {MANIFEST} to {manifest.readlink()}; copy it with "
                f"cp -rL {self.path} COPY and change the copy"
            )

    def verify(self, *, builds: bool = False) -> None:
        """Compare the hash of every file with the manifest, several at once, and keep the files open for their loaders.

        Args:
            builds: Whether engines built for devices are compared too. `verified_build` compares each of them anyway
                before it is loaded.

        Raises:
            IntegrityError: A file cannot be read or was altered.
        """
        with self.verifying(builds=builds):
            pass

    @contextlib.contextmanager
    def verifying(self, *, builds: bool = False) -> Iterator[None]:
        """Compare the hash of every file as `verify` does, while a block loads engines with `verified_graph`.

        Raises:
            IntegrityError: At the end of the block, or in place of its error: a file cannot be read or was altered.
        """
        built = {build.file for build in self.manifest.builds}
        self._opened.clear()
        names = [name for name in self.manifest.files if builds or name not in built]
        files = {name: self._open(name) for name in names}
        # Loaders wait for their graphs, so these small files come first.
        by_size = sorted(names, key=lambda name: self.manifest.files[name].bytes)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            checks = {name: pool.submit(self._compare, name, files[name]) for name in by_size}
            try:
                yield
            finally:
                for name in names:
                    checks[name].result()  # the first fault in the order of the manifest is raised here

    def engine_file(self, name: str) -> pathlib.Path:
        """Return the path of the ONNX file of the engine `name`."""
        return self.path / self.manifest.engines[name]

    @contextlib.contextmanager
    def verified_graph(self, name: str) -> Iterator[GraphFile]:
        """Give the graph of the engine `name` to a block that loads it, and compare the hashes of its files.

        The graph, which a library parses, is compared before the block. Its weights are numbers, of which the library
        makes copies: they are compared at the end of the block, so that a thread of `verifying` may read them
        meanwhile, and before anything is computed with them.

        Raises:
            IntegrityError: A file cannot be read or was altered, or it changed during the block.
        """
        graph, *weights = self.manifest.files_of(name)
        files = {each: self._open(each) for each in (graph, *weights)}
        external = {pathlib.PurePosixPath(each).name: files[each] for each in weights}
        self._compare(graph, files[graph])
        try:
            yield GraphFile(self.path / graph, files[graph].source, external)
        finally:  # a failure in the block may be due to the change
            for each, file in files.items():
                self._compare(each, file)
                file.check_unchanged()

    def verified_build(self, build: Build) -> bytes:
        """Return the content of a built engine after comparing its hash with the manifest.

        The file is read once, so that the bytes that run are the bytes that were compared: a built engine is machine
        code.

        Raises:
            IntegrityError: The file cannot be read or was altered.
        """
        return self.verified_bytes(build.file)

    def verified_bytes(self, name: str) -> bytes:
        """Return the content of a file after comparing its hash with the manifest; it is read once.

        Raises:
            IntegrityError: The file cannot be read or was altered.
        """
        try:
            content = (self.path / name).read_bytes()
        except OSError as error:
            raise self._unreadable(name, error) from None
        self._check_hash(name, hashlib.sha256(content).hexdigest())
        return content

    def verified_map(self, name: str) -> mmap.mmap | bytes:
        """Return the content of a file, mapped into memory, after comparing its hash with the manifest.

        Raises:
            IntegrityError: The file cannot be read or was altered.
        """
        file = self._open(name)
        self._compare(name, file)
        return file.map()

    def _open(self, name: str) -> OpenFile:
        """Open a file, or return it if it is open."""
        if name not in self._opened:
            try:
                self._opened[name] = OpenFile(self.path / name)
            except OSError as error:
                raise self._unreadable(name, error) from None
        return self._opened[name]

    def _compare(self, name: str, file: OpenFile) -> None:
        """Compare the hash of an open file with the manifest."""
        try:
            digest = file.sha256
        except OSError as error:
            raise self._unreadable(name, error) from None
        self._check_hash(name, digest)

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
        file, link = self.path / name, None
        try:
            size = file.stat().st_size if file.is_file() else None
            link = file.readlink() if file.is_symlink() else None
        except OSError:  # for example a name that is too long for the file system
            size = None
        if size is None and link is not None:
            raise IntegrityError(
                f"{file}: a link to {link}, and no file is there; copy the artifact where its files are with "
                f"cp -rL {self.path} COPY"
            )
        if size is None:
            raise IntegrityError(f"{file}: missing, the manifest lists it; copy the artifact again or export again")
        if size != entry.bytes:
            if (what := placeholder(file)) is not None:
                raise IntegrityError(f"{file}: {what}")
            raise IntegrityError(
                f"{file}: {size} bytes where the manifest has {entry.bytes}; copy the artifact again or export again"
            )
