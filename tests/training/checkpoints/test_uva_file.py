"""Published files of UVA: the averaged weights and their config, and one line for what is not supported."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

from runtime.errors import CheckpointError, ConfigError, MarError
from tests.helpers.golden_cases import GOLDEN
from tests.helpers.uva_cases import uva_checkpoint, uva_file, uva_heads
from training.checkpoints import uva_file as reader
from training.checkpoints.checkpoint import load_checkpoint
from training.checkpoints.pickles import read_pickle
from training.models.autoencoder import AutoencoderKL, VAEConfig


def plain(model: str) -> dict[str, Any]:
    """The content of a golden file, whose config is plain dictionaries."""
    content = read_pickle(uva_file(model))
    return {"cfg": reader._plain(content["cfg"]), "state_dicts": {"ema_model": content["state_dicts"]["ema_model"]}}


def load(path: pathlib.Path, **options: Any) -> Any:
    return load_checkpoint(path, uva_heads("case0"), any_family=True, **options)


def test_the_averaged_weights_and_the_settings_of_the_config_are_taken() -> None:
    checkpoint = uva_checkpoint("case0")
    content = read_pickle(uva_file("case0"))["state_dicts"]
    name = "diffactloss.refine.0.weight"
    assert torch.equal(checkpoint.model.state_dict()[name], content["ema_model"][f"model.{name}"])
    assert not torch.equal(content["model"][f"model.{name}"], content["ema_model"][f"model.{name}"])
    config = checkpoint.model.config
    assert (config.text_dim, config.state_dim, config.action_dim, config.n_action_steps) == (512, 0, 10, 8)
    assert (config.act_diff_testing_steps, config.temperature) == ("100", 0.95)
    assert torch.tensor(config.action_scale).equal(content["ema_model"]["normalizer.params_dict.action.scale"])
    assert checkpoint.tokenizer == "none"
    assert "lacks" in checkpoint.warnings[0]


def test_a_stored_normalizer_is_ignored_where_the_config_says_none() -> None:
    config = uva_checkpoint("case1").model.config
    assert (config.action_scale, config.action_offset) == ((), ())
    assert (config.state_dim, config.state_steps) == (16, 4)


def test_a_complete_autoencoder_is_loaded(tmp_path: pathlib.Path) -> None:
    content = plain("case0")
    vae = AutoencoderKL(VAEConfig())
    weights = {f"vae_model.{name}": torch.zeros_like(tensor).half() for name, tensor in vae.state_dict().items()}
    content["state_dicts"]["ema_model"] = {**content["state_dicts"]["ema_model"], **weights}
    torch.save(content, tmp_path / "latest.ckpt")
    loaded = load(tmp_path / "latest.ckpt")
    assert (loaded.tokenizer, loaded.vae.latent_scale, loaded.warnings) == ("kl", 0.2325, ())
    assert load(tmp_path / "latest.ckpt", latent_scale=0.5).vae.latent_scale == 0.5


def weights_of(content: dict[str, Any]) -> dict[str, Any]:
    content["state_dicts"]["ema_model"] = dict(content["state_dicts"]["ema_model"])
    found: dict[str, Any] = content["state_dicts"]["ema_model"]
    return found


def policy_of(content: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = content["cfg"]["model"]["policy"]
    return found


WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], type[MarError], str]] = {
    "no averages": (
        lambda c: c["state_dicts"].pop("ema_model"),
        CheckpointError,
        "expected the averaged weights of a UVA under state_dicts.ema_model",
    ),
    "no config": (lambda c: c.update(cfg=None), CheckpointError, "cfg: not the config of a UVA, task is no table"),
    "another head": (
        lambda c: policy_of(c)["action_model_params"].update(act_model_type="conv2"),
        CheckpointError,
        "act_model_type must be conv_fc, found 'conv2'",
    ),
    "past actions": (
        lambda c: policy_of(c).update(use_history_action=True),
        CheckpointError,
        "use_history_action is not supported",
    ),
    "wrist images": (
        lambda c: policy_of(c).update(predict_wrist_img=True),
        CheckpointError,
        "predict_wrist_img is not supported",
    ),
    "state of a simulation": (
        lambda c: policy_of(c).update(use_proprioception=True),
        CheckpointError,
        "use_proprioception is supported for tasks umi",
    ),
    "another normalizer": (
        lambda c: c["cfg"]["task"]["dataset"].update(normalizer_type="some"),
        CheckpointError,
        "normalizer_type must be all or none, found 'some'",
    ),
    "no normalizer": (
        lambda c: weights_of(c).pop("normalizer.params_dict.action.scale"),
        CheckpointError,
        "normalizer.params_dict.action.scale is missing",
    ),
    "another image size": (
        lambda c: policy_of(c)["autoregressive_model_params"].update(img_size=128),
        CheckpointError,
        "img_size must be 256, found 128",
    ),
    "a published size that it has not": (
        lambda c: policy_of(c)["autoregressive_model_params"].update(model_size="mar_base"),
        ConfigError,
        "encoder_embed_dim is 32 by its tensors, but 768 by the config of its training",
    ),
    "another number of actions": (
        lambda c: c["cfg"]["task"]["shape_meta"]["action"].update(shape=[7]),
        ConfigError,
        "action_dim is 10 by its tensors, but 7 by",
    ),
    "text that is not there": (
        lambda c: c["cfg"]["task"]["dataset"].update(language_emb_model=None),
        ConfigError,
        "text_dim is 512 by its tensors, but 0 by",
    ),
    "a missing tensor": (
        lambda c: weights_of(c).pop("model.diffactloss.fc.0.weight"),
        CheckpointError,
        "diffactloss.fc.0.weight is missing",
    ),
    "a tensor that is not finite": (
        lambda c: weights_of(c).update({"model.z_proj_ln.bias": torch.full((32,), torch.nan)}),
        CheckpointError,
        "z_proj_ln.bias holds values that are not finite",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_with_a_file_is_one_line(tmp_path: pathlib.Path, wrong: str) -> None:
    change, kind, message = WRONG[wrong]
    content = plain("case0")
    change(content)
    torch.save({**content, "names": "diffactloss"}, tmp_path / "latest.ckpt")
    with pytest.raises(kind) as caught:
        load(tmp_path / "latest.ckpt")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_heads_that_nothing_tells_are_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"give it with --model-config FILE.json, encoder_num_heads and decoder_num"):
        load_checkpoint(uva_file("case0"), any_family=True)


def test_a_command_for_images_refuses_a_policy_in_one_line() -> None:
    with pytest.raises(
        CheckpointError, match=r"latest.ckpt: a UVA, which this command does not support; mar export do"
    ):
        load_checkpoint(uva_file("case0"))


def test_checkpoints_of_other_families_are_none_of_uva() -> None:
    assert not reader.is_published(GOLDEN / "small" / "checkpoint-last.pth")
    assert not reader.is_published(GOLDEN / "nova" / "case0")
    assert not reader.is_published(uva_heads("case0"))


def test_a_config_of_a_published_size_needs_no_other_file() -> None:
    values = reader._of_config(plain_with_size("mar_small"), "a file").values
    assert (values["encoder_num_heads"], values["decoder_depth"], values["encoder_embed_dim"]) == (6, 6, 768)


def plain_with_size(size: str) -> Any:
    config = json.loads(json.dumps(plain("case1")["cfg"]))
    config["model"]["policy"]["autoregressive_model_params"]["model_size"] = size
    return config
