"""The parity of a bf16 artifact is judged on OpenVINO too, which runs such graphs on a CPU."""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest

from mar_export.artifact.export import export_artifact
from mar_export.artifact.parity import ENGINE_TOLERANCES, GENERATION_TOLERANCES
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import MANIFEST
from runtime.backends.openvino import OpenVino
from runtime.errors import ArtifactError, ParityError
from tests.helpers.command_line import Mar
from training.checkpoints.checkpoint import Checkpoint

Tracing = Callable[..., AbstractContextManager[None]]


def test_the_manifest_says_what_openvino_computes(lowered_artifacts: dict[str, pathlib.Path]) -> None:
    products = "bf16" if OpenVino("openvino", 1).has_bf16 else "fp32"
    parity = Artifact(lowered_artifacts["bf16"]).manifest.parity
    for name, report in parity.items():
        found = report["openvino"]
        tolerances = GENERATION_TOLERANCES if name == "generation" else ENGINE_TOLERANCES
        assert 0 < found["relative_l2"] <= found["tolerance"] == tolerances["bf16"]
        assert found["products"] == products
        assert found["backend"].startswith("openvino 20")
    # It is measured for itself. One product alone, such as that of `conditioning`, can round to the same bits.
    assert parity["backbone"]["openvino"]["relative_l2"] != parity["backbone"]["relative_l2"]
    assert all("openvino" not in report for report in Artifact(lowered_artifacts["fp16"]).manifest.parity.values())


def test_inspect_prints_it(lowered_artifacts: dict[str, pathlib.Path], mar: Mar) -> None:
    ended = mar("inspect", lowered_artifacts["bf16"])
    found = Artifact(lowered_artifacts["bf16"]).manifest.parity["generation"]["openvino"]
    line = f"on OpenVINO, products in {found['products']}: relative L2 from eager PyTorch {found['relative_l2']:.1e}"
    assert line in ended.out
    assert ended.out.count("on OpenVINO") == 4


def test_without_openvino_the_export_says_so(
    small_checkpoint: Checkpoint,
    lowered_artifacts: dict[str, pathlib.Path],
    tracing_no_graph_of: Tracing,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    lines: list[str] = []
    with tracing_no_graph_of(lowered_artifacts["bf16"]):
        manifest = export_artifact(small_checkpoint, tmp_path / "artifact", lines.append, precision="bf16")
    assert any("by emulation alone, since backend openvino is not installed" in line for line in lines)
    assert all("openvino" not in report for report in manifest.parity.values())


def test_an_engine_that_is_wrong_on_openvino_is_refused_and_leaves_nothing(
    small_checkpoint: Checkpoint,
    lowered_artifacts: dict[str, pathlib.Path],
    tracing_no_graph_of: Tracing,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
) -> None:
    right = OpenVino.load_graph

    def wrong(self: OpenVino, path: pathlib.Path, spec: Any) -> Any:
        engine = right(self, path, spec)
        return lambda **inputs: tuple(output * np.float32(1.1) for output in engine(**inputs))

    monkeypatch.setattr(OpenVino, "load_graph", wrong)
    with (
        tracing_no_graph_of(lowered_artifacts["bf16"]),
        pytest.raises(ParityError, match=r"engine backbone on openvino .*: relative L2 distance 1\.0\de-01"),
    ):
        export_artifact(small_checkpoint, tmp_path / "artifact", lambda text: None, precision="bf16")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [None, 3, {}, {"relative_l2": 1.0, "tolerance": 1.0}, {"products": "bf16"}], ids=str)
def test_a_damaged_report_is_refused(
    lowered_artifacts: dict[str, pathlib.Path], tmp_path: pathlib.Path, wrong: object
) -> None:
    value = json.loads((lowered_artifacts["bf16"] / MANIFEST).read_text())
    value["parity"]["generation"]["openvino"] = wrong
    (tmp_path / MANIFEST).write_text(json.dumps(value))
    with pytest.raises(ArtifactError, match="parity: generation: openvino"):
        Artifact(tmp_path).manifest  # noqa: B018
