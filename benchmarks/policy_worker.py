"""A process that answers calls of a policy one at a time: the runtime, or the same model in eager PyTorch.

`benchmarks.policy` starts it. The first line of standard input is a JSON object with the keys of `Work`. Every further
line is one with the keys of `Call`, and is answered by a line with the seconds of the call and its actions.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mar_export.benchmark.peak_memory import peak_memory_bytes
from runtime import Policy
from runtime.model.uva_config import FRAMES, UvaConfig
from runtime.requests.frames import encoder_input
from runtime.sampling.constraints import default_sampling, plan_for
from runtime.sampling.presets import resolve_sampling
from runtime.sampling.rng import seeded_noise
from runtime.storage.structured_files import parse_json
from training.checkpoints.random_weights import random_policy
from training.models.autoencoder import VAEConfig
from training.models.transformer import ScaledDotProduct
from training.models.uva_reference import sample_actions

Answer = tuple[float, NDArray[np.floating]]
"""The seconds of a call, and its actions [1, 16, A]."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What answers.

    Attributes:
        artifact: The folder of the artifact.
        backend: The backend of the runtime; empty for eager PyTorch.
        model: The fields of the random model's `UvaConfig`.
        autoencoder: The fields of its `VAEConfig`.
        threads: The number of processor threads.
        attention_dropout: Of eager PyTorch: the dropout in attention, which the published code applies in use too.
    """

    artifact: str
    backend: str
    model: dict[str, Any]
    autoencoder: dict[str, Any]
    threads: int
    attention_dropout: float = 0.0


@dataclasses.dataclass(frozen=True)
class Call:
    """One call.

    Attributes:
        last: The number of the newest of the four frames; each number is a frame of its own.
        seed: The seed of the noise.
        settings: Sampling settings.
    """

    last: int
    seed: int
    settings: dict[str, Any]


def observation(config: UvaConfig, last: int) -> dict[str, NDArray[Any]]:
    """Return what one robot sees after frame number `last`."""
    height, width, channels = config.image_shape
    frames = [
        np.random.default_rng(number).integers(0, 256, (height, width, channels), np.uint8)
        for number in range(last - FRAMES + 1, last + 1)
    ]
    seen: dict[str, NDArray[Any]] = {"frames": np.stack(frames)[None]}
    if config.text_dim:
        seen["text"] = np.random.default_rng(0).standard_normal((1, config.text_dim), np.float32)
    return seen


def runtime_answers(work: Work) -> Callable[[Call], Answer]:
    """Return a function that answers with the engines of the artifact."""
    policy = Policy.load(work.artifact, backend=work.backend, threads=work.threads)
    config: Any = policy.manifest.model

    def answer(call: Call) -> Answer:
        seen = observation(config, call.last)
        started = time.perf_counter()
        actions = policy.act(seen, seed=call.seed, index=[0], **call.settings)
        return time.perf_counter() - started, actions

    return answer


def eager_answers(work: Work) -> Callable[[Call], Answer]:
    """Return a function that answers as published: all frames, and the whole head in every step."""
    torch.set_num_threads(work.threads)
    config = UvaConfig.from_dict(work.model, "the model")
    checkpoint = random_policy(config, VAEConfig(**work.autoencoder))
    model, vae = checkpoint.model, checkpoint.vae
    assert vae is not None
    if work.attention_dropout:
        for block in (*model.encoder_blocks, *model.decoder_blocks):
            block.attn.attend = ScaledDotProduct(work.attention_dropout).train()
    height, width, _ = config.image_shape

    def answer(call: Call) -> Answer:
        seen = observation(config, call.last)
        started = time.perf_counter()
        sampling = resolve_sampling(default_sampling(config), config, call.settings)
        plan = plan_for(config, sampling)
        noise = seeded_noise([call.seed], [0], plan.diffusion_steps, config)
        pixels = np.concatenate([encoder_input(frame, height, width) for frame in seen.pop("frames")[0]])
        with torch.inference_mode():
            latents = vae.encode(torch.from_numpy(pixels)).numpy()[None]
        inputs: Mapping[str, Any] = {"latents": latents, **seen}
        actions = sample_actions(model, inputs, plan.iterations[0].table, noise)
        return time.perf_counter() - started, actions

    return answer


def main() -> None:
    """Answer calls until standard input ends."""
    work = Work(**parse_json(sys.stdin.readline()))
    answer = (runtime_answers if work.backend else eager_answers)(work)
    print(json.dumps({"torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        seconds, actions = answer(Call(**parse_json(line)))
        answered = {"seconds": seconds, "actions": actions[0].tolist(), "peak_memory_bytes": peak_memory_bytes()}
        print(json.dumps(answered), flush=True)


if __name__ == "__main__":
    main()
