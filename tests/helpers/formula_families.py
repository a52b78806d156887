"""Published models of other families than MAR at full size, in the published format, with weights by formula."""

from __future__ import annotations

import pathlib
import re

import torch

from runtime.model.nova_config import FLOW, NovaConfig, NovaScheduler
from runtime.model.uva_config import UvaConfig
from tests.helpers.formula_weights import formula_weights
from tests.helpers.published_forms import shapes, write_component, write_json
from training.models.autoencoder import AutoencoderKL, VAEConfig
from training.models.nova import Nova
from training.models.uva import SIZES, Uva

NOVA_WIDTHS = {"nova-d48w768": 768, "nova-d48w1024": 1024, "nova-d48w1536": 1536}
"""The widths of the published models of 0.3, 0.6 and 1.4 billion parameters."""

NOVA_SIDE = 512
"""Pixels along the side of an image; parameters do not depend on it."""

_HEADS = {768: 12, 1024: 16, 1536: 16}
_KL8 = VAEConfig(latent_channels=4, multipliers=(1, 2, 4, 4), attention_levels=())
_CONDITION, _IMAGE, _HEAD, _STRIDE = 16, 32, 6, 8
_END_OF_BRANCH = re.compile(r"\.blocks\.\d+\.norm[12]\.weight$")
_GAIN = (2 * _IMAGE) ** -0.5
"""Of each x + LN(f(x)), so that x keeps its size over all blocks. With gains of 1, products of queries and keys would
grow with the depth, and round-off by four orders of magnitude, which no trained model in float16 could bear."""


def write_published_nova(folder: pathlib.Path, name: str) -> None:
    """A folder of the published pipeline for images of 512x512 pixels, in float16 as the published weights are run."""
    width = NOVA_WIDTHS[name]
    config = NovaConfig(
        image_height=NOVA_SIDE,
        image_width=NOVA_SIDE,
        image_stride=_STRIDE,
        image_dim=_KL8.latent_channels,
        text_token_dim=2560,
        text_token_len=256,
        width=width,
        heads=_HEADS[width],
        condition_depth=_CONDITION,
        image_depth=_IMAGE,
        head_width=width,
        head_depth=_HEAD,
        rotary=False,
        scheduler=NovaScheduler(FLOW),
    )
    with torch.device("meta"):
        model, vae = Nova(**config.to_dict()), AutoencoderKL(_KL8)
    transformer = {
        "_class_name": "NOVATransformer3DModel",
        "arch": [f"vit_d{_CONDITION}w{width}", f"vit_d{_IMAGE}w{width}", f"mlp_d{_HEAD}w{width}"],
        "image_base_size": list(config.grid_shape),
        "image_dim": config.image_dim,
        "image_size": [NOVA_SIDE, NOVA_SIDE],
        "image_stride": _STRIDE,
        "text_token_dim": config.text_token_dim,
        "text_token_len": config.text_token_len,
        "video_base_size": [1, *config.condition_shape],
    }
    weights = {
        parameter: (tensor * _GAIN if _END_OF_BRANCH.search(parameter) else tensor).half()
        for parameter, tensor in formula_weights(shapes(model)).items()
    }
    write_component(folder / "transformer", weights, transformer)
    write_component(
        folder / "vae", formula_weights(shapes(vae)), {"_class_name": "AutoencoderKL", "scaling_factor": 0.18215}
    )
    write_json(folder / "scheduler" / "scheduler_config.json", {"_class_name": FLOW, "shift": 1.0})
    write_json(folder / "model_index.json", {"_class_name": "NOVAPipeline"})


def write_published_uva(file: pathlib.Path) -> None:
    """A checkpoint as `libero10` is published, with its KL-16 and without what policy mode does not read."""
    config = UvaConfig.from_dict(
        {
            **{
                f"{half}_{field}": value
                for half in ("encoder", "decoder")
                for field, value in SIZES["mar_base"].items()
            },
            "diffloss_act_d": 6,
            "diffloss_act_w": 1024,
            "action_dim": 10,
            "text_dim": 512,
        },
        "the published size",
    )
    with torch.device("meta"):
        model, vae = Uva(**config.to_dict()), AutoencoderKL(VAEConfig())
    named = {**{f"model.{name}": shape for name, shape in shapes(model).items()}}
    named |= {f"vae_model.{name}": shape for name, shape in shapes(vae).items()}
    policy = {
        "n_action_steps": 8,
        "action_model_params": {"act_model_type": "conv_fc"},
        "autoregressive_model_params": {
            "model_size": "mar_base",
            "diffloss_act_d": 6,
            "diffloss_act_w": 1024,
            "act_diff_testing_steps": "100",
            "temperature": 0.95,
        },
    }
    task = {
        "name": "libero10",
        "dataset": {"language_emb_model": "clip", "normalizer_type": "none"},
        "shape_meta": {"action": {"shape": [config.action_dim]}},
    }
    cfg = {"task": task, "model": {"policy": policy}}
    torch.save({"cfg": cfg, "state_dicts": {"ema_model": formula_weights(named)}}, file)
