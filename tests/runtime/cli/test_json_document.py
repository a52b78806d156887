"""`--json`: one document on standard output, which its schema in the documentation describes, and nothing else."""

from __future__ import annotations

import ctypes
import json
import logging
import pathlib
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from runtime.artifact.artifact_folder import Artifact
from runtime.cli.group import mar as group
from runtime.cli.json_document import PrintDocument, json_option
from runtime.errors import MarError
from runtime.log import LOG
from runtime.sampling.settings import LATER_SETTINGS
from tests.helpers.command_line import Mar
from tests.helpers.damaged_artifacts import change_manifest
from tests.helpers.json_documents import SCHEMAS, read_document

COMMANDS = {file.name.split(".")[0] for file in SCHEMAS.glob("*.json")} - {"common"}


@pytest.fixture(scope="module")
def artifact(golden_artifacts: dict[str, pathlib.Path]) -> pathlib.Path:
    return golden_artifacts["small"]


@click.command()
@click.option("--fail", type=click.Choice(["before", "after"]))
@json_option
def talkative(fail: str | None, print_document: PrintDocument) -> None:
    """Prints with Python, with C, and in a child process."""
    print("of Python")
    click.echo("of click")
    ctypes.CDLL(None).puts(b"of C")
    ctypes.CDLL(None).fflush(None)
    subprocess.run([sys.executable, "-c", "print('of a child')"], check=True)
    if fail == "before":
        raise MarError("failed before")
    print_document({"command": "talkative", "letter": "ä"})
    if fail == "after":
        raise MarError("failed after")


PRINTED = ("of Python", "of click", "of C", "of a child")


