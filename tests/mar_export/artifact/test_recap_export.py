"""An artifact with the engines of ReCAP: weights are stored once, parity is there, and what cannot be is one line."""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any

import onnx_ir as ir
import pytest
from click.testing import CliRunner

from calibration.cli.calibrate import calibrate
from calibration.cli.optimize_steps import optimize_steps
from mar_export.artifact.export import export_artifact
from mar_export.artifact.parity import ENGINE_TOLERANCES
from runtime.artifact.artifact_folder import Artifact
from runtime.cli.generate import generate
from runtime.cli.group import mar
from runtime.cli.inspect_image import command
from runtime.errors import IntegrityError, MarError, RequestError
from runtime.generator import Generator
from runtime.model.config import ModelConfig
from runtime.model.recap_engines import FULL, LOCAL, RECAP_ENGINES
from runtime.sampling.settings import Sampling
from tests.helpers.distance import relative_l2
from training.checkpoints.checkpoint import Checkpoint
from training.models.mar import MAR

BACKBONES = ("backbone", *RECAP_ENGINES)


def refusal(kind: type[MarError], work: Any) -> str:
    with pytest.raises(kind) as caught:
        work()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_weights_are_stored_once_and_checked_for_every_engine(
    recap_artifact: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    manifest = Artifact(recap_artifact).manifest
    weights = recap_artifact / "backbone.onnx.data"
    for name in RECAP_ENGINES:
        assert manifest.files_of(name) == (f"{name}.onnx", "backbone.onnx.data")
        assert (recap_artifact / f"{name}.onnx").stat().st_size < weights.stat().st_size / 4
        assert not (recap_artifact / f"{name}.onnx.data").exists()
        assert manifest.parity[name]["relative_l2"] <= ENGINE_TOLERANCES["fp32"]
        assert manifest.parity[name]["cases"] == 5
    altered = pathlib.Path(shutil.copytree(recap_artifact, tmp_path / "altered"))
    content = bytearray((altered / weights.name).read_bytes())
    content[1000] ^= 1
    (altered / weights.name).write_bytes(content)
    for name in ("backbone", *RECAP_ENGINES):
        with (
            pytest.raises(IntegrityError, match=r"backbone\.onnx\.data: altered"),
            Artifact(altered).verified_graph(name),
        ):
            pass


def test_an_artifact_without_the_engines_says_how_to_get_them(golden_artifacts: dict[str, pathlib.Path]) -> None:
    with Generator.load(golden_artifacts["small"], threads=1) as generator:
        message = refusal(RequestError, lambda: generator.generate([0], recap_local_iterations=1))
        assert message == (
            "this artifact has no engines for the local iterations of ReCAP; export it with --recap, or leave out "
            "recap_local_iterations"
        )
        generator.sampling(recap_local_iterations=0)


def test_settings_with_local_iterations_need_the_engines(small_checkpoint: Checkpoint, tmp_path: pathlib.Path) -> None:
    sampling = Sampling(iterations=4, recap_local_iterations=1)
    message = refusal(
        RequestError, lambda: export_artifact(small_checkpoint, tmp_path / "out", lambda text: None, sampling)
    )
    assert message == "recap_local_iterations needs engines of its own; add --recap, or leave it out"
    assert not (tmp_path / "out").exists()


def test_a_model_with_causal_attention_has_no_such_engines(tmp_path: pathlib.Path) -> None:
    config = ModelConfig(
        img_size=8, vae_stride=1, class_num=2, attention="causal", encoder_depth=1, decoder_depth=1, diffloss_d=1
    )
    checkpoint = Checkpoint(
        model=MAR(**config.to_dict()), tokenizer="none", class_names=(), source="x", sha256="0" * 64
    )
    message = refusal(
        RequestError,
        lambda: export_artifact(checkpoint, tmp_path / "out", lambda text: None, optional=RECAP_ENGINES),
    )
    assert message.startswith("ReCAP (recap_local_iterations) is for a MAR with bidirectional attention; leave it out")


@pytest.mark.parametrize("weights_only", [False, True])
def test_all_backbones_are_quantized_with_the_same_weights(
    recap_artifact: pathlib.Path, tmp_path: pathlib.Path, weights_only: bool
) -> None:
    settings = ["--iterations=4", "--diffusion-steps=3", "--start-timestep=900", "--cfg-scale=2"]
    recap = ["--recap-local-iterations=1", "--recap-plain-iterations=1"]
    line = [str(recap_artifact), f"--out={tmp_path / 'low'}", *settings, *recap, "--count=4", "--eval-count=2"]
    only = ["--weights-only"] if weights_only else []
    calibrate.main([*line, *only, "--threads=1", "--target-sqnr=10"], standalone_mode=False)
    low = Artifact(tmp_path / "low")
    low.verify()
    assert not list(low.path.glob("backbone_*.data"))
    stored = low.manifest.files["backbone.onnx.data"].bytes
    assert stored < 0.6 * Artifact(recap_artifact).manifest.files["backbone.onnx.data"].bytes
    quantized = {name: _dequantized_weights(low.path / low.manifest.engines[name]) for name in BACKBONES}
    assert len(quantized["backbone"]) > 10
    assert quantized[FULL] == quantized[LOCAL] == quantized["backbone"]
    for name in RECAP_ENGINES:
        assert low.manifest.parity[name] == low.manifest.parity["backbone"]
    assert low.manifest.parity["generation"]["sqnr_db"] >= 10
    request: dict[str, Any] = {"recap_local_iterations": 1, "iterations": 4, "diffusion_steps": 3, "cfg_scale": 2.0}
    request["start_timestep"] = 900
    with Generator.load(low.path, threads=1) as found, Generator.load(recap_artifact, threads=1) as expected:
        latents = [each.generate([1, 4], **request).latents for each in (found, expected)]
    assert 1e-4 < relative_l2(*latents) < 0.3


def _dequantized_weights(graph: pathlib.Path) -> set[str]:
    """Return the names of the nodes that dequantize weights; those of activations are others."""
    nodes = ir.load(graph).graph
    return {
        str(node.name)
        for node in nodes
        if node.op_type == "DequantizeLinear" and node.inputs[0] is not None and node.inputs[0].is_initializer()
    }


def test_what_measures_single_passes_refuses_local_ones(recap_artifact: pathlib.Path) -> None:
    line = [str(recap_artifact), "--budget-ms", "1000", "--recap-local-iterations", "1"]
    message = refusal(RequestError, lambda: optimize_steps.main(line, standalone_mode=False))
    assert message == "mar optimize-steps has no local iterations; leave out recap_local_iterations"


def test_plan_shows_local_iterations_and_their_cost(recap_artifact: pathlib.Path) -> None:
    options = [
        "--iterations",
        "6",
        "--recap-local-iterations",
        "2",
        "--recap-plain-iterations",
        "1",
        "--no-recap-cache-buffer",
    ]
    line = ["plan", str(recap_artifact), *options]
    shown = CliRunner().invoke(mar, line, catch_exceptions=False).output
    rows = [row.split()[1] for row in shown.splitlines() if row.lstrip()[:1].isdigit() and "backbone pass" not in row]
    assert rows[:6] == ["full", "full", "local", "local", "full", "local"]
    assert "6 backbone passes (3 local)" in shown
    document = json.loads(CliRunner().invoke(mar, [*line, "--json"], catch_exceptions=False).stdout)
    assert [each["pass"] for each in document["iterations"]] == rows[:6]
    assert document["sampling"]["recap_cache_buffer"] is False
    operations = [next(iter(each["operations"].items())) for each in document["iterations"]]
    assert [name for name, _ in operations] == ["backbone", FULL, LOCAL, LOCAL, FULL, LOCAL]
    assert all(dict(document["iterations"][n]["seconds"])[name] > 0 for n, (name, _) in enumerate(operations))


def test_the_record_of_an_image_gives_the_command_that_draws_it_again(recap_artifact: pathlib.Path) -> None:
    settings: dict[str, Any] = {"recap_local_iterations": 2, "recap_cache_buffer": False, "recap_diffusion_share": 0.5}
    with Generator.load(recap_artifact, threads=1) as generator:
        (record,) = generator.records([3], **settings)
        (plain,) = generator.records([3])
    assert not any(name.startswith("recap") for name in plain.settings)
    _, name, *words = command(record)
    parsed = generate.make_context(name, words).params
    assert {name: parsed[name] for name in settings} == settings
