"""The command `mar calibrate`."""

from __future__ import annotations

import dataclasses
import json
import pathlib

from click.testing import CliRunner, Result

from calibration.cli.calibrate import calibrate
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import MANIFEST
from runtime.errors import MarError
from runtime.sampling.settings import Sampling
from runtime.storage.files import write_json

FEW_STEPS = ["--iterations", 2, "--diffusion-steps", 2, "--count", 2, "--threads", 1]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(calibrate, [str(argument) for argument in arguments], standalone_mode=False)


def error_message(result: Result) -> str:
    assert isinstance(result.exception, MarError), result.output
    assert "\n" not in str(result.exception)
    return str(result.exception)


def test_the_command_writes_an_artifact_and_prints_a_line_for_every_layer(
    small: Artifact, tmp_path: pathlib.Path
) -> None:
    result = run(small.path, "--out", tmp_path / "low", *FEW_STEPS, "--target-sqnr", 5)
    assert result.exception is None, result.output
    assert "denoise/res_blocks.0.mlp.0: " in result.output
    assert "all engines in int8: SQNR of the latents " in result.output
    assert (tmp_path / "low.statistics.npz").exists()
    Artifact(tmp_path / "low").verify()


def test_an_artifact_is_replaced_only_by_force_and_its_presets_stay(small: Artifact, tmp_path: pathlib.Path) -> None:
    out, own = tmp_path / "low", Sampling(iterations=3)
    line = [small.path, "--out", out, "--weights-only", "--engines", "denoise", "--eval-count", 1, *FEW_STEPS]
    assert run(*line).exception is None
    first = Artifact(out).manifest
    write_json(out / MANIFEST, dataclasses.replace(first, presets={"mine": own}).to_dict())
    before = (out / MANIFEST).read_bytes()
    assert run(*line).output == f"{out} holds this artifact already; --force quantizes again\n"
    message = error_message(run(*line, "--target-sqnr", 1))
    assert message.startswith(f"{out} holds another artifact (it differs in quantized with); choose another --out")
    assert (out / MANIFEST).read_bytes() == before
    replaced = run(*line, "--target-sqnr", 1, "--force")
    assert "kept the presets of the replaced artifact: mine" in replaced.output
    assert Artifact(out).manifest.presets == {"mine": own}
    assert "at least 1 dB on 1 image" in Artifact(out).manifest.provenance["quantized_with"]


def test_the_command_writes_a_ranking_and_a_chart(small: Artifact, tmp_path: pathlib.Path) -> None:
    ranking, report = tmp_path / "ranking.json", tmp_path / "report.png"
    options = ["--engines", "denoise", "--eval-count", 1, "--target-sqnr", 0, "--keep-fp", "20%"]
    files = ["--out", tmp_path / "out", "--sensitivity", ranking, "--report", report]
    result = run(small.path, *files, *FEW_STEPS, *options)
    assert result.exception is None, result.output
    assert "most sensitive layers" in result.output
    assert report.exists()
    assert [layer["layer"].split("/")[0] for layer in json.loads(ranking.read_text())["layers"]] == ["denoise"] * 4


def test_an_artifact_that_cannot_be_calibrated_is_refused_in_one_line(
    golden_artifacts: dict[str, pathlib.Path],
    quantized_artifacts: dict[str, pathlib.Path],
    statistics_file: pathlib.Path,
    tmp_path: pathlib.Path,
) -> None:
    out = tmp_path / "out"
    plan = ["--iterations", 4, "--diffusion-steps", 5, "--cfg-scale", 2.0, "--count", 2, "--threads", 1]
    assert "is in int8; calibrate one in fp32" in error_message(run(quantized_artifacts["int8"], "--out", out, *plan))
    other = run(golden_artifacts["patch2"], "--out", out, "--statistics", statistics_file, *plan)
    assert "another artifact" in error_message(other)
    assert not out.exists()


def test_wrong_options_are_refused_in_one_line(small: Artifact, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "out"
    refusals = {
        "unknown nothing": ["--out", out, "--engines", "denoise,nothing"],
        "--count must": ["--out", out, "--count", 0],
        "give --out, the quantized artifact to write, or --report": [],
        "--precision int4 quantizes weights only": ["--out", out, "--precision", "int4"],
        "--weights-only needs --precision int8 or int4": ["--out", out, "--precision", "fp8", "--weights-only"],
        "--weights-only collects no statistics": ["--out", out, "--weights-only", "--report", tmp_path / "report.png"],
        "--keep-fp must be a share": ["--out", out, "--keep-fp", "much"],
        "--eval-count must": ["--out", out, "--eval-count", 0],
        "is the artifact to quantize, whose float32 engines must stay": ["--out", small.path],
        "--target-sqnr must be a number in 0..200, found nan": ["--out", out, "--target-sqnr", "nan"],
    }
    for message, arguments in refusals.items():
        assert message in error_message(run(small.path, *arguments))
    assert not out.exists()
