"""Two processes cannot work in one folder: the second is told who holds it, and changes nothing there."""

from __future__ import annotations

import pathlib

import pytest

from tests.helpers.command_line import Mar
from tests.helpers.held_places import names, other_process
from tests.helpers.published_forms import VAE, vae_weights, write_safetensors
from tests.helpers.tiny_runs import TINY, randomized, start, write_idx_dataset
from training.checkpoints.checkpoint import Checkpoint, save_run
from training.models.mar import MAR

LINES = {
    "train --resume {folder}/run --threads 1": ("holding_folder", "run"),
    "train --model pixel_small --image-size 12 --steps 2 --data {folder}/images --out {folder}/new --threads 1": (
        "holding_folder",
        "new",
    ),
    "cache-latents --data {folder}/images --tokenizer {folder}/kl.safetensors --image-size 12 --out {folder}/new": (
        "holding_folder",
        "new",
    ),
    "flow-head {folder}/teacher --data {folder}/images --out {folder}/flow": ("holding_folder", "flow"),
    "distill {folder}/teacher --to 2 --data {folder}/images --out {folder}/few": ("holding_folder", "few"),
    "evaluate {folder}/teacher --data {folder}/images --split train --out {folder}/new --threads 1 "
    "--classifier {folder}/classifier.safetensors": ("holding_folder", "new"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """What the commands read: images, a run of two steps, another one, an autoencoder."""
    folder = tmp_path_factory.mktemp("held")
    data = write_idx_dataset(folder / "images", images=160)
    start(folder / "run", data, 2).train()
    save_run(folder / "teacher", Checkpoint(randomized(MAR(**TINY.to_dict())), "pixel", ("a", "b", "c"), "t", "0" * 64))
    write_safetensors(folder / "kl.safetensors", vae_weights(VAE))
    return folder


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.split(" {")[0])
def test_the_second_command_in_a_folder_is_told_who_holds_it(mar: Mar, folder: pathlib.Path, line: str) -> None:
    block, name = LINES[line]
    with other_process(block, folder / name) as process:
        before = names(folder / name) if (folder / name).exists() else []
        ended = mar(line.format(folder=folder))
        assert ended.code == 1
        last = ended.err.splitlines()[-1]
        assert last.startswith(f"mar: {folder / name} is in use by process {process.pid} on ")
        assert "Traceback" not in ended.err
        assert (names(folder / name) if (folder / name).exists() else []) == before


@pytest.mark.parametrize("line", [line for line in LINES if "{folder}/new" in line and "evaluate" not in line])
def test_a_folder_of_something_else_is_not_written_into(
    mar: Mar, folder: pathlib.Path, tmp_path: pathlib.Path, line: str
) -> None:
    (tmp_path / "loss.png").write_text("mine")
    ended = mar(line.format(folder=folder).replace(f"{folder}/new", str(tmp_path)))
    assert ended.code == 2
    kind = "cache of latents" if line.startswith("cache") else "run"
    expected = f"mar: {tmp_path} exists and is no {kind}; choose another --out, or remove it yourself\n"
    assert ended.err.endswith(expected)
    assert names(tmp_path) == ["loss.png"]
