"""An artifact with the first pass of each class: it is read in place of a computation, and checked as all files."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from mar_export.artifact.export import export_artifact
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import FIRST_PASS, MANIFEST
from runtime.cli.group import mar
from runtime.errors import ArtifactError, IntegrityError, RequestError
from runtime.generator import Generator
from runtime.model.engine_spec import Array
from tests.helpers.artifacts import made_once
from tests.helpers.variant_models import variant_checkpoint
from training.checkpoints.checkpoint import Checkpoint

SETTINGS: dict[str, Any] = {
    "iterations": 3,
    "diffusion_steps": 3,
    "start_timestep": 900,
    "cfg_scale": 2.0,
    "reuse_first_pass": True,
}


@pytest.fixture(scope="module")
def artifact(
    small_checkpoint: Checkpoint,
    golden_artifacts: dict[str, pathlib.Path],
    tracing_no_graph_of: Callable[..., AbstractContextManager[None]],
    tmp_path_factory: pytest.TempPathFactory,
) -> pathlib.Path:
    """The golden model of 16 tokens and 6 classes, with its first passes. Read only."""

    def export(folder: pathlib.Path) -> None:
        with tracing_no_graph_of(golden_artifacts["small"]):
            export_artifact(small_checkpoint, folder / "artifact", lambda text: None, optional=[FIRST_PASS])

    return made_once(tmp_path_factory, "first-pass-artifact", export) / "artifact"


def test_images_have_the_bits_of_a_computed_pass(
    artifact: pathlib.Path, golden_artifacts: dict[str, pathlib.Path]
) -> None:
    def not_in_first_pass(**inputs: Array) -> tuple[Array, ...]:
        assert len(inputs["tokens"])
        return stored.engines.backbone(**inputs)

    with Generator.load(artifact) as stored, Generator.load(golden_artifacts["small"]) as computing:
        engines = dataclasses.replace(stored.engines, backbone=not_in_first_pass)
        reading = Generator(stored.manifest, engines, "reading", first_pass=stored.first_pass)
        for labels in ([0], [5, 1]):
            found, expected = (each.generate(labels, **SETTINGS).latents for each in (reading, computing))
            assert found.tobytes() == expected.tobytes()
        assert stored.manifest.content_sha256 != computing.manifest.content_sha256


def test_the_file_is_compared_with_the_manifest(artifact: pathlib.Path, tmp_path: pathlib.Path) -> None:
    copy = pathlib.Path(shutil.copytree(artifact, tmp_path / "copy"))
    values = np.fromfile(copy / FIRST_PASS, np.float32)
    values[7] += 1
    values.tofile(copy / FIRST_PASS)
    with pytest.raises(IntegrityError, match=r"first_pass\.f32: altered since export"):
        Generator.load(copy, threads=1)

    document = json.loads((copy / MANIFEST).read_text())
    values[1:].tofile(copy / FIRST_PASS)
    document["files"][FIRST_PASS]["bytes"] -= 4
    (copy / MANIFEST).write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match=r"first_pass\.f32 of this model has \d+ bytes, found \d+"):
        Artifact(copy)


def test_an_export_without_it_is_another_artifact(artifact: pathlib.Path, small_checkpoint: Checkpoint) -> None:
    with pytest.raises(RequestError, match=r"another artifact \(it differs in first pass\)"):
        export_artifact(small_checkpoint, artifact, lambda text: None)


def test_a_model_whose_first_pass_is_not_of_the_class_has_none(tmp_path: pathlib.Path) -> None:
    with pytest.raises(RequestError) as caught:
        export_artifact(variant_checkpoint("causal"), tmp_path / "out", lambda text: None, optional=[FIRST_PASS])
    assert str(caught.value) == (
        "--first-pass does not support models with causal attention, whose first pass depends on more than the class; "
        "leave it out"
    )


def test_plan_shows_the_kept_pass_and_what_a_new_class_costs(artifact: pathlib.Path) -> None:
    line = ["plan", str(artifact), "--iterations", "3", "--reuse-first-pass", "--threads", "1", "--json"]
    result = CliRunner().invoke(mar, line, catch_exceptions=False)
    document = json.loads(result.stdout)
    assert [each["pass"] for each in document["iterations"]] == ["kept", "full", "full"]
    assert [sorted(each["operations"]) for each in document["iterations"]] == [
        ["conditioning", "denoise"],
        *[["backbone", "conditioning", "denoise"]] * 2,
    ]
    assert [sorted(each["seconds"]) for each in document["iterations"]] == [
        sorted(each["operations"]) for each in document["iterations"]
    ]
    assert "3 backbone passes (1 kept)" in result.stderr
    assert "the first pass is kept by class: 0.0 GFLOP more for a class not yet drawn" in result.stderr
