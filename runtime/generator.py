"""The Python surface: an artifact in, pictures out."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from runtime.artifact import Artifact, Manifest
from runtime.backends import open_backend
from runtime.errors import BackendError
from runtime.images import to_uint8, unpatchify
from runtime.loop import Engines, Progress, run_plan
from runtime.noise import seeded_noise, seeded_order
from runtime.plan import Plan, Sampling, build_plan
from runtime.presets import requested_sampling
from runtime.request import (
    check_batch,
    check_indices,
    check_labels,
    check_noise,
    check_order,
    check_seed,
)
from runtime.spec import BACKBONE, CONDITIONING, DENOISE


@dataclasses.dataclass(frozen=True)
class Result:
    """`latents` float32 [B, C, H, W]; `images` uint8 [B, H, W, 3] or [B, H, W, 1], None without a decoder.

    `plan` is the schedule that was executed.
    """

    latents: NDArray[np.float32]
    images: NDArray[np.uint8] | None
    plan: Plan


class Generator:
    """Draws pictures with the engines of one artifact. Not for use by two threads at once."""

    def __init__(
        self, manifest: Manifest, engines: Engines, description: str, close: Callable[[], None] = lambda: None
    ) -> None:
        """`description` names what runs the engines; `close` frees them."""
        self.manifest, self.engines, self.description, self._close = manifest, engines, description, close

    @classmethod
    def load(
        cls,
        artifact: str | pathlib.Path,
        *,
        backend: str = "onnxruntime",
        device: str = "cpu",
        threads: int | None = None,
    ) -> Generator:
        """Check every file of `artifact` against its manifest and load its engines.

        `threads` are processor threads, all there are by default. Raises `ArtifactError`,
        `IntegrityError`, `BackendError` or `RequestError`.
        """
        opened = Artifact(artifact)
        opened.verify()
        runner = open_backend(backend, device, threads)
        specs = opened.manifest.specs
        backbone, conditioning, denoise = (
            runner.load(opened.engine_file(name), specs[name]) for name in (BACKBONE, CONDITIONING, DENOISE)
        )
        return cls(opened.manifest, Engines(backbone, conditioning, denoise), runner.description, runner.close)

    def sampling(self, **settings: Any) -> Sampling:
        """The settings that `generate` would draw with: the artifact's own, changed by `settings`."""
        return requested_sampling(self.manifest.sampling, self.manifest.model.tokens, settings)

    def plan(self, **settings: Any) -> Plan:
        """The schedule that `generate` would execute for these settings."""
        return build_plan(self.manifest.model.tokens, self.sampling(**settings))

    def generate(
        self,
        labels: Sequence[int],
        *,
        seed: int = 0,
        index: Sequence[int] | None = None,
        order: ArrayLike | None = None,
        noise: ArrayLike | None = None,
        progress: Progress | None = None,
        **settings: Any,
    ) -> Result:
        """Draw one picture for each class in `labels`.

        Picture `index[i]` of `seed` is the same whatever it is drawn together with; `index` counts
        from 0 by default. `settings` are `preset`, one of `runtime.presets.PRESETS`, and the fields of
        `runtime.plan.Sampling`; what is not named, or None, is the artifact's own. `order` [B, L]
        (generation order, first generated first) and `noise` [T + 1, B, L, D] (by token position)
        replace what the seed would give. `progress` is called with the iterations done and their
        number. Raises `RequestError` before anything runs, and `BackendError` if an engine fails.
        """
        config = self.manifest.model
        plan = self.plan(**settings)
        classes = check_labels(labels, config)
        batch, steps = len(classes), plan.diffusion_steps
        check_batch(batch, steps, config)
        seed, indices = check_seed(seed), check_indices(index, batch)
        if order is None:
            ordered = seeded_order(seed, indices, config, plan.token_order)
        else:
            ordered = check_order(order, batch, config)
        drawn = (
            seeded_noise(seed, indices, steps, config) if noise is None else check_noise(noise, batch, steps, config)
        )
        drawn = np.take_along_axis(drawn, ordered[None, :, :, None], axis=2)  # by position -> in generation order
        tokens = run_plan(self.engines, config, plan, classes, ordered, drawn, progress)
        if not np.isfinite(tokens).all():
            raise BackendError("the engines produced values that are not finite; check the export's parity report")
        latents = unpatchify(tokens, config.grid, config.patch_size)
        images = to_uint8(latents) if self.manifest.tokenizer == "pixel" else None
        return Result(latents, images, plan)

    def close(self) -> None:
        """Free the engines."""
        self._close()

    def __enter__(self) -> Generator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
