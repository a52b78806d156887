"""What the tests of training share: a model of a few thousand weights, images to train it on, runs of it."""

from __future__ import annotations

import contextlib
import gzip
import json
import pathlib
import re
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from runtime.errors import MarError
from runtime.model.config import ModelConfig
from training.config import RunConfig, TrainConfig
from training.data.latent_dataset import LatentDataset
from training.loop.mar_trainer import MarTrainer
from training.models.mar import MAR
from training.tokenizer.config import TokenizerConfig, TokenizerTraining, read_vae

# Nine tokens of 4x4 pixels; dropout is on, so that a resumed run has to draw the same dropout masks too.
TINY = ModelConfig(
    img_size=12,
    vae_stride=1,
    patch_size=4,
    vae_embed_dim=1,
    class_num=3,
    buffer_size=2,
    encoder_embed_dim=16,
    encoder_depth=1,
    encoder_num_heads=2,
    decoder_embed_dim=24,
    decoder_depth=1,
    decoder_num_heads=2,
    diffloss_d=1,
    diffloss_w=32,
    mask_ratio_min=0.5,
    diffusion_batch_mul=2,
)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """On a busy machine, threads that wait for each other make models as small as these seven times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def write_idx(file: pathlib.Path, values: NDArray[np.uint8]) -> None:
    """An IDX file of bytes, gzipped if its name ends in .gz."""
    content = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)


def write_idx_dataset(folder: pathlib.Path, images: int = 12, side: int = 12, classes: int = 3) -> pathlib.Path:
    """Images of noise whose every pixel differs from its mirror, labels in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(7).integers(0, 256, (images, side, side), dtype=np.uint8)
    write_idx(folder / "train-images-idx3-ubyte", pixels)
    write_idx(folder / "train-labels-idx1-ubyte", (np.arange(images) % classes).astype(np.uint8))
    return folder


def tiny_training(steps: int, **changes: Any) -> TrainConfig:
    """Short and lively: a high rate at once, so that a few steps move every weight."""
    settings: dict[str, Any] = {
        "batch_size": 4,
        "learning_rate": 1e-3,
        "warmup_steps": 2,
        "ema_rate": 0.9,
        "checkpoint_every": 4,
        "sample_every": 1000,
        "seed": 1,
        "precision": "fp32",
    }
    return TrainConfig(steps=steps, **settings | changes)


def start(run: pathlib.Path, data: pathlib.Path, steps: int, **changes: Any) -> MarTrainer:
    return MarTrainer.start(run, RunConfig(str(data), TINY, tiny_training(steps, **changes)))


def resume(run: pathlib.Path, **changes: Any) -> MarTrainer:
    return MarTrainer.resume(run, changes=changes)


def randomized(model: MAR, seed: int = 0, spread: float = 0.2) -> MAR:
    """The model with every weight random: a fresh one has a head that answers zero to everything."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))
    return model


def logged(run: pathlib.Path, key: str) -> dict[int, float]:
    """Step -> value, of a run's log; a step that is logged twice is an error."""
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps = [entry for entry in entries if key in entry]
    assert len({entry["step"] for entry in steps}) == len(steps)
    return {entry["step"]: entry[key] for entry in steps}


def skipped_steps(run: pathlib.Path) -> dict[int, dict[str, Any]]:
    """Step -> what a run's log tells of it, of the steps that were not taken."""
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    skipped = [entry for entry in entries if "skipped" in entry]
    assert len({entry["step"] for entry in skipped}) == len(skipped)
    return {entry["step"]: entry["skipped"] for entry in skipped}


class Poisoned:
    """A source whose example `bad` is not a number."""

    def __init__(self, source: LatentDataset, bad: int) -> None:
        self._source, self._bad = source, bad

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def latent(self, index: int, flip: bool, stream: np.random.Generator) -> NDArray[np.float32]:
        latent = self._source.latent(index, flip, stream)
        return latent * np.float32("nan") if index == self._bad else latent


def one_sentence(caught: pytest.ExceptionInfo[MarError]) -> str:
    """The message of an error, checked to be what a person can read in one line of a terminal."""
    message = str(caught.value)
    assert message
    assert message.isprintable(), f"line breaks or control characters in {message!r}"
    assert not re.search(r"[.!?] +[A-Z]", message), f"more than one sentence: {message!r}"
    return message


TINY_VAE = {"latent_channels": 2, "width": 32, "multipliers": (1, 1), "blocks": 1, "attention_levels": ()}


def tiny_tokenizer(data: pathlib.Path, steps: int, **changes: Any) -> TokenizerConfig:
    settings: dict[str, Any] = {
        "image_size": 16,
        "batch_size": 2,
        "learning_rate": 1e-3,
        "warmup_steps": 1,
        "ema_rate": 0.9,
        "precision": "fp32",
        "adversarial_from": 2,
        "discriminator_width": 8,
        "discriminator_layers": 1,
        "eval_count": 4,
        "checkpoint_every": 100,
        "sample_every": 100,
    }
    return TokenizerConfig(str(data), read_vae(TINY_VAE, "test"), TokenizerTraining(steps=steps, **settings | changes))


def write_bad_folder(data: pathlib.Path) -> pathlib.Path:
    """Ten images in two of three classes; one is torn, one is text, one is too small."""
    random = np.random.default_rng(0)
    for number in range(10):
        file = data / ("cat", "dog")[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        side = 5 if number == 3 else 12
        Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(file)
    (data / "bird").mkdir()
    torn = data / "cat" / "4.png"
    torn.write_bytes(torn.read_bytes()[:60])
    (data / "dog" / "7.png").write_text("not an image")
    return data
