"""The random numbers of training; those of an example depend on the seed, the step and its place in the batch alone.

A batch is therefore the same however it is split over processes and micro-batches, and a resumed run draws the
numbers that the uninterrupted run would have drawn. Philox is counter-based (Salmon et al., SC11): the key holds seed
and step, the last words of the counter hold the example. Dropout alone is drawn by PyTorch, per micro-batch.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from runtime.model.config import ModelConfig
from runtime.sampling.noise_schedule import TRAIN_STEPS

_EXAMPLE, _STEP = 1, 2  # kinds of streams; those of `runtime.sampling.rng` are of kind 0
_MASK_RATIO = NormalDist(1, 0.25)  # truncated to mask_ratio_min..1 (arXiv 2406.11838, appendix B)


@dataclasses.dataclass(frozen=True)
class Draws:
    """The random numbers of one example, without those of its image.

    Attributes:
        order: A permutation of the positions, int64 [L]; the first K are masked, in their generation order.
        dropped: Whether the class is dropped, for classifier-free guidance.
        timesteps: One timestep for each of Q repeats of each masked token, [Q, K]; float32 for a flow head, int64
            for others.
        noise: Standard normal, float32 [Q, K, D].
    """

    order: NDArray[np.int64]
    dropped: bool
    timesteps: NDArray[np.int64] | NDArray[np.float32]
    noise: NDArray[np.float32]


def example_stream(seed: int, step: int, place: int) -> np.random.Generator:
    """Return the generator of all random numbers of the example at `place` of a step's batch."""
    return _stream(seed, step, _EXAMPLE, place)


def step_stream(seed: int, step: int) -> np.random.Generator:
    """Return the generator of the random numbers that all examples of a step have in common."""
    return _stream(seed, step, _STEP, 0)


def draw_example(config: ModelConfig, masked: int, stream: np.random.Generator) -> Draws:
    """Draw the random numbers of an example with `masked` masked tokens from its stream."""
    repeats = config.loss_repeats
    return Draws(
        # In raster order the last K are masked.
        order=stream.permutation(config.tokens)
        if config.order == "random"
        else np.roll(np.arange(config.tokens), masked),
        dropped=bool(stream.random() < config.label_drop_prob),
        timesteps=draw_timesteps(config.head, (repeats, masked), stream),
        noise=stream.standard_normal((repeats, masked, config.token_channels), np.float32),
    )


def draw_timesteps(
    head: str, shape: tuple[int, ...], stream: np.random.Generator
) -> NDArray[np.int64] | NDArray[np.float32]:
    """Draw timesteps of shape `shape`: int64, uniform in 0..999; for a flow head float32 in 0..1000.

    Times of a flow head are logit-normal, so most of them lie in the middle, where the velocity is hardest to predict
    (Stable Diffusion 3, arXiv 2403.03206, section 3.1).
    """
    if head == "flow":
        return (TRAIN_STEPS / (1 + np.exp(-stream.standard_normal(shape)))).astype(np.float32)
    return stream.integers(0, TRAIN_STEPS, shape)


def masked_tokens(config: ModelConfig, seed: int, step: int) -> int:
    """Return K, the number of masked tokens of every example of a step; at least one.

    Under causal attention K = L: each token is predicted from those before it, all in one pass. In random order the
    mask ratio has a truncated normal distribution. In raster order it is uniform: generation uses each prefix once.
    """
    if config.attention == "causal":
        return config.tokens
    stream = step_stream(seed, step)
    if config.order == "raster":
        return max(1, math.ceil(config.tokens * stream.uniform(config.mask_ratio_min, 1)))
    ratio = draw_mask_ratio(config.mask_ratio_min, stream)
    return min(config.tokens, max(1, math.ceil(config.tokens * ratio)))


def draw_mask_ratio(smallest: float, stream: np.random.Generator) -> float:
    """Draw from the normal distribution N(1, 0.25^2), truncated to smallest..1, by inverting its CDF."""
    low = _MASK_RATIO.cdf(smallest)
    return min(1.0, max(smallest, _MASK_RATIO.inv_cdf(low + (0.5 - low) * stream.random())))


def batch_examples(examples: int, batch_size: int, step: int, seed: int) -> NDArray[np.int64]:
    """Return the examples of a step's batch, int64 [batch_size].

    Every epoch is a permutation of its own, cut into batches of equal size; the examples that remain are left out.
    """
    epoch, position = divmod(step, examples // batch_size)
    return _epoch_order(examples, epoch, seed)[position * batch_size : (position + 1) * batch_size]


@functools.lru_cache(maxsize=1)
def _epoch_order(examples: int, epoch: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(examples)


def _stream(seed: int, step: int, kind: int, place: int) -> np.random.Generator:
    key, counter = np.array([seed, step], np.uint64), np.array([0, 0, kind, place], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
