"""A run over a folder with bad pictures: it tells of each once, goes on without it, and stops only if asked to."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_runs import TINY, logged, one_sentence, one_thread, tiny_training

from runtime.errors import DataError
from training.config import RunConfig
from training.loader import MicroBatches
from training.source import open_source
from training.trainer import Trainer

COLOURED = dataclasses.replace(TINY, vae_embed_dim=3)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def data(tmp_path: pathlib.Path) -> pathlib.Path:
    """Ten pictures in two of three classes; one is torn, one is text, one is too small."""
    random = np.random.default_rng(0)
    for number in range(10):
        file = tmp_path / "data" / ("cat", "dog")[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        side = 5 if number == 3 else 12
        Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(file)
    (tmp_path / "data" / "bird").mkdir()
    torn = tmp_path / "data" / "cat" / "4.png"
    torn.write_bytes(torn.read_bytes()[:60])
    (tmp_path / "data" / "dog" / "7.png").write_text("not a picture")
    return tmp_path / "data"


def _start(data: pathlib.Path, **settings: Any) -> Trainer:
    return Trainer.start(data.parent / "run", RunConfig(str(data), COLOURED, tiny_training(10, **settings)))


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_pictures_are_told_once_by_their_paths_and_counted_and_the_run_goes_on(
    data: pathlib.Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    _start(data, workers=workers).train()
    told = capsys.readouterr().err
    bad = ("bird", "cat/4.png", "dog/7.png", "dog/3.png")
    assert [told.count(f"{data / name}: ") for name in bad] == [1] * 4
    entries = [json.loads(line) for line in (data.parent / "run" / "log.jsonl").read_text().splitlines()]
    assert [entry["bad_data"] for entry in entries if "bad_data" in entry] == [1, 2, 3, 4]
    assert sorted(logged(data.parent / "run", "loss")) == list(range(1, 11))


def test_a_run_asked_to_stop_stops_at_the_first_bad_picture(data: pathlib.Path) -> None:
    (data / "bird").rmdir()
    trainer = _start(data, bad_data="stop")
    with pytest.raises(DataError, match=r"(4|7|3)\.png.*--bad-data stop") as caught:
        trainer.train()
    one_sentence(caught)


def test_another_example_stands_in_for_a_bad_one_and_has_its_own_label(data: pathlib.Path) -> None:
    source = open_source(data, 12)
    names = [pathlib.Path(source.name(index)).name for index in range(10)]
    config = tiny_training(3, batch_size=10, flip=False)
    part = MicroBatches(source, dataclasses.replace(COLOURED, label_drop_prob=0.0), config, 0, 1)[0]
    seen = [names[example] for example in part.examples]
    assert "4.png" not in seen
    assert "7.png" not in seen
    assert sorted(seen) == sorted([name for name in names if name not in ("4.png", "7.png")] + ["6.png", "9.png"])
    assert part.batch.labels.tolist() == [source.labels[example] for example in part.examples]
    stream = np.random.default_rng(0)
    for latent, example in zip(part.batch.latents.numpy(), part.examples.tolist(), strict=True):
        assert np.array_equal(latent, source.latent(example, False, stream))


def test_a_disk_that_is_gone_ends_the_run(data: pathlib.Path) -> None:
    trainer = _start(data)
    for file in data.rglob("*.png"):
        file.unlink()
    with pytest.raises(DataError, match="100 pictures in a row cannot be read") as caught:
        trainer.train()
    one_sentence(caught)
