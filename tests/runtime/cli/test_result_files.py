"""Files that commands write: what they replace, and what they refuse to replace without --force."""

from __future__ import annotations

import json
import pathlib

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from runtime.cli.options import PATH
from runtime.cli.result_files import (
    OUTPUT,
    check_result_file,
    force_option,
    is_forced,
    result_file,
    write_result_json,
)
from runtime.errors import RequestError


@click.command()
@click.option("--image", type=OUTPUT)
@click.option("--report", type=OUTPUT)
@click.option("--latents", type=OUTPUT)
@click.option("--data", type=PATH)
@click.option("--seed", type=int, default=0)
@force_option("Replace files.")
def draw(
    image: pathlib.Path | None,
    report: pathlib.Path | None,
    latents: pathlib.Path | None,
    data: pathlib.Path | None,
    seed: int,
) -> None:
    for path in (image, report, latents):
        if path is not None:
            check_result_file(path)
    if image is not None:
        with result_file(image) as temporary:
            Image.fromarray(np.full((2, 2), seed, np.uint8)).save(temporary, format="PNG")
    if report is not None:
        write_result_json(report, {"seed": seed})
    if latents is not None:
        with result_file(latents) as temporary, temporary.open("wb") as file:
            np.save(file, np.array([seed]))
    click.echo(f"forced {is_forced()}")


@click.command()
@click.option("--report", type=OUTPUT)
@click.option("--seed", type=int, default=0)
@force_option("Replace files.")
def other(report: pathlib.Path, seed: int) -> None:
    check_result_file(report)
    write_result_json(report, {"other": seed})


def run(*line: object, command: click.Command = draw) -> Result:
    return CliRunner().invoke(command, [str(word) for word in line])


def refused(*line: object, command: click.Command = draw) -> str:
    error = run(*line, command=command).exception
    assert isinstance(error, RequestError)
    return str(error)


@pytest.fixture
def image(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "image.png"


@pytest.fixture
def report(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "report.json"


def test_the_same_command_replaces_its_own_files(image: pathlib.Path, report: pathlib.Path) -> None:
    for _ in range(2):
        assert run("--image", image, "--report", report, "--seed", 3).output == "forced False\n"
    assert json.loads(report.read_text())["seed"] == 3
    with Image.open(image) as opened:
        opened.load()
        assert opened.getpixel((0, 0)) == 3
        assert opened.info["made_by"].startswith("mar draw ")


def test_the_mark_does_not_depend_on_the_names_of_outputs_and_keeps_a_moved_file(image: pathlib.Path) -> None:
    run("--image", image)
    moved = image.rename(image.with_name("moved.png"))
    assert run("--image", moved).exception is None


def test_other_arguments_are_refused_until_they_are_forced(image: pathlib.Path, report: pathlib.Path) -> None:
    run("--image", image, "--report", report)
    before = image.read_bytes(), report.read_bytes()
    for option, path in (("--image", image), ("--report", report)):
        message = refused(option, path, "--seed", 1)
        assert message == (
            f"{path} exists, and this command with these arguments did not make it; choose another name, or give "
            "--force to replace it"
        )
    assert (image.read_bytes(), report.read_bytes()) == before
    assert run("--image", image, "--report", report, "--seed", 1, "--force").output == "forced True\n"
    assert json.loads(report.read_text())["seed"] == 1


def test_the_file_of_another_command_is_refused(report: pathlib.Path) -> None:
    run("--report", report)
    assert "did not make it" in refused("--report", report, command=other)
    run("--report", report, "--force", command=other)
    assert "other" in json.loads(report.read_text())


@pytest.mark.parametrize(
    "content", [b"", b"mine", b'{"made_by": 3}', b"{", b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n\0"]
)
def test_a_file_that_mar_did_not_make_is_refused(image: pathlib.Path, content: bytes) -> None:
    image.write_bytes(content)
    assert "did not make it" in refused("--image", image)
    assert image.read_bytes() == content


def test_an_image_that_another_program_saved_again_is_refused(image: pathlib.Path) -> None:
    run("--image", image)
    with Image.open(image) as opened:
        opened.load()
        opened.save(image, format="PNG")
    assert "did not make it" in refused("--image", image)


def test_an_array_is_marked_behind_its_end(tmp_path: pathlib.Path) -> None:
    latents = tmp_path / "latents.npy"
    for _ in range(2):
        assert run("--latents", latents, "--seed", 3).exception is None
    assert np.load(latents).tolist() == np.load(latents, mmap_mode="r").tolist() == [3]
    assert "did not make it" in refused("--latents", latents)
    np.save(latents, np.load(latents))
    assert "did not make it" in refused("--latents", latents, "--seed", 3)


def test_a_path_is_the_same_argument_from_any_folder(
    image: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("--image", image, "--data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert run("--image", image, "--data", "data").exception is None
    assert "did not make it" in refused("--image", image, "--data", "other")


def test_a_mark_says_nothing_about_paths(image: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run("--image", image, "--data", tmp_path / "secret")
    assert b"secret" not in image.read_bytes()
