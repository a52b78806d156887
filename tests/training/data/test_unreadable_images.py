"""Unreadable images: each is reported once and skipped, and the run stops only if it is configured to."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from runtime.errors import DataError, RequestError
from tests.helpers.published_forms import VAE, vae_weights, write_safetensors
from tests.helpers.tiny_runs import (
    TINY,
    logged,
    one_sentence,
    tiny_tokenizer,
    tiny_training,
    write_bad_folder,
)
from training.checkpoints.checkpoint import save_weights
from training.checkpoints.published_files import load_vae
from training.cli.cache_latents import cache as cache_command
from training.config import RunConfig
from training.data.datasets import open_dataset, readable_batches
from training.data.latent_dataset import open_latents
from training.data.loader import MicroBatches
from training.evaluation.classifier import Classifier
from training.evaluation.feature_networks import DatasetClassifier
from training.evaluation.real_statistics import load_or_compute_statistics
from training.heads.dataset import collect_head_dataset
from training.loop.mar_trainer import MarTrainer
from training.models.mar import MAR
from training.tokenizer.trainer import TokenizerTrainer

COLOURED = dataclasses.replace(TINY, vae_embed_dim=3)


@pytest.fixture
def data(tmp_path: pathlib.Path) -> pathlib.Path:
    return write_bad_folder(tmp_path / "data")


def _start(data: pathlib.Path, steps: int = 10, **settings: Any) -> MarTrainer:
    return MarTrainer.start(data.parent / "run", RunConfig(str(data), COLOURED, tiny_training(steps, **settings)))


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_images_are_reported_once_by_their_paths_and_counted_and_the_run_continues(
    data: pathlib.Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    _start(data, workers=workers).train()
    output = capsys.readouterr().err
    bad = ("bird", "cat/4.png", "dog/7.png", "dog/3.png")
    assert [output.count(f"{data / name}: ") for name in bad] == [1] * 4
    entries = [json.loads(line) for line in (data.parent / "run" / "log.jsonl").read_text().splitlines()]
    assert [entry["bad_data"] for entry in entries if "bad_data" in entry] == [1, 2, 3, 4]
    assert sorted(logged(data.parent / "run", "loss")) == list(range(1, 11))


def test_a_resumed_run_does_not_count_reported_images_again(data: pathlib.Path) -> None:
    _start(data, steps=5).train()
    MarTrainer.resume(data.parent / "run", changes={"steps": 10}).train()
    entries = [json.loads(line) for line in (data.parent / "run" / "log.jsonl").read_text().splitlines()]
    assert [entry["bad_data"] for entry in entries if "bad_data" in entry] == [1, 2, 3, 4]


def test_with_bad_data_stop_a_run_stops_at_the_first_unreadable_image(data: pathlib.Path) -> None:
    (data / "bird").rmdir()
    trainer = _start(data, bad_data="stop")
    with pytest.raises(DataError, match=r"(4|7|3)\.png.*--bad-data report") as caught:
        trainer.train()
    one_sentence(caught)


def test_a_run_that_stops_before_its_first_step_leaves_no_folder(data: pathlib.Path) -> None:
    """So that the same command can be given again."""
    for _ in range(2):
        trainer = _start(data, bad_data="stop")  # a class is empty
        with pytest.raises(DataError, match=r"bird.*--bad-data report"):
            trainer.train()
        assert trainer.step == 0
        assert not trainer.run.exists()


def test_a_run_does_not_start_in_a_folder_of_something_else(data: pathlib.Path) -> None:
    notes = data.parent / "run" / "notes"
    notes.parent.mkdir()
    notes.write_text("kept")
    with pytest.raises(RequestError, match="exists and is no run; choose another --out"):
        _start(data, bad_data="stop")
    assert notes.read_text() == "kept"


def test_a_run_that_stops_later_is_kept_and_resumes_as_advised(data: pathlib.Path) -> None:
    (data / "bird").rmdir()
    trainer = _start(data, bad_data="stop", batch_size=1, seed=5)
    with pytest.raises(DataError, match="--bad-data report"):
        trainer.train()
    assert trainer.step == 1
    (data / "dog" / "5.png").write_text("the image of that step")
    with pytest.raises(DataError, match=r"5\.png"):  # before its first step, but it is no new run
        MarTrainer.resume(trainer.run).train()
    trainer = MarTrainer.resume(trainer.run, changes={"bad_data": "report"})
    trainer.train()
    assert trainer.step == 10


def test_another_example_replaces_an_unreadable_one_with_its_own_label(data: pathlib.Path) -> None:
    source = open_latents(data, 12)
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


def test_a_disk_that_disappears_ends_the_run(data: pathlib.Path) -> None:
    trainer = _start(data)
    for file in data.rglob("*.png"):
        file.unlink()
    with pytest.raises(DataError, match="10 images in a row cannot be read") as caught:
        trainer.train()
    one_sentence(caught)


# Beyond the steps of a run: whatever else looks at images goes on without the bad ones too.

BAD = {"cat/4.png", "dog/7.png"}
ALL = np.arange(10)


def _paths(data: pathlib.Path, warnings: list[str]) -> set[str]:
    """The unreadable images that warnings are of."""
    unreadable = [complaint for complaint in warnings if "not a readable image" in complaint]
    return {str(pathlib.Path(complaint.split(": ")[0]).relative_to(data)) for complaint in unreadable}


@pytest.mark.parametrize("size", [1, 3, 10, 64])
def test_batches_contain_all_readable_images(data: pathlib.Path, size: int) -> None:
    dataset = open_dataset(data, 12)
    batches = list(readable_batches(dataset, ALL, size))
    indices = np.concatenate([of for _, of in batches])
    names = [str(pathlib.Path(dataset.name(index)).relative_to(data)) for index in range(10)]
    assert [names[index] for index in indices] == [name for name in names if name not in BAD]
    for images, of in batches:
        assert (images == dataset.images(of)).all()
    assert _paths(data, dataset.warnings) == BAD


def test_a_disk_that_disappears_is_not_reported_as_a_bad_image(data: pathlib.Path) -> None:
    dataset = open_dataset(data, 12)
    for file in data.rglob("*.png"):
        file.unlink()
    with pytest.raises(DataError, match="10 images in a row cannot be read") as caught:
        list(readable_batches(dataset, ALL, 4))
    one_sentence(caught)


def test_a_tokenizer_is_trained_and_evaluated_without_unreadable_images(
    data: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its scale and its reconstructions are measured by fixed images, bad ones among them."""
    config = tiny_tokenizer(data, 2, image_size=12, eval_count=10)
    TokenizerTrainer.start(data.parent / "tokenizer", config).train()
    assert (data.parent / "tokenizer" / "samples" / "step-000002.png").is_file()
    assert load_vae(data.parent / "tokenizer" / "tokenizer.safetensors").latent_scale > 0
    output = capsys.readouterr().err
    assert all(str(data / name) in output for name in BAD)