def test_a_document_that_nobody_can_get_is_an_error_before_the_work(
    mar: Mar, artifact: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    quick = "--count 1 --iterations 1 --diffusion-steps ddim2 --threads 1"
    ended = mar(f"generate {artifact} {quick} --save-latents {tmp_path / 'latents.npy'} --json")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "mar: --json prints to standard output, which is closed; open it, or leave --json out\n"
    assert list(tmp_path.iterdir()) == []


def test_every_command_with_the_option_has_a_schema_and_the_other_way_round() -> None:
    context = click.Context(group)
    commands = {name: group.get_command(context, name) for name in group.list_commands(context)}
    with_json = {name for name, command in commands.items() if "--json" in {o for p in command.params for o in p.opts}}
    assert with_json == COMMANDS


def test_nothing_but_the_document_is_on_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    talkative.main(["--json"], standalone_mode=False)
    out, err = capfd.readouterr()
    assert json.loads(out) == {"command": "talkative", "letter": "ä"}
    assert out.isascii()
    assert all(text in err for text in PRINTED)
    talkative.main([], standalone_mode=False)  # and standard output is itself again
    out, err = capfd.readouterr()
    assert all(text in out for text in PRINTED)
    assert "command" not in out
    assert err == ""


def test_at_a_log_level_without_notes_nobody_gets_the_rest(capfd: pytest.CaptureFixture[str]) -> None:
    level = LOG.level
    LOG.setLevel(logging.WARNING)
    try:
        talkative.main(["--json"], standalone_mode=False)
    finally:
        LOG.setLevel(level)
    out, err = capfd.readouterr()
    assert json.loads(out)["command"] == "talkative"
    assert err == ""


def test_a_failure_prints_no_document_unless_it_is_what_was_found(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MarError, match="before"):
        talkative.main(["--json", "--fail", "before"], standalone_mode=False)
    assert capfd.readouterr().out == ""
    with pytest.raises(MarError, match="after"):
        talkative.main(["--json", "--fail", "after"], standalone_mode=False)
    assert json.loads(capfd.readouterr().out)["command"] == "talkative"


@pytest.mark.parametrize("command", sorted(COMMANDS))
@pytest.mark.parametrize("arguments", ["{folder}/nothing", "--no-such-option"])
def test_a_failure_leaves_standard_output_empty(mar: Mar, tmp_path: pathlib.Path, command: str, arguments: str) -> None:
    more = f"--data {tmp_path}" if command == "evaluate" else f"--out {tmp_path}/x.png" if command == "generate" else ""
    ended = mar(f"{command} {more} --json {arguments.format(folder=tmp_path)}")
    assert ended.code in (1, 2)
    assert ended.out == ""
    assert ended.err.splitlines()[-1].startswith("mar: ")


def test_plan(mar: Mar, artifact: pathlib.Path) -> None:
    line = f"plan {artifact} --iterations 3 --diffusion-steps 4 --cfg-scale 2 --batch-size 2 --threads 1"
    ended = mar(f"{line} --json")
    document = read_document(ended.out)
    assert "predicted time" in ended.err
    iterations = document["iterations"]
    assert [iteration["diffusion_steps"] for iteration in iterations] == [4, 4, 4]
    assert iterations[0]["known_tokens"] == 0
    assert sum(iteration["tokens"] for iteration in iterations) == 16
    assert (document["backbone_passes"], document["head_evaluations"], document["batch_size"]) == (3, 12, 2)
    assert document["sampling"]["cfg_scale"] == 2
    assert document["seconds"] == pytest.approx(sum(sum(each["seconds"].values()) for each in iterations))
    for engine, operations in document["operations"].items():
        assert operations == pytest.approx(sum(iteration["operations"][engine] for iteration in iterations))
    untimed = read_document(mar(f"{line} --no-time --json").out)
    assert untimed["seconds"] is untimed["runs_on"] is untimed["iterations"][0]["seconds"] is None
    assert untimed["operations"] == document["operations"]


def test_generate_and_inspect_of_its_image(mar: Mar, pixel_artifact: pathlib.Path, tmp_path: pathlib.Path) -> None:
    image = tmp_path / "image.png"
    line = f"generate {pixel_artifact} --class 1 --count 1 --seed 5 --preset turbo --iterations 2 --threads 1"
    ended = mar(f"{line} --out {image} --json")
    assert ended.code == 0, ended.err
    document = read_document(ended.out)
    assert (document["images"], document["drawn"], document["preset"]) == (1, 1, "turbo")
    assert (document["out"], document["out_dir"], document["save_latents"]) == (str(image), None, None)
    assert document["sampling"]["iterations"] == 2
    assert document["seconds"] > 0
    found = read_document(mar(f"inspect {image} --json").out)
    (record,) = found["records"]
    settings = {name: value for name, value in document["sampling"].items() if name not in LATER_SETTINGS}
    assert (record["class_number"], record["seed"], record["settings"]) == (1, 5, settings)
    assert found["commands"][0][:3] == ["mar", "generate", "ARTIFACT"]
    artifact = read_document(mar(f"inspect {pixel_artifact} --json").out)
    assert record["artifact_sha256"] == artifact["content_sha256"]


def test_inspect(mar: Mar, artifact: pathlib.Path) -> None:
    document = read_document(mar(f"inspect {artifact} --verify --json").out)
    manifest = Artifact(artifact).manifest
    assert document["model"] == manifest.model.to_dict()
    assert document["verified"] is True
    assert document["bytes"] == sum((artifact / name).stat().st_size for name in manifest.files)
    assert document["bytes"] == sum(engine["bytes"] for engine in document["engines"].values())
    assert document["engines"]["backbone"]["file"] == "backbone.onnx"


def test_inspect_of_an_artifact_with_names_and_presets(mar: Mar, artifact_copy: pathlib.Path) -> None:
    change_manifest(
        artifact_copy, "presets", {"mine": read_document(mar(f"inspect {artifact_copy} --json").out)["sampling"]}
    )
    document = read_document(mar(f"inspect {artifact_copy} --json").out)
    assert document["verified"] is False
    assert document["presets"] == {"mine": document["sampling"]}


def test_doctor(mar: Mar) -> None:
    document = read_document(mar("doctor --json").out)
    assert document["artifact"] is None
    assert document["libraries"]["onnxruntime"]["devices"][-1] == "CPU"
    assert (document["gpu"] is None) == (document["gpu_problem"] is not None)


def test_doctor_prints_the_document_of_a_damaged_artifact_and_fails(mar: Mar, artifact_copy: pathlib.Path) -> None:
    assert read_document(mar(f"doctor {artifact_copy} --json").out)["artifact"]["damage"] is None
    content = bytearray((artifact_copy / "denoise.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (artifact_copy / "denoise.onnx").write_bytes(content)
    ended = mar(f"doctor {artifact_copy} --json")
    assert ended.code == 1
    assert "denoise.onnx: altered since export" in read_document(ended.out)["artifact"]["damage"]


def test_the_output_of_click_is_captured_too(artifact: pathlib.Path) -> None:
    """As for a program that calls a command with click's runner."""
    result = CliRunner().invoke(group, ["inspect", str(artifact), "--json"])
    assert read_document(result.stdout)["artifact"] == str(artifact)
    assert "complete generation" in result.stderr
