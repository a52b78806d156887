"""The golden cases of NOVA: what the published code computed for tiny models, stage by stage.

They lie in `tests/golden/nova`, as the published pipeline saves models.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from runtime.model.latents import patchify
from runtime.model.nova_config import NovaConfig
from runtime.sampling.constraints import default_sampling, plan_for
from runtime.sampling.plan import Plan
from training.checkpoints.checkpoint import Checkpoint, load_checkpoint

NOVA_GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "nova"
HEADS = pathlib.Path(__file__).parents[1] / "golden" / "nova_heads.json"
"""The heads of the golden models, which their folders do not tell."""

CASES = [(model, file) for model in ("case0", "case1") for file in ("run0.npz", "run1.npz")]
"""Model and file of the cases without renormalized guidance."""

RENORMALIZED = ("case0", "case1")
"""The models whose `run2.npz` has renormalized guidance, which also reads the noise of positions not predicted."""


@dataclasses.dataclass(frozen=True)
class NovaCase:
    """One case: what a request gives, and what the published code made of it.

    Attributes:
        settings: Keyword arguments of `Generator.generate`.
        plan: The plan of these settings.
        noise: By position, [T + 1, B, L, D]: that of the iteration in which a token is predicted.
        draws: By position, [K, T + 1, B, L, D]: all noise of every iteration.
        arrays: The arrays of the case.
    """

    settings: dict[str, Any]
    plan: Plan
    noise: NDArray[np.float32]
    draws: NDArray[np.float32]
    arrays: dict[str, NDArray[Any]]

    @property
    def prompts(self) -> list[NDArray[np.float32]]:
        return self._rows("prompt_embeds")

    @property
    def negative_prompts(self) -> list[NDArray[np.float32]] | None:
        return self._rows("negative_prompt_embeds") if "negative_prompt_embeds_0" in self.arrays else None

    def _rows(self, name: str) -> list[NDArray[np.float32]]:
        return [self.arrays[f"{name}_{place}"] for place in range(len(self.arrays["order"]))]

    def text(self, config: NovaConfig, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows and the lengths of the prompts of both halves; without negative prompts the second are empty."""
        halves = 2 if self.plan.guided else 1
        count = halves * len(self.prompts)
        given = [*self.prompts, *(self.negative_prompts or [])]
        rows = torch.zeros(count, config.text_token_len, config.text_token_dim, dtype=dtype)
        lengths = torch.zeros(count, dtype=torch.int64)
        for place, prompt in enumerate(given):
            rows[place, : len(prompt)] = torch.from_numpy(prompt).to(dtype)
            lengths[place] = len(prompt)
        return rows, lengths


_PUBLISHED_NAMES = {
    "flow_shift": "flow_shift",
    "guidance_trunc": "cfg_truncation",
    "guidance_renorm": "cfg_renorm",
    "min_guidance_scale": "cfg_min",
}


@functools.cache
def nova_checkpoint(model: str) -> Checkpoint:
    """The checkpoint of a golden model, whose folder does not tell its heads."""
    return load_checkpoint(NOVA_GOLDEN / model, HEADS, any_family=True)


def nova_case(model: str, file: str) -> NovaCase:
    config: NovaConfig = nova_checkpoint(model).model.config
    meta = next(c for c in json.loads((NOVA_GOLDEN / model / "meta.json").read_text())["cases"] if c["file"] == file)
    settings: dict[str, Any] = {
        "iterations": meta["num_inference_steps"],
        "diffusion_steps": meta["num_diffusion_steps"],
        "cfg_scale": float(meta["guidance_scale"]),
    }
    for published, name in _PUBLISHED_NAMES.items():
        if published in meta:
            settings[name] = float(meta[published])
    if "cfg_min" in settings:
        settings["cfg_schedule"] = "ramp"
    plan = plan_for(config, dataclasses.replace(default_sampling(config), **settings))
    with np.load(NOVA_GOLDEN / model / file) as stored:
        arrays = {name: stored[name] for name in stored.files}
    order, draws = arrays["order"], arrays["noise"]
    every = np.zeros((len(draws), plan.diffusion_steps + 1, *order.shape, config.token_channels), np.float32)
    noise = np.zeros_like(every[0])
    for iteration, drawn, own in zip(plan.iterations, draws, every, strict=True):
        for step, latents in enumerate(drawn):
            own[step] = patchify(latents, config.patch_size)
        for image, places in enumerate(order[:, iteration.known : iteration.known + iteration.count]):
            noise[:, image, places] = own[:, image, places]
    return NovaCase(settings, plan, noise, every, arrays)


def channels_first(tokens: NDArray[np.float32], config: NovaConfig) -> NDArray[np.float32]:
    """Golden tokens [..., D], whose channels are innermost, in the order of this project."""
    patch = config.patch_size
    cells = tokens.reshape(*tokens.shape[:-1], patch, patch, config.image_dim)
    return np.moveaxis(cells, -1, -3).reshape(tokens.shape)
