"""A process that takes training steps one at a time, with the code of the folder in which it was started.

`benchmarks.training` starts it. The first line of standard input is a JSON object with the keys of `Work`. Every
further line takes one step and is answered by a line with the loss and the times of the step.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from runtime.model.config import ModelConfig
from runtime.provenance import commit
from runtime.storage.structured_files import parse_json
from training.config import TrainConfig
from training.data.draws import draw_example, example_stream, masked_tokens
from training.data.loader import Batch, MicroBatch
from training.distributed import Processes
from training.loop.optimizer_step import MarTrainStep, _parameter_groups
from training.models import reference_loop as published
from training.models.mar import MAR
from training.models.numerics import autocast

_BATCHES = 4  # each has its own number of masked tokens, and kernels are made for each number at its first step
_WARMUP = 2 * _BATCHES  # steps


@dataclasses.dataclass(frozen=True)
class Work:
    """What to do.

    Attributes:
        published: Whether to train as the published code does, in place of `MarTrainStep`.
        model: The fields of `ModelConfig`.
        training: The fields of `TrainConfig`.
        threads: The number of processor threads.
    """

    published: bool
    model: dict[str, Any]
    training: dict[str, Any]
    threads: int


def ours(config: ModelConfig, training: TrainConfig) -> Callable[[int, MicroBatch], float]:
    """Return a function that makes the step of a given number with this trainer, and returns its loss."""
    train_step = MarTrainStep(config, training, Processes())
    return lambda number, batch: train_step.update(number, [batch]).loss


def as_published(config: ModelConfig, training: TrainConfig) -> Callable[[int, MicroBatch], float]:
    """Return the same function for the published trainer."""
    torch.manual_seed(0)
    model = MAR(**config.to_dict()).train()
    average = [parameter.detach().clone() for parameter in model.parameters()]
    groups = _parameter_groups(model, training.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=training.learning_rate, betas=(0.9, 0.95))

    def step(number: int, batch: MicroBatch) -> float:
        data = batch.batch
        assert isinstance(data, Batch)
        images, masked = len(data.labels), data.timesteps.shape[-1]
        orders = np.stack([np.random.permutation(config.tokens) for _ in range(images)])
        mask = torch.zeros(images, config.tokens, dtype=torch.bool)
        mask.scatter_(1, torch.from_numpy(orders[:, :masked]), True)
        rows = config.diffusion_batch_mul * images * config.tokens
        timesteps, noise = torch.randint(0, 1000, (rows,)), torch.randn(rows, config.token_channels)
        optimizer.zero_grad()
        with autocast(training.precision, torch.device("cpu")):
            loss = published.training_loss(model, data.latents, data.labels, mask, timesteps, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.gradient_clip)
        optimizer.step()
        with torch.no_grad():
            for mean, parameter in zip(average, model.parameters(), strict=True):
                mean.mul_(training.ema_rate).add_(parameter, alpha=1 - training.ema_rate)
        return loss.item()

    return step


def _batch(config: ModelConfig, images: int, number: int) -> MicroBatch:
    """Return random latents with random orders, timesteps and noise."""
    masked = masked_tokens(config, 0, number)
    draws = [draw_example(config, masked, example_stream(0, number, place)) for place in range(images)]
    side = config.grid * config.patch_size
    latents = np.random.default_rng(number).standard_normal((images, config.vae_embed_dim, side, side), np.float32)
    return MicroBatch(
        Batch(
            torch.from_numpy(latents),
            torch.arange(images) % config.class_num,
            torch.from_numpy(np.stack([drawn.order for drawn in draws])),
            torch.from_numpy(np.stack([drawn.timesteps for drawn in draws], axis=1)),
            torch.from_numpy(np.stack([drawn.noise for drawn in draws], axis=1)),
        ),
        torch.arange(images),
    )


def main() -> None:
    """Take steps until standard input ends."""
    work = Work(**parse_json(sys.stdin.readline()))
    torch.set_num_threads(work.threads)
    config, training = ModelConfig(**work.model), TrainConfig(**work.training)
    step = (as_published if work.published else ours)(config, training)
    batches = [_batch(config, training.batch_size, number) for number in range(_BATCHES)]
    for number in range(_WARMUP):
        step(number, batches[number % _BATCHES])
    print(json.dumps({"commit": commit()}), flush=True)
    for number, _ in enumerate(sys.stdin, start=_WARMUP):
        wall, cpu = time.perf_counter(), time.process_time()
        loss = step(number, batches[number % _BATCHES])
        spent = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
        print(json.dumps({**spent, "loss": loss}), flush=True)


if __name__ == "__main__":
    main()
