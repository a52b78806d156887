"""The checkpoint that an artifact was exported from, for what runs the same model in PyTorch."""

from __future__ import annotations

import dataclasses
import pathlib

from runtime.artifact.artifact_folder import Artifact
from runtime.errors import RequestError
from training.checkpoints.checkpoint import Checkpoint
from training.checkpoints.resize import resize_model


def as_exported(checkpoint: Checkpoint, artifact: pathlib.Path) -> Checkpoint:
    """Return the checkpoint that an artifact was exported from, at the image size of the artifact.

    Args:
        checkpoint: The checkpoint.
        artifact: The folder of the artifact.

    Raises:
        RequestError: The artifact was exported from another checkpoint.
    """
    manifest = Artifact(artifact).manifest
    if checkpoint.sha256 != manifest.provenance.get("checkpoint_sha256"):
        raise RequestError(
            f"{checkpoint.source} is not the checkpoint that {artifact} was exported from; export it first"
        )
    if manifest.model == checkpoint.model.config:
        return checkpoint
    return dataclasses.replace(checkpoint, model=resize_model(checkpoint.model, manifest.model.image_shape[0]))
