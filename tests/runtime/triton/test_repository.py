"""What `mar export-triton` writes and refuses, without a server."""

from __future__ import annotations

import pathlib

import pytest

from runtime.artifact.artifact_folder import Artifact
from runtime.cli.export_triton import export_triton
from runtime.errors import RequestError
from runtime.service.settings import ServiceSettings
from runtime.triton.repository import TritonSettings, write_model
from tests.helpers.command_line import Mar


def test_an_artifact_without_a_decoder_is_refused(
    golden_artifacts: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    with pytest.raises(RequestError, match="has no decoder, so it makes latents, not images; export it with"):
        write_model(Artifact(golden_artifacts["small"]), tmp_path / "models", "small", TritonSettings(), force=False)
    assert list(tmp_path.iterdir()) == []


def test_another_model_is_replaced_only_with_force(
    mar: Mar, pixel_artifact: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    line = f"export-triton {pixel_artifact} --out {tmp_path} --name images"
    (tmp_path / "images").mkdir()
    assert mar(line).code == 0  # into an empty folder
    assert mar(line).code == 0  # the same model
    ended = mar(f"{line} --max-batch 4")
    assert (ended.code, "holds another model of Triton; choose another --name" in ended.err) == (2, True)
    assert mar(f"{line} --max-batch 4 --force").code == 0
    assert "max_batch_size: 4" in (tmp_path / "images" / "config.pbtxt").read_text()


def test_a_folder_that_is_no_model_is_never_replaced(
    mar: Mar, pixel_artifact: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"a cat")
    ended = mar(f"export-triton {pixel_artifact} --out {tmp_path} --name photos --force")
    assert (ended.code, "photos exists and is no model of Triton" in ended.err) == (2, True)
    assert (tmp_path / "photos" / "cat.png").read_bytes() == b"a cat"


def test_settings_survive_their_parameters_and_have_the_defaults_of_the_service() -> None:
    settings = TritonSettings("fast", 4, 1.5, 2, "openvino", "cpu", 3)
    assert TritonSettings.from_parameters(settings.parameters()) == settings
    assert TritonSettings().max_batch == ServiceSettings().max_batch
    defaults = {option.name: option.default for option in export_triton.params}
    assert defaults["max_wait_ms"] == TritonSettings().max_wait_ms == 1000 * ServiceSettings().max_wait
