"""The anchor of the benchmark: the model exported as it is written, with none of this project's savings.

Two graphs (`mar_export.benchmark.naive_graphs`), the backbone in raster order answering every position, and the
head with its modulation inside, called once a step; guidance and the sampler's arithmetic in numpy. It
is what a user gets from `torch.onnx.export` and a loop in Python.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from runtime.model.coefficients import COEFFICIENTS
from runtime.model.config import ModelConfig
from runtime.model.engine_spec import Engine, EngineSpec, TensorSpec
from runtime.sampling.plan import Plan
from runtime.sampling.samplers import CoefficientTable

Float = NDArray[np.float32]


def naive_specs(config: ModelConfig) -> dict[str, EngineSpec]:
    """The specs of the two graphs, by name."""
    channels, z_channels = config.token_channels, config.decoder_embed_dim
    backbone = EngineSpec(
        "naive-backbone",
        inputs=(
            TensorSpec("tokens", "float32", ("B", config.tokens, channels)),
            TensorSpec("visible", "int64", ("B", "V")),
            TensorSpec("labels", "int64", ("B",)),
        ),
        outputs=(TensorSpec("z", "float32", ("B", config.tokens, z_channels)),),
    )
    head = EngineSpec(
        "naive-head",
        inputs=(
            TensorSpec("x", "float32", ("N", channels)),
            TensorSpec("timesteps", "float32", ("N",)),
            TensorSpec("z", "float32", ("N", z_channels)),
        ),
        outputs=(TensorSpec("out", "float32", ("N", 2 * channels)),),
    )
    return {spec.name: spec for spec in (backbone, head)}


def sample_naive(
    backbone: Engine,
    head: Engine,
    config: ModelConfig,
    plan: Plan,
    labels: NDArray[np.int64],
    order: NDArray[np.int64],
    noise: Float,
    times: dict[str, float],
) -> Float:
    """Tokens [B, L, D] in raster order, for generation order [B, L] and noise [T + 1, B, L, D] by position.

    `times` collects the seconds spent in `backbone` and `head`.
    """
    batch = len(labels)
    tokens = np.zeros((batch, plan.length, config.token_channels), np.float32)
    images = np.arange(batch)[:, None]
    for iteration in plan.iterations:
        started = time.perf_counter()
        visible, now = order[:, : iteration.known], order[:, iteration.known : iteration.known + iteration.count]
        halves = 2 if iteration.guided else 1
        both = np.concatenate([labels, np.full_like(labels, config.class_num)]) if iteration.guided else labels
        (every,) = backbone(tokens=np.tile(tokens, (halves, 1, 1)), visible=np.tile(visible, (halves, 1)), labels=both)
        z = np.take_along_axis(every, np.tile(now, (halves, 1))[..., None], axis=1).reshape(-1, every.shape[-1])
        between = time.perf_counter()
        drawn = noise[:, images, now].reshape(len(noise), -1, config.token_channels)
        x = _diffuse(head, z, drawn, iteration.table, iteration.guidance_scale, halves)
        tokens[images, now] = x.reshape(batch, iteration.count, -1)
        times["backbone"] = times.get("backbone", 0.0) + between - started
        times["head"] = times.get("head", 0.0) + time.perf_counter() - between
    return tokens


def _diffuse(head: Engine, z: Float, noise: Float, table: CoefficientTable, scale: float, halves: int) -> Float:
    """Tokens [N, D] from z [G N, C] and noise [T + 1, N, D]."""
    x: Float = noise[0]
    x0 = np.zeros_like(x)
    for step, row in enumerate(table.coefficients):
        c: Mapping[str, np.float32] = dict(zip(COEFFICIENTS, row, strict=True))
        timesteps = np.full(len(z), table.timesteps[step])
        (out,) = head(x=np.tile(x, (halves, 1)), timesteps=timesteps, z=z)
        eps, v = (part.reshape(halves, *x.shape) for part in np.split(out, 2, axis=1))
        guided = eps[-1] + np.float32(scale) * (eps[0] - eps[-1])
        previous, x0 = x0, c["x0_from_x"] * x + c["x0_from_eps"] * guided
        fraction = (v[0] + 1) / 2
        sigma = np.exp((fraction * c["log_variance_high"] + (1 - fraction) * c["log_variance_low"]) / 2)
        x = c["x_from_x"] * x + c["x_from_x0"] * x0 + c["x_from_previous_x0"] * previous
        x += c["noise_scale"] * sigma * noise[1 + step]
    return x
