"""Published files of Hi-MAR: sizes come from tensors and arguments, and what does not fit is one line."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

from runtime.errors import CheckpointError, ConfigError, MarError
from tests.helpers.golden_cases import GOLDEN
from tests.helpers.himar_cases import HIMAR_GOLDEN, himar_checkpoint
from training.checkpoints.checkpoint import load_checkpoint, save_run
from training.models.himar import Himar, sine_table
from training.models.model_sizes import model_config

FILE, CONFIG = HIMAR_GOLDEN / "checkpoint-last.pth", HIMAR_GOLDEN / "meta.json"
MAR_FILE, MAR_CONFIG = GOLDEN / "small" / "checkpoint-last.pth", GOLDEN / "small" / "meta.json"


def test_a_file_tells_its_sizes() -> None:
    config = himar_checkpoint().model.config
    assert config.grids == ((4, 4), (16, 16))
    assert (config.token_channels, config.encoder_depth, config.decoder_depth, config.buffer_size) == (8, 3, 2, 8)
    assert (config.diffloss_d, config.diffloss_w) == (2, 64)
    assert (config.gdm_d, config.gdm_w, config.gdm_heads, config.gdm_ratio) == (2, 48, 4, 4.0)
    assert himar_checkpoint().tokenizer == "none"


def test_the_averaged_weights_are_taken() -> None:
    stored = torch.load(FILE, weights_only=False)
    assert torch.equal(himar_checkpoint().model.z_proj.weight, stored["model_ema"]["z_proj.weight"])
    assert not torch.equal(himar_checkpoint().model.z_proj.weight, stored["model"]["z_proj.weight"])


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("himar_base", 244_730_160), ("himar_large", 529_490_480), ("himar_huge", 1_090_965_808)],
)
def test_published_sizes_have_the_published_parameters(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = Himar(**model_config(name).to_dict())
    ours = {key: list(value.shape) for key, value in model.named_parameters()}
    assert sum(value.numel() for value in model.parameters()) == parameters
    if name == "himar_base":
        assert list(ours.items()) == list(json.loads((HIMAR_GOLDEN / "parameters.json").read_text()).items())


def test_the_table_of_positions_is_the_published_one() -> None:
    stored = torch.load(FILE, weights_only=False)["model_ema"]["cond_diffloss.net.pos_embed"]
    assert torch.allclose(sine_table(16, 48), stored[0], atol=1e-6)


def test_a_run_folder_keeps_the_model(tmp_path: pathlib.Path) -> None:
    checkpoint = himar_checkpoint()
    save_run(tmp_path / "run", checkpoint)
    again = load_checkpoint(tmp_path / "run", any_family=True)
    assert again.model.config == checkpoint.model.config
    for name, tensor in checkpoint.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name
    with pytest.raises(CheckpointError, match="a Hi-MAR, which this command does not support"):
        load_checkpoint(tmp_path / "run")


def _set(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, Any]], None]:
    def apply(weights: dict[str, Any]) -> None:
        weights[name] = change(weights[name])

    return apply


WRONG: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "a small grid that is no square": (
        _set("cond_tokens", lambda t: t[:, :15]),
        "the full grid has 257 positions, which is no square",
    ),
    "a DiT of another grid": (
        _set("cond_diffloss.net.pos_embed", lambda t: t[:, :64]),
        "the DiT has 64 positions, but its full grid 256",
    ),
    "tensors of another width": (_set("mask_token", lambda t: t[..., :40]), "mask_token"),
    "a missing tensor": (lambda weights: weights.pop("cond_tokens"), "cond_tokens is missing"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_tensors_that_do_not_fit_are_one_line(tmp_path: pathlib.Path, wrong: str) -> None:
    change, message = WRONG[wrong]
    stored = torch.load(FILE, weights_only=False)
    change(stored["model_ema"])
    torch.save(stored, tmp_path / "himar.pth")
    refused(lambda: load_checkpoint(tmp_path / "himar.pth", CONFIG, any_family=True), message)


def refused(work: Callable[[], Any], message: str) -> None:
    with pytest.raises(MarError) as caught:
        work()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_config_of_another_grid_is_one_line(tmp_path: pathlib.Path) -> None:
    stored = torch.load(FILE, weights_only=False)
    stored["args"].img_size = 128
    torch.save(stored, tmp_path / "himar.pth")
    refused(
        lambda: load_checkpoint(tmp_path / "himar.pth", CONFIG, any_family=True),
        "img_size is 128 by the arguments it was trained with, but 256 by --model-config",
    )
    values = {name: value for name, value in json.loads(CONFIG.read_text())["config"].items() if name != "img_size"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    refused(
        lambda: load_checkpoint(tmp_path / "himar.pth", tmp_path / "config.json", any_family=True),
        "its tensors have a grid of 16 x 16 tokens of 8 values, but img_size 128",
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "encoder_num_heads, decoder_num_heads, head"),
        ({"encoder_num_heads": 4, "head": 4}, "decoder_num_heads"),
    ],
)
def test_all_missing_heads_are_named_at_once(tmp_path: pathlib.Path, given: dict[str, int], expected: str) -> None:
    stored = torch.load(FILE, weights_only=False)
    del stored["args"].head
    torch.save(stored, tmp_path / "himar.pth")
    (tmp_path / "heads.json").write_text(json.dumps(given))
    refused(
        lambda: load_checkpoint(tmp_path / "himar.pth", tmp_path / "heads.json", any_family=True),
        "the tensors do not determine the number of attention heads, and no published model has their sizes; "
        f"give {expected} with --model-config FILE.json",
    )


def test_a_mar_given_as_a_himar_is_one_line() -> None:
    expected = "--model himar_base: the size of another family than a MAR; known: mar_base"
    refused(lambda: load_checkpoint(MAR_FILE, name="himar_base", any_family=True), expected)
    with pytest.raises(ConfigError, match="unknown model config keys"):
        load_checkpoint(MAR_FILE, CONFIG, any_family=True)


def test_a_himar_given_as_a_mar_is_one_line() -> None:
    expected = "a Hi-MAR, but --model mar_base is the size of another family; known: himar_base"
    refused(lambda: load_checkpoint(FILE, CONFIG, name="mar_base", any_family=True), expected)
    refused(lambda: load_checkpoint(FILE, CONFIG), "a Hi-MAR, which this command does not support")
