"""A generator whose engines are a few lines of numpy: no export, and exactly the same image in every batch."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.artifact.manifest import Manifest
from runtime.generator import Generator
from runtime.loops.host_loop import Engines
from runtime.model.config import ModelConfig
from runtime.model.engine_spec import ENGINES
from runtime.sampling.settings import Sampling

WAIT = 60
"""Seconds after which a test that waits has failed."""

CONFIG = ModelConfig(
    img_size=16,
    vae_stride=1,
    patch_size=4,
    vae_embed_dim=1,
    class_num=3,
    decoder_embed_dim=16,
    diffloss_d=1,
    diffloss_w=4,
)
SAMPLING = Sampling(iterations=4, cfg_scale=1.5, sampler="ddim", diffusion_steps=3)
CLASSES = ("cat", "dog", "owl")


def _nothing() -> None:
    pass


@dataclasses.dataclass
class FakeEngines:
    """The engines, and what they were asked.

    Attributes:
        before_pass: Called before each pass of the backbone; it can wait, or raise.
        batches: The number of images in each batch that was begun.
        passes: The number of passes of the backbone.
    """

    before_pass: Callable[[], None] = _nothing
    batches: list[int] = dataclasses.field(default_factory=list)
    passes: int = 0

    def backbone(
        self, tokens: Any, visible: NDArray[np.int64], predict: NDArray[np.int64], rest: Any, labels: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32]]:
        if not len(visible):
            self.batches.append(predict.shape[1])
        self.passes += 1
        self.before_pass()
        halves = labels.reshape(-1, predict.shape[1])  # [G, B]
        rows = np.concatenate([np.tile(half, len(predict)) for half in halves])  # [G*N]
        return (np.repeat(rows[:, None], CONFIG.decoder_embed_dim, 1).astype(np.float32),)

    def conditioning(self, z: NDArray[np.float32], timesteps: NDArray[np.float32]) -> tuple[NDArray[np.float32]]:
        return (np.broadcast_to(z[None, :, :1], (len(timesteps), len(z), CONFIG.modulation_channels)),)

    def denoise(self, x: Any, noise: Any, modulation: Any, guidance: Any, **_: Any) -> tuple[Any, Any]:
        moved = np.float32(0.5) * x + np.float32(0.1) * noise + np.float32(0.02) * modulation[: len(x), :1] * guidance
        return moved, moved


def fake_generator(engines: FakeEngines | None = None, **manifest: Any) -> Generator:
    """A model of 16x16 gray pixels, 16 tokens and the classes cat, dog and owl."""
    fields: dict[str, Any] = {
        "model": CONFIG,
        "tokenizer": "pixel",
        "class_names": CLASSES,
        "sampling": SAMPLING,
        "precision": "fp32",
        "files": {},
        "engines": {name: f"{name}.onnx" for name in ENGINES},
        "provenance": {},
        "parity": {},
    }
    fakes = engines or FakeEngines()
    return Generator(
        Manifest(**(fields | manifest)), Engines(fakes.backbone, fakes.conditioning, fakes.denoise), "numpy"
    )


class Gate:
    """Lets passes of an engine through one by one, or all."""

    def __init__(self) -> None:
        self._open, self.reached = threading.Semaphore(0), threading.Semaphore(0)
        self._all = threading.Event()

    def __call__(self) -> None:
        self.reached.release()
        if not self._all.is_set():
            assert self._open.acquire(timeout=WAIT)

    def wait_until_reached(self) -> None:
        """Wait until a pass is at the gate."""
        assert self.reached.acquire(timeout=WAIT)

    def let(self, passes: int) -> None:
        """Let some passes through."""
        self._open.release(passes)

    def open(self) -> None:
        """Let all passes through from now on."""
        self._all.set()
        self._open.release(1000)
