"""Published folders of NOVA: sizes come from tensors and configs, and what contradicts each other is one line."""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from runtime.errors import CheckpointError, ConfigError, MarError
from tests.helpers.nova_cases import HEADS, NOVA_GOLDEN, nova_checkpoint
from training.checkpoints.checkpoint import load_checkpoint
from training.models.nova import Nova, output_rows_channels_first


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of a golden folder, to change."""
    copy = tmp_path / "nova"
    for file in (NOVA_GOLDEN / "case0").rglob("*.json"):
        target = copy / file.relative_to(NOVA_GOLDEN / "case0")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    for part in ("transformer", "vae"):
        name = "diffusion_pytorch_model.safetensors"
        shutil.copyfile(NOVA_GOLDEN / "case0" / part / name, copy / part / name)
    return copy


def change(file: pathlib.Path, **values: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    stored = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps({key: value for key, value in stored.items() if value is not None}))


def load(folder: pathlib.Path) -> Any:
    return load_checkpoint(folder, HEADS, any_family=True)


def test_a_folder_has_model_scheduler_and_autoencoder() -> None:
    checkpoint = nova_checkpoint("case0")
    config = checkpoint.model.config
    assert (config.grid_shape, config.condition_rows, config.token_channels) == ((8, 8), 16, 16)
    assert (checkpoint.tokenizer, checkpoint.vae.latent_scale) == ("kl", 0.13025)
    assert nova_checkpoint("case1").tokenizer == "none"
    assert nova_checkpoint("case1").model.config.grid_shape == (6, 10)
    assert {tensor.dtype for tensor in nova_checkpoint("case1").model.state_dict().values()} == {torch.float32}


def test_the_head_gives_tokens_with_channels_outermost() -> None:
    model: Nova = nova_checkpoint("case0").model
    stored = load_file(NOVA_GOLDEN / "case0" / "transformer" / "diffusion_pytorch_model.safetensors")
    rows = output_rows_channels_first(model.config)
    assert rows[:5].tolist() == [0, 4, 8, 12, 1]  # of (i, j, channel): the four cells of channel 0, then channel 1
    assert torch.equal(model.image_decoder.head.weight, stored["image_decoder.head.weight"][rows])


TRANSFORMER, SCHEDULER, VAE = "transformer/config.json", "scheduler/scheduler_config.json", "vae/config.json"
WRONG: dict[str, tuple[str, dict[str, Any], type[MarError], str]] = {
    "another depth": (
        TRANSFORMER,
        {"arch": ["vit_d2w64", "vit_d5w64", "mlp_d3w80"]},
        ConfigError,
        "image_depth is 4 by its tensors, but 5 by",
    ),
    "another width of text": (TRANSFORMER, {"text_token_dim": 41}, ConfigError, "text_token_dim is 40 by its tensors"),
    "rotation without its tensors": (TRANSFORMER, {"rotary_pos_embed": True}, ConfigError, "rotary is False by its"),
    "a stride that the autoencoder has not": (
        TRANSFORMER,
        {"image_stride": 16},
        ConfigError,
        "image_stride is 16 by",
    ),
    "no names of sizes": (TRANSFORMER, {"arch": ["vit", 3]}, CheckpointError, "arch must be three names such as"),
    "two widths": (
        TRANSFORMER,
        {"arch": ["vit_d2w32", "vit_d4w64", "mlp_d3w80"]},
        CheckpointError,
        "arch has two widths, 32 and 64",
    ),
    "no length of text": (TRANSFORMER, {"text_token_len": None}, CheckpointError, "the key text_token_len is missing"),
    "videos": (TRANSFORMER, {"video_base_size": [9, 4, 4]}, CheckpointError, "a NOVA of videos"),
    "an odd size": (TRANSFORMER, {"image_size": [128, 120]}, ConfigError, "image_width 120 is not a multiple of 32"),
    "another scheduler": (
        SCHEDULER,
        {"_class_name": "EulerDiscreteScheduler"},
        ConfigError,
        "the scheduler 'EulerDiscreteScheduler' is not known, only FlowMatchEulerDiscreteScheduler and DDPMScheduler",
    ),
    "dynamic shifting": (SCHEDULER, {"use_dynamic_shifting": True}, ConfigError, "use_dynamic_shifting must be False"),
    "an impossible shift": (SCHEDULER, {"shift": 0}, ConfigError, "shift must be a finite number"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_folder_is_one_line_that_names_file_and_value(folder: pathlib.Path, wrong: str) -> None:
    file, values, kind, message = WRONG[wrong]
    change(folder / file, **values)
    with pytest.raises(kind) as caught:
        load(folder)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_tensor_is_named(folder: pathlib.Path) -> None:
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["image_decoder.norm.proj.bias"]
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"image_decoder\.norm\.proj\.bias is missing"):
        load(folder)


def test_an_unknown_width_needs_the_number_of_heads() -> None:
    with pytest.raises(ConfigError, match=r"no published model has the width 64; give it with --model-config"):
        load_checkpoint(NOVA_GOLDEN / "case0", any_family=True)


def test_commands_for_mar_refuse_it_in_one_line() -> None:
    with pytest.raises(CheckpointError, match=r"a NOVA, which this command does not support; mar export does$"):
        load_checkpoint(NOVA_GOLDEN / "case0", HEADS)


@pytest.mark.parametrize("option", ["name", "tokenizer"])
def test_options_of_a_mar_are_refused(option: str) -> None:
    given: dict[str, Any] = {"name": "mar_base", "tokenizer": NOVA_GOLDEN}
    with pytest.raises(ConfigError, match="is for checkpoints of a MAR"):
        load_checkpoint(NOVA_GOLDEN / "case0", HEADS, any_family=True, **{option: given[option]})
