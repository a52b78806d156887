"""Artifacts whose files are links, as caches and volumes make them: they load, and their hashes decide."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import MANIFEST
from runtime.errors import IntegrityError
from runtime.generator import Generator
from runtime.storage.files import sha256
from tests.helpers.command_line import Mar
from tests.helpers.damaged_artifacts import load

_Layout = Callable[[pathlib.Path], None]


def _hub_cache(artifact: pathlib.Path) -> None:
    """Each file is a link to a blob named by its hash, as in the cache of a model hub."""
    blobs = artifact.parent / "blobs"
    blobs.mkdir()
    for file in sorted(artifact.iterdir()):
        blob = blobs / sha256(file)
        file.rename(blob)
        file.symlink_to(pathlib.Path("..", "blobs", blob.name))


def _annex(artifact: pathlib.Path) -> None:
    """Each file is a link to a read-only object in the repository, as git-annex makes them."""
    for file in sorted(artifact.iterdir()):
        key = f"SHA256E-s{file.stat().st_size}--{sha256(file)}{file.suffix}"
        target = pathlib.Path(".git", "annex", "objects", "Kx", "9p", key, key)
        (artifact.parent / target).parent.mkdir(parents=True)
        file.rename(artifact.parent / target)
        (artifact.parent / target).chmod(0o444)
        file.symlink_to(pathlib.Path("..", target))


def _volume(artifact: pathlib.Path) -> None:
    """Each file is a link through ..data to a folder with a date, as Kubernetes mounts volumes."""
    content = artifact / "..2026_11_29_00_00_00.123"
    files = sorted(artifact.iterdir())
    content.mkdir()
    (artifact / "..data").symlink_to(content.name)
    for file in files:
        file.rename(content / file.name)
        file.symlink_to(pathlib.Path("..data", file.name))


_LAYOUTS: list[_Layout] = [_hub_cache, _annex, _volume]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("link", _LAYOUTS)
def test_an_artifact_of_links_generates_the_same(artifact_copy: pathlib.Path, link: _Layout, backend: str) -> None:
    def generate() -> NDArray[np.float32]:
        with Generator.load(artifact_copy, backend=backend, threads=1) as generator:
            return generator.generate([1], seed=0, iterations=2, diffusion_steps="ddim2").latents

    expected = generate()
    link(artifact_copy)
    assert all(file.is_symlink() for file in artifact_copy.glob("[!.]*"))
    np.testing.assert_array_equal(generate(), expected)


@pytest.mark.parametrize("link", _LAYOUTS)
def test_an_altered_file_behind_a_link_is_refused(artifact_copy: pathlib.Path, link: _Layout) -> None:
    link(artifact_copy)
    target = (artifact_copy / "backbone.onnx").resolve()
    content = bytearray(target.read_bytes())
    content[len(content) // 2] ^= 1
    target.chmod(0o644)
    target.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"backbone\.onnx: altered since export"):
        load(artifact_copy)


@pytest.mark.parametrize("link", _LAYOUTS)
def test_a_command_that_would_change_what_others_share_says_how_to_copy(
    artifact_copy: pathlib.Path, link: _Layout, mar: Mar
) -> None:
    link(artifact_copy)
    before = {file: file.read_bytes() for file in sorted(artifact_copy.parent.rglob("*")) if file.is_file()}
    code, _, err = mar("optimize-steps", artifact_copy, "--name", "mine", "--budget-ms", 1000)
    assert code == 1
    assert f"mar: {artifact_copy}: its files are links, such as {MANIFEST} to " in err
    assert f"cp -rL {artifact_copy} COPY" in err
    assert {file: file.read_bytes() for file in sorted(artifact_copy.parent.rglob("*")) if file.is_file()} == before


def test_a_link_whose_file_is_not_there_is_called_that(artifact_copy: pathlib.Path) -> None:
    _annex(artifact_copy)
    target = (artifact_copy / "backbone.onnx").resolve()
    target.unlink()
    with pytest.raises(IntegrityError) as caught:
        Artifact(artifact_copy)
    message = str(caught.value)
    assert message.startswith(f"{artifact_copy / 'backbone.onnx'}: a link to ../.git/annex/objects/")
    assert f"cp -rL {artifact_copy} COPY" in message


def test_a_pointer_in_place_of_an_engine_is_called_that(artifact_copy: pathlib.Path) -> None:
    (artifact_copy / "backbone.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(IntegrityError, match=r"backbone\.onnx: a Git LFS pointer .* git lfs pull"):
        Artifact(artifact_copy)


@pytest.mark.parametrize("target", ["/dev/zero", "/dev/null", "/"])
def test_a_link_to_what_is_no_file_is_refused(artifact_copy: pathlib.Path, target: str) -> None:
    (artifact_copy / "backbone.onnx").unlink()
    (artifact_copy / "backbone.onnx").symlink_to(target)
    with pytest.raises(IntegrityError, match=f"a link to {target}, and no file is there"):
        Artifact(artifact_copy)
