"""Which artifact may take the place of another in its folder, and what of the old one stays.

A command writes its artifact only where none is, or where one is that it would make again; anything else is replaced
only with `--force`. What people have added to an artifact since, its own presets and its built engines, is kept as far
as it fits the new one.
"""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

from runtime.artifact.artifact_folder import (
    ARTIFACT_FOLDER,
    Artifact,
    check_artifact_target,
    is_artifact,
    read_manifest,
)
from runtime.artifact.engine_builds import Build
from runtime.artifact.manifest import Manifest
from runtime.artifact.signatures import SIGNATURE
from runtime.checks import pluralize
from runtime.errors import ArtifactError
from runtime.storage.files import sha256

_ORIGIN = (
    "checkpoint_sha256",
    "tokenizer_sha256",
    "text_encoder_sha256",
    "latent_scale",
    "first_pass",
    "quantized",
    "quantized_with",
)
"""The entries of a provenance that say what the engines were made from, and not when or with which versions."""


def check_replaceable(out: pathlib.Path, planned: Manifest, force: bool) -> bool:
    """Check that an artifact may be written to a folder.

    Args:
        out: The folder.
        planned: The manifest of the new artifact; its files and its parity may be missing.
        force: Whether another artifact there may be replaced.

    Returns:
        Whether the folder already holds this artifact, complete and undamaged.

    Raises:
        RequestError: The folder holds something else than an artifact, or another artifact and `force` is false.
        MarError: The folder cannot be written.
    """
    if not check_artifact_target(out) or force:
        return False
    try:
        manifest = Artifact(out).manifest
    except ArtifactError as error:
        raise ARTIFACT_FOLDER.another(out, f"an artifact that cannot be read ({error})") from None
    old, new = _identity(manifest), _identity(planned)
    different = [name.replace("_", " ") for name in old.keys() | new.keys() if old.get(name) != new.get(name)]
    if different:
        raise ARTIFACT_FOLDER.another(out, f"another artifact (it differs in {', '.join(sorted(different))})")
    try:
        Artifact(out).verify(builds=True)
    except ArtifactError:
        return False  # a damaged one is made again
    return True


def keep_additions(
    out: pathlib.Path, folder: pathlib.Path, manifest: Manifest, report: Callable[[str], None]
) -> Manifest:
    """Keep what was added to the artifact that is about to be replaced: presets, and engines built for devices.

    Args:
        out: The folder of the old artifact; it may be missing or hold an artifact that cannot be read.
        folder: The folder with the files of the new artifact. It gets the files of the engines that are kept.
        manifest: The manifest of the new artifact, with its files.
        report: Called with a line of text about what is kept, and one about what is lost.

    Returns:
        The manifest of the new artifact, with the presets and builds of the old one that fit it.
    """
    try:
        old, _ = read_manifest(out)
    except ArtifactError as error:
        if is_artifact(out):
            report(f"nothing that was added to the replaced artifact is kept ({error})")
        return manifest
    report_stale_signature(out, report)
    presets = dict(old.presets) if old.model == manifest.model else {}
    if lost_presets := sorted(old.presets.keys() - presets.keys() - manifest.presets.keys()):
        report(f"presets of another model are not kept: {', '.join(lost_presets)}")
    if presets:
        report(f"kept the presets of the replaced artifact: {', '.join(presets)}")
    builds = _copy_builds(out, old, folder, manifest)
    if lost := len(old.builds) - len(builds):
        report(f"not kept, damaged or of other graphs: {pluralize(lost, 'built engine')}; build again with mar build")
    return dataclasses.replace(
        manifest,
        files={**manifest.files, **{build.file: old.files[build.file] for build in builds}},
        presets={**manifest.presets, **presets},
        builds=(*manifest.builds, *builds),
    )


def _copy_builds(out: pathlib.Path, old: Manifest, folder: pathlib.Path, manifest: Manifest) -> list[Build]:
    """Copy the built engines that fit a new manifest and are not damaged into its folder, and return them."""
    copied = []
    for build in old.builds:
        if build.engine not in manifest.engines or build.graph_sha256 != manifest.graph_sha256(build.engine):
            continue
        source, copy = out / build.file, folder / build.file
        if not source.is_file():
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
        if sha256(copy) == old.files[build.file].sha256:
            copied.append(build)
        else:
            copy.unlink()
    return copied


def report_stale_signature(path: pathlib.Path, report: Callable[[str], None]) -> None:
    """Report that the signature of an artifact, if it has one, is not of what the artifact is now."""
    if (path / SIGNATURE).exists():
        report(f"{path} was signed, and is changed now; sign it again with mar sign")


def _identity(manifest: Manifest) -> dict[str, Any]:
    """Return everything that decides the engines of an artifact and their default use."""
    origin = {name: manifest.provenance[name] for name in _ORIGIN if name in manifest.provenance}
    names = ("model", "tokenizer", "class_names", "sampling", "precision")
    return {
        **origin,
        **{name: getattr(manifest, name) for name in names},
        "engines": sorted(manifest.engines),
    }
