"""The anchor of the benchmark: the model exported as it is written, with none of this project's savings.

Two graphs, the backbone in raster order answering every position, and the head with its modulation
inside, called once a step; guidance and the sampler's arithmetic in numpy. It is what a user gets from
`torch.onnx.export` and a loop in Python.
"""

from __future__ import annotations

import pathlib
import time
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mar_export.onnx_graph import export_graph
from runtime.backends import Engine
from runtime.config import ModelConfig
from runtime.plan import Plan
from runtime.samplers import COEFFICIENTS, CoefficientTable
from runtime.spec import EngineSpec, TensorSpec
from training.model import MAR

Float = NDArray[np.float32]


class PlainBackbone(nn.Module):
    """Tokens [B, L, D] in raster order and the known positions [B, V] -> z of every position, [B, L, C]."""

    def __init__(self, model: MAR) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, visible: Tensor, labels: Tensor) -> Tensor:
        model, buffer = self.model, self.model.config.buffer_size
        class_embedding = model.class_embedding(labels)[:, None].expand(-1, buffer, -1)
        x = torch.cat([class_embedding, model.z_proj(tokens)], dim=1) + model.encoder_pos_embed_learned
        x = model.z_proj_ln(x)  # [B, buffer + L, E]
        width = x.shape[-1]
        x = torch.cat([x[:, :buffer], x[:, buffer:].gather(1, visible[..., None].expand(-1, -1, width))], dim=1)
        for block in model.encoder_blocks:
            x = block(x)
        x = model.decoder_embed(model.encoder_norm(x))  # [B, buffer + V, C]
        places = visible[..., None].expand(-1, -1, x.shape[-1])
        padded = model.mask_token.expand(tokens.shape[0], tokens.shape[1], -1).scatter(1, places, x[:, buffer:])
        x = torch.cat([x[:, :buffer], padded], dim=1) + model.decoder_pos_embed_learned  # [B, buffer + L, C]
        for block in model.decoder_blocks:
            x = block(x)
        return model.decoder_norm(x)[:, buffer:] + model.diffusion_pos_embed_learned


class PlainHead(nn.Module):
    """The published head: noisy tokens [N, D], timesteps [N] and vectors z [N, C] -> eps and v, [N, 2D]."""

    def __init__(self, model: MAR) -> None:
        super().__init__()
        self.net = model.diffloss.net

    def forward(self, x: Tensor, timesteps: Tensor, z: Tensor) -> Tensor:
        return self.net(x, timesteps, z)


def plain_specs(config: ModelConfig) -> dict[str, EngineSpec]:
    """The specs of the two graphs, by name."""
    channels, z_channels = config.token_channels, config.decoder_embed_dim
    backbone = EngineSpec(
        "plain-backbone",
        inputs=(
            TensorSpec("tokens", "float32", ("B", config.tokens, channels)),
            TensorSpec("visible", "int64", ("B", "V")),
            TensorSpec("labels", "int64", ("B",)),
        ),
        outputs=(TensorSpec("z", "float32", ("B", config.tokens, z_channels)),),
        tolerance=1e-5,
    )
    head = EngineSpec(
        "plain-head",
        inputs=(
            TensorSpec("x", "float32", ("N", channels)),
            TensorSpec("timesteps", "float32", ("N",)),
            TensorSpec("z", "float32", ("N", z_channels)),
        ),
        outputs=(TensorSpec("out", "float32", ("N", 2 * channels)),),
        tolerance=1e-5,
    )
    return {spec.name: spec for spec in (backbone, head)}


def export_plain(model: MAR, folder: pathlib.Path) -> None:
    """Write both graphs into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for spec, module in zip(plain_specs(model.config).values(), (PlainBackbone(model), PlainHead(model)), strict=True):
        export_graph(module.eval(), spec, model.config, folder / f"{spec.name}.onnx")


def sample_plain(
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
