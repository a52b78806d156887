"""The time of training steps of this trainer and of the published one, with equal batches, in turns.

    python -m benchmarks.training OUT.json --model mar_base --batch 4 --rounds 5

The published trainer is written here from its description: boolean masks, the head on all tokens with a masked loss,
PyTorch's dropout and attention, AdamW and the moving average one tensor after another. Both train on random latents,
with the same precision, dropout and number of masked tokens.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from runtime.model.config import ModelConfig
from runtime.provenance import commit
from runtime.storage.files import write_json
from training.config import TrainConfig
from training.data.draws import draw_example, example_stream, masked_tokens
from training.data.loader import Batch, MicroBatch
from training.distributed import Processes
from training.loop.optimizer_step import MarTrainStep, _parameter_groups
from training.models import reference_loop as published
from training.models.mar import MAR
from training.models.model_sizes import model_config
from training.models.numerics import autocast

_RATE, _CLIP, _EMA = 1e-4, 3.0, 0.9999


def ours(config: ModelConfig, batch: int, precision: str, compiled: bool) -> Callable[[int], float]:
    """Return a function that makes the step of a given number with this trainer, and returns its loss."""
    training = TrainConfig(steps=1000, batch_size=batch, precision=precision, compile=compiled)
    train_step = MarTrainStep(config, training, Processes())

    def step(number: int) -> float:
        return train_step.update(number, [_batch(config, batch, number)]).loss

    return step


def as_published(config: ModelConfig, batch: int, precision: str) -> Callable[[int], float]:
    """Return the same function for the published trainer."""
    torch.manual_seed(0)
    model = MAR(**config.to_dict()).train()
    average = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.AdamW(_parameter_groups(model, 0.02), lr=_RATE, betas=(0.9, 0.95))

    def step(number: int) -> float:
        batch_data = _batch(config, batch, number).batch
        assert isinstance(batch_data, Batch)
        masked = batch_data.timesteps.shape[-1]
        orders = np.stack([np.random.permutation(config.tokens) for _ in range(batch)])
        mask = torch.zeros(batch, config.tokens, dtype=torch.bool)
        mask.scatter_(1, torch.from_numpy(orders[:, :masked]), True)
        rows = config.diffusion_batch_mul * batch * config.tokens
        timesteps, noise = torch.randint(0, 1000, (rows,)), torch.randn(rows, config.token_channels)
        optimizer.zero_grad()
        with autocast(precision, torch.device("cpu")):
            loss = published.training_loss(model, batch_data.latents, batch_data.labels, mask, timesteps, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
        optimizer.step()
        with torch.no_grad():
            for mean, parameter in zip(average, model.parameters(), strict=True):
                mean.mul_(_EMA).add_(parameter, alpha=1 - _EMA)
        return loss.item()

    return step


def _batch(config: ModelConfig, batch: int, number: int) -> MicroBatch:
    """Return random latents with random orders, timesteps and noise; both trainers mask the same number of tokens."""
    masked = masked_tokens(config, 0, number)
    draws = [draw_example(config, masked, example_stream(0, number, place)) for place in range(batch)]
    side = config.grid * config.patch_size
    latents = np.random.default_rng(number).standard_normal((batch, config.vae_embed_dim, side, side), np.float32)
    return MicroBatch(
        Batch(
            torch.from_numpy(latents),
            torch.arange(batch) % config.class_num,
            torch.from_numpy(np.stack([drawn.order for drawn in draws])),
            torch.from_numpy(np.stack([drawn.timesteps for drawn in draws], axis=1)),
            torch.from_numpy(np.stack([drawn.noise for drawn in draws], axis=1)),
        ),
        torch.arange(batch),
    )


def main() -> None:
    """Measure both trainers and write the times as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--model", default="mar_base")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = model_config(arguments.model)
    steps = {
        "published": as_published(config, arguments.batch, arguments.precision),
        "ours": ours(config, arguments.batch, arguments.precision, arguments.compile),
    }
    times: dict[str, dict[str, list[float]]] = {name: {"seconds": [], "cpu_seconds": []} for name in steps}
    for number in range(-1, arguments.rounds):  # the first round warms up
        for name, step in steps.items():
            wall, cpu = time.perf_counter(), time.process_time()
            step(number + 1)
            spent = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
            print(f"{name}: {spent['seconds']:.2f} s, {spent['cpu_seconds']:.2f} s of CPU", flush=True)
            for kind, value in spent.items() if number >= 0 else ():
                times[name][kind].append(value)
    figures = {
        **{name: getattr(arguments, name) for name in ("model", "batch", "rounds", "precision", "compile", "threads")},
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit(),
        "images_per_second": {
            name: arguments.batch / statistics.median(measured["seconds"]) for name, measured in times.items()
        },
        "speedup": {
            kind: _ratios(times["published"][kind], times["ours"][kind]) for kind in ("seconds", "cpu_seconds")
        },
        "times": times,
    }
    write_json(arguments.out, figures)
    print(json.dumps({name: figures[name] for name in ("images_per_second", "speedup")}, indent=2))


def _ratios(theirs: list[float], ours: list[float]) -> dict[str, float]:
    """Return the ratio of both times, round by round."""
    ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


if __name__ == "__main__":
    main()
