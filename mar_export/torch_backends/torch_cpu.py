"""The engines in PyTorch itself: the modules that are exported, called by the runtime's own loop.

It is what is left to gain without exporting anything: the benchmark's stronger baseline, alone or
under `torch.compile`, and a fast way to draw many images of a checkpoint in bfloat16.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mar_export.graphs.engine_modules import Denoise, loop_modules
from runtime.artifact.manifest import Manifest
from runtime.generator import Generator
from runtime.loops.host_loop import Engines
from runtime.model.engine_spec import Array, Engine
from training.models.mar import MAR


def eager_generator(manifest: Manifest, model: MAR, *, bfloat16: bool = False, compiled: bool = False) -> Generator:
    """A generator that draws with `model`, in evaluation mode on a CPU, instead of exported engines.

    With `bfloat16` the matrix products are rounded to it, all but the head's last; `compiled` runs each
    engine under `torch.compile`.
    """
    engines = {}
    for name, module in loop_modules(model).items():
        if bfloat16 and isinstance(module, Denoise):
            module.final_layer = copy.deepcopy(module.final_layer)
            module.final_layer.linear = _Float32(module.final_layer.linear)
        engines[name] = torch_engine(torch.compile(module, dynamic=True) if compiled else module, bfloat16)
    form = "bfloat16" if bfloat16 else "float32"
    description = f"torch {torch.__version__}, {form}{', compiled' if compiled else ''}"
    return Generator(manifest, Engines(**engines), description)


def torch_engine(module: Callable[..., Any], bfloat16: bool = False) -> Engine:
    """`module` called as an engine: with arrays, by name."""

    def call(**inputs: Array) -> tuple[Array, ...]:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            outputs = module(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        return tuple(output.float().numpy() for output in (outputs if isinstance(outputs, tuple) else (outputs,)))

    return call


class _Float32(nn.Module):
    """A layer kept in float32: at the first timesteps an error of eps is amplified many times."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return self.layer(x.float())
