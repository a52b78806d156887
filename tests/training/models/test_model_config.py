"""The config of a model: impossible values are refused by name, and JSON keeps it."""

from __future__ import annotations

import json
import math

import pytest

from runtime.errors import ConfigError
from runtime.model.config import ModelConfig
from tests.helpers.tiny_runs import TINY, one_sentence


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("img_size", "32"),
        ("img_size", 32.0),
        ("img_size", None),
        ("img_size", 0),
        ("img_size", -32),
        ("img_size", 1 << 20),
        ("img_size", 100),  # not a multiple of the stride of 16
        ("vae_stride", True),
        ("vae_stride", 0),
        ("patch_size", [1]),
        ("patch_size", 3),  # 16 latents to a side are not a multiple
        ("vae_embed_dim", 0),
        ("class_num", 0),
        ("class_num", 1e3),
        ("buffer_size", 0),
        ("encoder_embed_dim", 1000),  # not a multiple of 16 heads
        ("encoder_num_heads", 5),
        ("encoder_num_heads", 0),
        ("encoder_depth", 0),
        ("decoder_embed_dim", 1000),
        ("decoder_num_heads", 5),
        ("decoder_depth", -1),
        ("mlp_ratio", math.nan),
        ("mlp_ratio", math.inf),
        ("mlp_ratio", "4"),
        ("mlp_ratio", 0),
        ("diffloss_d", 0),
        ("diffloss_w", {}),
        ("mask_ratio_min", math.nan),
        ("mask_ratio_min", 1),
        ("mask_ratio_min", -0.1),
        ("label_drop_prob", 1.1),
        ("label_drop_prob", -1),
        ("attn_dropout", 1.0),
        ("proj_dropout", math.nan),
        ("diffusion_batch_mul", 0),
        ("diffusion_batch_mul", 2.5),
    ],
)
def test_the_error_about_an_impossible_config_names_the_field(field: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfig(**{field: value})  # type: ignore[arg-type]
    message = one_sentence(caught)
    related = {"encoder_num_heads": "encoder_embed_dim", "decoder_num_heads": "decoder_embed_dim"}
    assert field in message or related.get(field, field) in message
    assert str(value) in message or repr(value) in message


def test_a_config_read_from_a_file_names_the_file_in_its_error() -> None:
    with pytest.raises(ConfigError, match=r"^shape\.json: .*depth") as caught:
        ModelConfig.from_dict({"encoder_depth": 0}, "shape.json")
    one_sentence(caught)


def test_a_key_the_config_does_not_know_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^shape\.json: .*\bencoder_dept\b"):
        ModelConfig.from_dict({"encoder_dept": 2}, "shape.json")


def test_integers_are_accepted_for_float_fields() -> None:
    assert ModelConfig(mlp_ratio=4, attn_dropout=0).to_dict() == ModelConfig(attn_dropout=0.0).to_dict()


def test_a_config_is_the_same_after_json() -> None:
    assert ModelConfig.from_dict(json.loads(json.dumps(TINY.to_dict())), "here") == TINY
