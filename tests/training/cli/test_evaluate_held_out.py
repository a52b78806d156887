"""`mar evaluate` with images that training held out."""

from __future__ import annotations

import json
import pathlib

import pytest
from PIL import Image

from tests.helpers.command_line import Mar
from tests.helpers.tiny_runs import one_thread, start
from tests.helpers.train_command import error_line

_QUICK = "--count 4 --iterations 2 --diffusion-steps ddim2 --threads 1"


def _write(folder: pathlib.Path, classes: tuple[str, ...]) -> pathlib.Path:
    for number in range(240):
        file = folder / classes[number % len(classes)] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 12), (200 * (number % 2), number, 0)).save(file)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Images of two classes, without a test split. Read only."""
    return _write(tmp_path_factory.mktemp("data"), ("dark", "red"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: pathlib.Path) -> pathlib.Path:
    """A run of one step that holds a share of the images out. Read only."""
    run = tmp_path_factory.mktemp("runs") / "run"
    with one_thread():
        start(run, data, 1, validation_share=0.3).train()
    return run


def test_the_held_out_images_of_a_run_are_the_test_split(
    mar: Mar, run: pathlib.Path, data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    trained = sum(json.loads((run / "config.json").read_text())["dataset"]["images"].values())
    with one_thread():
        ended = mar(
            f"evaluate {run} --data {data} {_QUICK} --out {tmp_path} --classifier {tmp_path}/classifier.safetensors "
            f"--report {tmp_path}/figures.json"
        )
    assert ended.code == 0, ended.err
    figures = json.loads((tmp_path / "figures.json").read_text())["features"]["classifier"]
    assert 0 < trained < 240
    assert figures["real"]["images"] == 240 - trained


@pytest.mark.parametrize(("options", "color"), [("", "#102030"), ("--background red", "#ff0000")])
def test_a_run_says_its_own_background(mar: Mar, tmp_path: pathlib.Path, options: str, color: str) -> None:
    data = tmp_path / "data"
    for number in range(8):
        (data / str(number % 2)).mkdir(parents=True, exist_ok=True)
        Image.new("RGBA", (12, 12), (0, 0, number, 0)).save(data / str(number % 2) / f"{number}.png")
    with one_thread():
        start(tmp_path / "run", data, 1, validation_share=0.3, background="#102030").train()
    ended = mar(f"evaluate {tmp_path / 'run'} --data {data} {_QUICK} --out {tmp_path / 'out'} {options}")
    assert f"transparent pixels, which show {color} (--background)" in ended.err


def test_another_share_than_that_of_the_run_is_refused(
    mar: Mar, run: pathlib.Path, data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    ended = mar(f"evaluate {run} --data {data} {_QUICK} --out {tmp_path / 'out'} --validation-share 0.1")
    assert ended.code == 2
    assert error_line(ended.err) == f"mar: {run} held out a share of 0.3, found --validation-share 0.1"


def test_data_without_a_test_split_says_what_to_give(mar: Mar, data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with one_thread():
        start(tmp_path / "run", data, 1).train()
    ended = mar(f"evaluate {tmp_path / 'run'} --data {data} {_QUICK} --out {tmp_path / 'out'}")
    assert ended.code == 1
    assert "or give --split train, or the --validation-share of the run" in error_line(ended.err.splitlines()[-1])


def test_a_classifier_of_one_class_is_refused(mar: Mar, tmp_path: pathlib.Path) -> None:
    data = _write(tmp_path / "data", (".",))
    with one_thread():
        start(tmp_path / "run", data, 1).train()
    ended = mar(f"evaluate {tmp_path / 'run'} --data {data} {_QUICK} --split train --out {tmp_path / 'out'}")
    assert ended.code == 2
    assert error_line(ended.err.splitlines()[-1]).endswith("give --features efficientnet-lite0")
