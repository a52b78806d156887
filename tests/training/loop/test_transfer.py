"""The weights that a run takes from a checkpoint, and what it tells of them."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import pytest
import torch

from runtime.errors import CheckpointError
from runtime.model.config import ModelConfig
from runtime.storage.structured_files import parse_toml
from tests.helpers.command_line import Command
from tests.helpers.tiny_runs import TINY, logged, one_sentence, one_thread, randomized, write_idx_dataset
from tests.helpers.train_command import error_line
from training.checkpoints import checkpoint
from training.checkpoints.checkpoint import Checkpoint
from training.checkpoints.resize import resize_model
from training.config import to_toml
from training.loop.transfer import Transfer, transfer_weights
from training.models.mar import MAR

_CLASSES = "class_emb.weight"


@pytest.fixture
def source() -> Checkpoint:
    return Checkpoint(randomized(MAR(**TINY.to_dict())).eval(), "pixel", ("cat", "dog", "owl"), "base", "")


def _transfer(source: Checkpoint, config: ModelConfig, classes: list[str]) -> tuple[Transfer, dict[str, torch.Tensor]]:
    fresh = {name: tensor.detach() for name, tensor in MAR(**config.to_dict()).named_parameters()}
    return transfer_weights(source, fresh, config, classes), fresh


def test_a_model_of_the_same_form_takes_every_weight(source: Checkpoint) -> None:
    transfer, fresh = _transfer(source, TINY, ["cat", "dog", "owl"])
    for name, tensor in source.model.state_dict().items():
        assert torch.equal(transfer.weights[name], tensor), name
    assert transfer.lines == (
        f"begins with base: {len(fresh)} of {len(fresh)} tensors taken, 100.0% of the weights",
        "begins with base: class embeddings taken for 3 classes (cat, dog, owl)",
    )


def test_classes_keep_their_embedding_by_name_and_new_ones_begin_at_that_of_no_class(source: Checkpoint) -> None:
    config = dataclasses.replace(TINY, class_num=4)
    transfer, fresh = _transfer(source, config, ["bee", "dog", "elk", "cat"])
    old, rows = source.model.class_emb.weight, transfer.weights[_CLASSES]
    assert torch.equal(rows[1], old[1])
    assert torch.equal(rows[3], old[0])
    for new in (0, 2):
        torch.testing.assert_close(rows[new], source.model.fake_latent[0] + fresh[_CLASSES][new])
    assert not torch.equal(rows[0], rows[2])
    assert transfer.lines[1] == (
        "begins with base: class embeddings taken for 2 classes (dog, cat), new for 2 classes (bee, elk), "
        "left out of 1 class (owl)"
    )


def test_embeddings_without_names_are_taken_by_number_where_the_numbers_agree(source: Checkpoint) -> None:
    unnamed = dataclasses.replace(source, class_names=())
    transfer, _ = _transfer(unnamed, TINY, ["a", "b", "c"])
    assert torch.equal(transfer.weights[_CLASSES], source.model.class_emb.weight)
    transfer, _ = _transfer(unnamed, dataclasses.replace(TINY, class_num=1), ["image"])
    assert transfer.lines[1].endswith("new for 1 class (image), left out of 3 classes without names")


def test_another_image_size_resizes_the_positions(source: Checkpoint) -> None:
    config = dataclasses.replace(TINY, img_size=24)
    transfer, _ = _transfer(source, config, ["cat", "dog", "owl"])
    expected = resize_model(source.model, 24).state_dict()["diffusion_pos_embed_learned"]
    assert torch.equal(transfer.weights["diffusion_pos_embed_learned"], expected)
    assert transfer.lines[1] == "begins with base: position embeddings resized from 3x3 to 6x6 tokens"


def test_tensors_of_other_shapes_stay_new_and_are_told(source: Checkpoint) -> None:
    transfer, fresh = _transfer(source, dataclasses.replace(TINY, vae_embed_dim=3), ["cat", "dog", "owl"])
    new = fresh.keys() - transfer.weights.keys()
    assert {"z_proj.weight", "diffloss.net.input_proj.weight"} <= new
    assert not any(name.startswith(("encoder_blocks", "decoder_blocks")) for name in new)
    assert "new because no tensor has their name and shape: z_proj.weight [16, 48], " in transfer.lines[-1]


def test_a_checkpoint_of_which_nothing_fits_is_refused(source: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match="base: no weights of its blocks fit this model") as caught:
        _transfer(source, dataclasses.replace(TINY, encoder_embed_dim=32, decoder_embed_dim=32), ["cat"])
    one_sentence(caught)


def test_a_run_begins_with_a_checkpoint_of_other_classes_and_size(
    train: Command, two_step_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    data, run = write_idx_dataset(tmp_path / "data", images=8, side=12, classes=3), tmp_path / "run"
    options = ("--data", data, "--batch-size", 4, "--warmup-steps", 0, "--threads", 1)
    with one_thread():
        code, _, err = train(
            "--init", two_step_run, *options, "--image-size", 12, "--out", run, "--steps", 1, "--learning-rate", 1e-12
        )
    assert code == 0, err
    assert "begins with run: position embeddings resized from 2x2 to 3x3 tokens" in err
    assert "class embeddings taken for 2 classes (0, 1), new for 1 class (2)" in err
    ours, theirs = (checkpoint.load_checkpoint(path) for path in (run, two_step_run))
    assert (ours.model.config.class_num, ours.model.config.img_size) == (3, 12)
    torch.testing.assert_close(
        ours.model.encoder_blocks[0].mlp.fc1.weight, theirs.model.encoder_blocks[0].mlp.fc1.weight
    )
    assert json.loads((run / "config.json").read_text())["training"]["init"] == str(two_step_run)
    assert sorted(logged(run, "loss")) == [1]


def test_a_size_that_is_not_that_of_the_checkpoint_is_refused(train: Command, two_step_run: pathlib.Path) -> None:
    code, _, err = train("--init", two_step_run, "--model", "pixel_small", "--data", "d", "--out", "o", "--steps", 1)
    assert code == 2
    assert f"the run has the model of {two_step_run} (--init), whose img_size is 8, found 32" in error_line(err)
    assert error_line(err).endswith("remove the size (--model)")


def test_a_file_that_describes_the_model_of_the_checkpoint_goes_on_with_it(
    train: Command, two_step_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    stored = json.loads((two_step_run / "config.json").read_text())["model"]
    model = {name: value for name, value in stored.items() if name not in ("class_num", "vae_embed_dim")}
    (tmp_path / "run.toml").write_text(to_toml({"model": {"name": "pixel_small", **model}}))
    options = ("--init", two_step_run, "--data", "d", "--steps", 3, "--print-config")
    code, printed, err = train("--config", tmp_path / "run.toml", *options)
    assert code == 0, err
    described, alone = (parse_toml(text) for text in (printed, train(*options)[1]))
    assert described["model"] == alone["model"]
    assert described["training"]["learning_rate"] == 2e-3  # that of the size
