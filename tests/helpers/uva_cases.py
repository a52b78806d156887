"""The golden cases of UVA's policy mode: what the published code computed for tiny models, stage by stage.

They lie in `tests/golden/uva`, as the published code saves checkpoints.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.sampling.constraints import default_sampling, plan_for
from runtime.sampling.plan import Plan
from training.checkpoints.checkpoint import Checkpoint, load_checkpoint

UVA_GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "uva"

CASES = [(model, file) for model in ("case0", "case1") for file in ("run0.npz", "run1.npz")]
"""Model and file of each case."""

_STATE = ("pos", "rot_axis_angle", "gripper_width", "rot_axis_angle_wrt_start")
_STATE_ARRAYS = [f"in_robot0_{'' if name == 'gripper_width' else 'eef_'}{name}" for name in _STATE]


@dataclasses.dataclass(frozen=True)
class UvaCase:
    """One case: what a policy is given, and what the published code made of it.

    Attributes:
        settings: Keyword arguments of `Policy.act`.
        plan: The plan of these settings.
        observation: What the robots see, with latents of the frames.
        noise: [T + 1, B, 16, A].
        arrays: The arrays of the case.
    """

    settings: dict[str, Any]
    plan: Plan
    observation: dict[str, NDArray[np.float32]]
    noise: NDArray[np.float32]
    arrays: dict[str, NDArray[Any]]


def uva_file(model: str) -> pathlib.Path:
    return UVA_GOLDEN / model / "latest.ckpt"


def uva_heads(model: str) -> pathlib.Path:
    """The heads of a golden model, whose config names no published size."""
    return UVA_GOLDEN.parent / f"uva_{model}_heads.json"


@functools.cache
def uva_checkpoint(model: str) -> Checkpoint:
    """The checkpoint of a golden model."""
    return load_checkpoint(uva_file(model), uva_heads(model), any_family=True)


@functools.cache
def uva_case(model: str, file: str) -> UvaCase:
    config = uva_checkpoint(model).model.config
    meta = next(c for c in json.loads((UVA_GOLDEN / model / "meta.json").read_text())["cases"] if c["file"] == file)
    steps = meta["act_diff_testing_steps"]
    settings = {"diffusion_steps": int(steps) if steps.isdecimal() else steps, "temperature": meta["temperature"]}
    plan = plan_for(config, dataclasses.replace(default_sampling(config), **settings))
    with np.load(UVA_GOLDEN / model / file) as stored:
        arrays = {name: stored[name] for name in stored.files}
    observation = {"latents": arrays["in_cond"], "text": arrays["in_text"]}
    if config.state_dim:
        history = np.concatenate([arrays[name] for name in _STATE_ARRAYS], axis=-1)  # [B, 16, 16]
        observation["state"] = np.take_along_axis(history, arrays["in_img_indices"][..., None], axis=1)
    noise = arrays["noise"].reshape(len(arrays["noise"]), -1, config.tokens, config.action_dim)
    return UvaCase(settings, plan, observation, noise, arrays)
