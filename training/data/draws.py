"""The random numbers of training: of each example a function of (seed, step, place in the batch) alone.

So a batch is the same however it is spread over processes and micro-batches, and a run that goes on
draws what it would have drawn. Philox is counter-based (Salmon et al., SC11): the key names the step, the
counter's last words the example. Dropout alone is drawn by PyTorch, for a micro-batch at a time.
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
_MASK_RATIO = NormalDist(1, 0.25)  # arXiv 2406.11838, appendix B


@dataclasses.dataclass(frozen=True)
class Draws:
    """What is drawn for one example, beside how its image is taken.

    `order` int64 [L], its first K positions masked, those in the order they would be generated in; `dropped`,
    whether its class is withheld; `timesteps` [R, K], float32 for a flow head and int64 for others, and `noise`
    float32 [R, K, D], for each of R repeats of the masked tokens.
    """

    order: NDArray[np.int64]
    dropped: bool
    timesteps: NDArray[np.int64] | NDArray[np.float32]
    noise: NDArray[np.float32]


def example_stream(seed: int, step: int, place: int) -> np.random.Generator:
    """All that is random about the example at `place` of the batch of a step, in the order in which it is asked for."""
    return _stream(seed, step, _EXAMPLE, place)


def draw_example(config: ModelConfig, masked: int, stream: np.random.Generator) -> Draws:
    """What an example with `masked` masked tokens is trained with."""
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
    """Whole ones, uniform; for a flow head times of a logistic normal, most in the middle.

    There a velocity is hardest to tell (Stable Diffusion 3, arXiv 2403.03206, section 3.1).
    """
    if head == "flow":
        return (TRAIN_STEPS / (1 + np.exp(-stream.standard_normal(shape)))).astype(np.float32)
    return stream.integers(0, TRAIN_STEPS, shape)


def masked_tokens(config: ModelConfig, seed: int, step: int) -> int:
    """K, how many tokens of each example of a step are masked: at least one, and as many for all.

    Under causal attention each is predicted from those before it, all in one pass. In raster order every
    length of prefix is as likely as any other, since each is generated from once.
    """
    if config.attention == "causal":
        return config.tokens
    stream = _stream(seed, step, _STEP, 0)
    if config.order == "raster":
        return max(1, math.ceil(config.tokens * stream.uniform(config.mask_ratio_min, 1)))
    ratio = draw_mask_ratio(config.mask_ratio_min, stream)
    return min(config.tokens, max(1, math.ceil(config.tokens * ratio)))


def draw_mask_ratio(smallest: float, stream: np.random.Generator) -> float:
    """From the normal centred at 1 with std 0.25, truncated to smallest..1, by inverting its distribution."""
    low = _MASK_RATIO.cdf(smallest)
    return min(1.0, max(smallest, _MASK_RATIO.inv_cdf(low + (0.5 - low) * stream.random())))


def batch_examples(examples: int, batch_size: int, step: int, seed: int) -> NDArray[np.int64]:
    """The examples of a batch [batch_size]: every epoch is a permutation of its own, cut into whole batches."""
    epoch, position = divmod(step, examples // batch_size)
    return _epoch_order(examples, epoch, seed)[position * batch_size : (position + 1) * batch_size]


@functools.lru_cache(maxsize=1)
def _epoch_order(examples: int, epoch: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(examples)


def _stream(seed: int, step: int, kind: int, place: int) -> np.random.Generator:
    key, counter = np.array([seed, step], np.uint64), np.array([0, 0, kind, place], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
