"""The naive baseline of the benchmark: the published model exported as it is, without this project's optimizations.

It is what `torch.onnx.export` and a loop in Python give. There are two graphs, which
`mar_export.benchmark.naive_graphs` exports. The backbone takes and returns all positions in raster order. The head
contains its modulation and is called once for each diffusion step; guidance and the arithmetic of the sampler are in
numpy.
"""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from runtime.backends.onnxruntime import OnnxRuntime
from runtime.errors import RequestError
from runtime.model.coefficients import COEFFICIENTS
from runtime.model.config import ModelConfig
from runtime.model.engine_spec import Engine, EngineSpec, TensorSpec
from runtime.sampling.plan import Plan
from runtime.sampling.samplers import CoefficientTable

Float = NDArray[np.float32]


def naive_specs(config: ModelConfig) -> dict[str, EngineSpec]:
    """Return the inputs and outputs of the two graphs, by name: the backbone first, then the head."""
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


@dataclasses.dataclass(frozen=True)
class NaiveEngines:
    """The loaded naive graphs of a model, and the loop that generates with them.

    Attributes:
        config: The model.
        backbone: The graph of the backbone, with the inputs and outputs of its spec in `naive_specs`.
        head: The graph of the diffusion head, likewise.
    """

    config: ModelConfig
    backbone: Engine
    head: Engine

    @classmethod
    def load(cls, backend: OnnxRuntime, folder: pathlib.Path, config: ModelConfig) -> NaiveEngines:
        """Load the graphs that `mar_export.benchmark.naive_graphs.export_naive` wrote to `folder`."""
        backbone, head = (
            backend.load_graph(folder / f"{name}.onnx", spec) for name, spec in naive_specs(config).items()
        )
        return cls(config, backbone, head)

    def sample(
        self, plan: Plan, labels: NDArray[np.int64], order: NDArray[np.int64], noise: Float, times: dict[str, float]
    ) -> Float:
        """Generate tokens.

        Args:
            plan: The iterations.
            labels: Classes [B].
            order: Generation order [B, L]: token positions, first generated first.
            noise: Standard normal noise [T + 1, B, L, D], by raster position.
            times: The seconds spent in `backbone` and `head` are added to its entries.

        Returns:
            Tokens float32 [B, L, D] in raster order.

        Raises:
            RequestError: The plan has local iterations.
        """
        if plan.groups:
            raise RequestError("the runner naive-onnx has no local iterations; leave out recap_local_iterations")
        config, batch = self.config, len(labels)
        tokens = np.zeros((batch, plan.length, config.token_channels), np.float32)
        images = np.arange(batch)[:, None]
        for iteration in plan.iterations:
            started = time.perf_counter()
            visible, now = order[:, : iteration.known], order[:, iteration.known : iteration.known + iteration.count]
            halves = 2 if iteration.guided else 1
            all_labels = np.concatenate([labels, np.full_like(labels, config.class_num)])[: halves * batch]
            (all_z,) = self.backbone(
                tokens=np.tile(tokens, (halves, 1, 1)), visible=np.tile(visible, (halves, 1)), labels=all_labels
            )
            z = np.take_along_axis(all_z, np.tile(now, (halves, 1))[..., None], axis=1).reshape(-1, all_z.shape[-1])
            between = time.perf_counter()
            chain_noise = noise[:, images, now].reshape(len(noise), -1, config.token_channels)
            x = _diffuse(self.head, z, chain_noise, iteration.table, iteration.guidance_scale, halves)
            tokens[images, now] = x.reshape(batch, iteration.count, -1)
            times["backbone"] = times.get("backbone", 0.0) + between - started
            times["head"] = times.get("head", 0.0) + time.perf_counter() - between
        return tokens


def _diffuse(head: Engine, z: Float, noise: Float, table: CoefficientTable, scale: float, halves: int) -> Float:
    """Run the diffusion chains of N tokens: z [G N, C] and noise [T + 1, N, D] to tokens [N, D]."""
    x: Float = noise[0]
    x0 = np.zeros_like(x)
    for step, row in enumerate(table.coefficients):
        c: Mapping[str, np.float32] = dict(zip(COEFFICIENTS, row, strict=True))
        timesteps = np.full(len(z), table.timesteps[step])
        (out,) = head(x=np.tile(x, (halves, 1)), timesteps=timesteps, z=z)
        eps, v = (part.reshape(halves, *x.shape) for part in np.split(out, 2, axis=1))
        guided = eps[-1] + np.float32(scale) * (eps[0] - eps[-1])
        previous, x0 = x0, c["x0_from_x"] * x + c["x0_from_eps"] * guided  # of a MAR, whose bounds are infinite
        fraction = (v[0] + 1) / 2
        sigma = np.exp((fraction * c["log_variance_high"] + (1 - fraction) * c["log_variance_low"]) / 2)
        x = c["x_from_x"] * x + c["x_from_x0"] * x0 + c["x_from_previous_x0"] * previous
        x += c["noise_scale"] * sigma * noise[1 + step]
    return x
