"""The Python interface of a robot's policy: `Policy` loads an artifact and turns what a robot sees into actions."""

from __future__ import annotations

import hashlib
import pathlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from runtime.artifact.manifest import Manifest
from runtime.checks import check_finite
from runtime.errors import BackendError, RequestError
from runtime.generator import Generator
from runtime.model.engine_spec import Array
from runtime.model.families import check_supported
from runtime.model.uva_config import CHUNK, FRAMES, UvaConfig
from runtime.requests.frames import encoder_input
from runtime.requests.observations import FRAMES_KEY, LATENTS_KEY, Observations, check_observation
from runtime.requests.request_lock import RequestLock
from runtime.requests.validation import check_batch, check_indices, check_noise, check_seeds
from runtime.sampling.rng import seeded_noise

if TYPE_CHECKING:  # a device does not need typing_extensions
    from typing_extensions import Unpack

    from runtime.sampling.settings import SamplingRequest

_CALLS_KEPT = 16  # the frames of so many calls are kept at least, 16 KiB each

Float = NDArray[np.float32]


class Policy:
    """Turns observations into actions with the engines of one artifact.

    Threads may share a policy: its calls run one after another. Use it as a context manager, or call `close`, to free
    the engines.

    Attributes:
        manifest: The manifest of the artifact.
        description: The backend, device and number of threads, for people.
        chunks: How many chunks of actions were drawn in all calls.
        encoded: How many frames were encoded in all calls. The other frames had been encoded before.
    """

    def __init__(self, generator: Generator) -> None:
        """Make a policy from a generator, which it closes; `load` is the usual way to get one.

        Raises:
            RequestError: The model is no policy.
        """
        self._generator = generator
        self.manifest: Manifest = generator.manifest
        self.description = generator.description
        self._config = cast(UvaConfig, check_supported(self.manifest.model, "runtime.Policy"))
        self._kept: OrderedDict[bytes, Float] = OrderedDict()
        self._lock = RequestLock()
        self.chunks = self.encoded = 0

    @classmethod
    def load(
        cls,
        artifact: str | pathlib.Path,
        *,
        backend: str = "onnxruntime",
        device: str | None = None,
        threads: int | None = None,
        cuda_graphs: bool = True,
        trusted_keys: Sequence[str | pathlib.Path] | None = None,
    ) -> Policy:
        """Compare every file of an artifact with its manifest, then load its engines.

        The arguments and the errors are those of `Generator.load`.

        Raises:
            RequestError: The model is no policy.
        """
        generator = Generator.load(
            artifact,
            backend=backend,
            device=device,
            threads=threads,
            cuda_graphs=cuda_graphs,
            trusted_keys=trusted_keys,
        )
        try:
            return cls(generator)
        except RequestError:
            generator.close()
            raise

    @property
    def n_action_steps(self) -> int:
        """How many of the 16 actions the published code executes before it asks again."""
        return self._config.n_action_steps

    def act(
        self,
        observation: Mapping[str, ArrayLike],
        *,
        seed: int | Sequence[int] = 0,
        index: Sequence[int] | None = None,
        noise: ArrayLike | None = None,
        **settings: Unpack[SamplingRequest],
    ) -> Float:
        """Return a chunk of actions for each of B robots, float32 [B, 16, A], in the units of the robot.

        A frame that was encoded in one of the last calls is not encoded again. This changes no action: each frame is
        encoded alone.

        Args:
            observation: What the robots see: `frames` [B, 4, H, W, 3], the oldest first, as uint8 or as floating point
                of 0..1, or their `latents` [B, 4, 16, 16, 16]; `text` [B, text_dim] where the model has a text;
                `state` [B, 4 or 16, state_dim] where it has a state, not normalized.
            seed: The seed of the random numbers; or one for each robot, B of them.
            index: The number of each chunk in the sequence of its seed, B of them. None: they count on from `chunks`,
                so that each call draws other noise.
            noise: Standard normal, float [T + 1, B, 16, A]. It replaces the noise that the seed gives.
            **settings: Sampling settings, as of `Generator.generate`: `preset`, `sampler`, `diffusion_steps` and so on.

        Raises:
            RequestError: An argument is wrong. Nothing has run yet.
            BackendError: An engine failed, its numbers overflowed, or the policy was closed.
        """
        config = self._config
        checked, plan = check_observation(observation, config), self._generator.plan(**settings)
        robots = len(checked[FRAMES_KEY if FRAMES_KEY in checked else LATENTS_KEY])
        check_batch(robots, plan.diffusion_steps, config)
        if FRAMES_KEY in checked:
            self._check_encoder()
        seeds = check_seeds(seed, robots)
        given = None if noise is None else check_noise(noise, robots, plan.diffusion_steps, config)
        numbers: Sequence[int] | None = None if index is None else check_indices(index, seeds)
        with self._lock.hold():
            if given is None:
                numbers = range(self.chunks, self.chunks + robots) if numbers is None else numbers
                given = seeded_noise(seeds, numbers, plan.diffusion_steps, config)  # [T + 1, B, 16, A]
            if FRAMES_KEY in checked:
                checked[LATENTS_KEY] = self._encode(checked.pop(FRAMES_KEY))
            condition = Observations(checked).condition(self._generator.engines, guided=False)
            order = np.tile(np.arange(CHUNK)[:, None], robots)  # [16, B]
            known = np.empty((0, robots, config.action_dim), np.float32)
            steps = self._generator.loop(plan, condition, order, given.swapaxes(1, 2), known, None)  # [16, B, A]
            actions = self._denormalized(steps)
            self.chunks += robots
        return actions

    def _check_encoder(self) -> None:
        if self._generator.engines.encoder is None:
            raise RequestError(
                "this artifact has no encoder, because its checkpoint has no complete autoencoder; give latents in "
                "place of frames"
            )

    def _denormalized(self, steps: Float) -> Float:
        """Return actions [B, 16, A] in the units of the robot, of `steps` [16, B, A]. Raises `BackendError`."""
        check_finite(steps, "the engines")
        config, actions = self._config, np.ascontiguousarray(steps.swapaxes(0, 1))
        offset = np.array(config.action_offset or (0.0,), np.float32)
        scale = np.array(config.action_scale or (1.0,), np.float32)
        with np.errstate(all="ignore"):  # a scale that float32 rounds to zero
            restored: Float = ((actions - offset) / scale).astype(np.float32, copy=False)
        if not np.isfinite(restored).all():
            raise BackendError(
                "actions in the units of the robot are not finite; check action_scale and action_offset in the model "
                "of the manifest"
            )
        return restored

    def _encode(self, frames: Array) -> Float:
        """Return the latents [B, 4, 16, 16, 16] of frames [B, 4, H, W, 3]."""
        latents = [self._latents(frame) for frame in frames.reshape(-1, *frames.shape[2:])]
        while len(self._kept) > _CALLS_KEPT * len(latents):
            self._kept.popitem(last=False)
        return np.stack(latents).reshape(-1, FRAMES, *self._config.latent_shape)

    def _latents(self, frame: Array) -> Float:
        """Return the latents [16, 16, 16] of a frame [H, W, 3], kept from an earlier call if there are any."""
        frame = np.array(frame, order="C")  # a copy: a camera may write the next frame into this memory meanwhile
        content = hashlib.sha256(f"{frame.dtype} {frame.shape}".encode())
        content.update(frame.data)
        key = content.digest()
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        encoder: Any = self._generator.engines.encoder
        height, width, _ = self._config.image_shape
        (latents,) = encoder(image=encoder_input(frame, height, width))
        check_finite(latents, "the encoder")
        self.encoded += 1
        self._kept[key] = latents[0]
        return self._kept[key]

    def close(self) -> None:
        """Wait for the call that runs, then free the engines. The policy cannot be used afterwards."""
        with self._lock.hold(closing=True):
            self._generator.close()

    def __enter__(self) -> Policy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
