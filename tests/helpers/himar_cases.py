"""The golden cases of Hi-MAR: what the published code computed for a tiny model, stage by stage.

They lie in `tests/golden/himar`, beside what it computed for the published B with weights by formula.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.model.himar_config import HimarConfig
from runtime.sampling.constraints import default_sampling, plan_for
from runtime.sampling.plan import Plan
from training.checkpoints.checkpoint import Checkpoint, load_checkpoint

HIMAR_GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "himar"
CASES = ("case0.npz", "case1.npz")

TINY_HIMAR = HimarConfig(
    img_size=16,
    vae_stride=1,
    patch_size=2,
    vae_embed_dim=1,
    class_num=3,
    buffer_size=2,
    encoder_embed_dim=16,
    encoder_depth=1,
    encoder_num_heads=2,
    decoder_embed_dim=16,
    decoder_depth=1,
    decoder_num_heads=2,
    diffloss_d=1,
    diffloss_w=32,
    cond_scale=4,
    gdm_d=2,
    gdm_w=16,
    gdm_heads=2,
)
"""A model of 4 x 4 and 8 x 8 tokens of 2 x 2 pixels."""


@dataclasses.dataclass(frozen=True)
class HimarCase:
    """One case: what a request gives, and what the published code made of it.

    Attributes:
        settings: Keyword arguments of `Generator.generate`.
        plan: The plan of these settings.
        order: The generation order of both grids, [B, P].
        noise: By position, [R, B, P, D].
        arrays: The arrays of the case.
    """

    settings: dict[str, Any]
    plan: Plan
    order: NDArray[np.int64]
    noise: NDArray[np.float32]
    arrays: dict[str, NDArray[Any]]


@functools.cache
def himar_checkpoint() -> Checkpoint:
    """The checkpoint of the golden model, which does not tell its heads."""
    return load_checkpoint(HIMAR_GOLDEN / "checkpoint-last.pth", HIMAR_GOLDEN / "meta.json", any_family=True)


@functools.cache
def himar_case(file: str) -> HimarCase:
    meta = next(c for c in json.loads((HIMAR_GOLDEN / "meta.json").read_text())["cases"] if c["file"] == file)
    return make_case(himar_checkpoint().model.config, HIMAR_GOLDEN / file, meta)


def make_case(config: HimarConfig, path: pathlib.Path, meta: Mapping[str, Any]) -> HimarCase:
    """The case in a file of the published code, with the settings `meta`."""

    def steps(text: str) -> Any:
        return text if text.startswith("ddim") else int(text)

    settings = {
        "iterations": meta["num_iter"],
        "cfg_scale": float(meta["cfg"]),
        "low_res_cfg_scale": float(meta["re_cfg"]),
        "cfg_schedule": meta["cfg_schedule"],
        "temperature": float(meta["temperature"]),
        "diffusion_steps": steps(meta["steps_big"]),
        "low_res_diffusion_steps": steps(meta["steps_small"]),
    }
    plan = plan_for(config, dataclasses.replace(default_sampling(config), **settings))
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    small, big, count = arrays["noise_small"], arrays["noise_big"], config.small_tokens
    batch = len(arrays["labels"])
    noise = np.zeros((plan.noise_steps + 1, batch, config.positions, config.token_channels), np.float32)
    noise[: len(small), :, :count] = small
    rows = big.reshape(-1, *big.shape[2:])  # iteration by iteration
    noise[: len(rows), :, count:] = rows
    order = np.concatenate([arrays["generation_order_small"], count + arrays["generation_order_big"]], axis=1)
    return HimarCase(settings, plan, order, noise, arrays)
