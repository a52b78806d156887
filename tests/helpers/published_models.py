"""Files that belong to published models in tests: configs beside them, autoencoders, and the refusal of bad ones."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
import torch

from runtime.errors import CheckpointError, MarError
from tests.helpers.published_forms import HEADS, LAYOUT, write_json
from tests.helpers.tiny_runs import TINY, one_sentence, randomized
from training.checkpoints import checkpoint
from training.models.mar import MAR

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def heads_file(tmp_path: pathlib.Path) -> pathlib.Path:
    """The arguments that a model needs whose file gives its layout."""
    return write_json(tmp_path / "heads.json", HEADS)


@pytest.fixture
def arguments_file(tmp_path: pathlib.Path) -> pathlib.Path:
    """The arguments that a model needs whose file gives none."""
    return write_json(tmp_path / "shape.json", {**HEADS, **LAYOUT})


def refusal(path: pathlib.Path, error: type[MarError] = CheckpointError, **options: Any) -> str:
    """The one line that says why a checkpoint is refused."""
    with pytest.raises(error) as caught:
        checkpoint.load_checkpoint(path, **options)
    return one_sentence(caught)


def write_vae_checkpoint(folder: pathlib.Path, weights: Any, **others: Any) -> pathlib.Path:
    """An autoencoder as the published code saves it."""
    file = folder / "kl.ckpt"
    torch.save({"model": weights, **others}, file)
    return file


def write_tiny_run(folder: pathlib.Path, **changes: object) -> pathlib.Path:
    """A run folder with a random tiny model in it."""
    config = {"model": TINY.to_dict(), "tokenizer": "pixel", "class_names": ["a", "b", "c"]}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config | changes))
    checkpoint.save_weights(folder / "model.safetensors", randomized(MAR(**TINY.to_dict())).state_dict())
    return folder