def test_statistics_of_real_images_leave_out_unreadable_ones(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    dataset = open_dataset(data, 12)
    classifier, weights = Classifier(dataset.channels, len(dataset.classes)).eval(), tmp_path / "weights.safetensors"
    save_weights(weights, classifier.state_dict())
    network = DatasetClassifier(classifier, weights)
    seen = load_or_compute_statistics(network, dataset, 10, tmp_path, lambda done: None)
    assert seen.moments.mean.shape == (64,)
    assert len(seen.sample) == seen.images == 8
    assert _paths(data, dataset.warnings) == BAD
    again = load_or_compute_statistics(network, open_dataset(data, 12), 10, tmp_path, lambda done: None)
    assert np.array_equal(again.sample, seen.sample)
    assert again.images == 8


def test_the_dataset_of_a_head_leaves_out_unreadable_images(data: pathlib.Path) -> None:
    source = open_latents(data, 12)
    model = MAR(**COLOURED.to_dict()).eval()
    assert len(collect_head_dataset(model, source, 10, seed=0)) > 0
    assert _paths(data, source.warnings) == BAD


@pytest.mark.parametrize("bad_data", ["report", "stop"])
def test_caching_latents_reports_every_defect_or_stops_at_the_first(data: pathlib.Path, bad_data: str) -> None:
    tokenizer = write_safetensors(data.parent / "kl.safetensors", vae_weights(VAE))
    line = ["--data", data, "--tokenizer", tokenizer, "--out", data.parent / "cache", "--image-size", 12]
    done = CliRunner().invoke(cache_command, [*map(str, line), "--bad-data", bad_data, "--batch-size", "2"])
    output = done.output + str(done.exception or "")
    if bad_data == "stop":
        assert isinstance(done.exception, DataError)
        assert "--bad-data stop" in output
        return
    assert done.exit_code == 0, output
    assert [output.count(f"{data / name}: ") for name in ("bird", "cat/4.png", "dog/7.png", "dog/3.png")] == [1] * 4
    assert "2 left out" in output
