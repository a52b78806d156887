"""The checkpoint behind an artifact, as `mar bench` and `mar study` run it in PyTorch."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil

import pytest
import torch

from mar_export.artifact.exported_checkpoint import as_exported
from runtime.artifact.manifest import MANIFEST
from runtime.errors import RequestError
from training.checkpoints.checkpoint import Checkpoint


@pytest.fixture
def resized_artifact(golden_artifacts: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> pathlib.Path:
    """The small golden artifact, whose manifest says that its images are twice as large."""
    artifact = pathlib.Path(shutil.copytree(golden_artifacts["small"], tmp_path / "artifact"))
    manifest = json.loads((artifact / MANIFEST).read_text())
    manifest["model"]["img_size"] *= 2
    (artifact / MANIFEST).write_text(json.dumps(manifest))
    return artifact


def test_checkpoint_at_the_size_of_the_artifact_is_that_checkpoint(
    small_checkpoint: Checkpoint, golden_artifacts: dict[str, pathlib.Path]
) -> None:
    assert as_exported(small_checkpoint, golden_artifacts["small"]) is small_checkpoint


def test_checkpoint_of_an_artifact_of_another_size_is_resized(
    small_checkpoint: Checkpoint, resized_artifact: pathlib.Path
) -> None:
    resized = as_exported(small_checkpoint, resized_artifact)
    assert resized.model.config.img_size == 2 * small_checkpoint.model.config.img_size
    assert resized.model.config.tokens == 4 * small_checkpoint.model.config.tokens
    assert torch.equal(resized.model.z_proj.weight, small_checkpoint.model.z_proj.weight)


def test_another_checkpoint_is_refused(small_checkpoint: Checkpoint, golden_artifacts: dict[str, pathlib.Path]) -> None:
    other = dataclasses.replace(small_checkpoint, sha256="1" * 64)
    with pytest.raises(RequestError, match=rf"is not the checkpoint that {golden_artifacts['small']} was exported"):
        as_exported(other, golden_artifacts["small"])
