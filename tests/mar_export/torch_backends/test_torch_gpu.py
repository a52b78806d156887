"""The engines in PyTorch on a GPU, as far as a machine without one can tell; `make gpu-check` draws with them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mar_export.torch_backends.torch_gpu import torch_gpu_generator
from runtime.artifact.manifest import Manifest
from runtime.sampling.settings import Sampling
from tests.fakes.simulated_cuda import SimulatedCuda
from tests.helpers.simulated_gpu import install_cuda
from training.checkpoints.checkpoint import Checkpoint


def test_weights_are_there_before_an_engine_can_read_them(
    pixel_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module's weights are copied on a stream of PyTorch's own, which does nothing before somebody waits for it."""
    copies: list[tuple[torch.Tensor, torch.Tensor]] = []

    def copied_later(module: nn.Module) -> nn.Module:
        for parameter in module.parameters():
            copies.append((parameter.data, parameter.data.clone()))
            parameter.data.fill_(torch.nan)
        return module

    def wait() -> None:
        while copies:
            there, value = copies.pop()
            there.copy_(value)

    install_cuda(monkeypatch, SimulatedCuda())
    monkeypatch.setattr(nn.Module, "cuda", copied_later)
    monkeypatch.setattr(torch.cuda, "synchronize", wait)
    for kind in ("ExternalStream", "MemPool"):
        monkeypatch.setattr(torch.cuda, kind, lambda *handle: None)
    model = pixel_checkpoint.model
    manifest = Manifest(model.config, "pixel", (), Sampling(), "fp32", {}, {}, {}, {})
    with torch_gpu_generator(manifest, model, "fp32", cuda_graphs=True) as generator:
        engines: list[Any] = [generator.engines.backbone, generator.engines.conditioning, generator.engines.denoise]
        for engine in engines:
            parameters = list(engine.on_gpu._module.parameters())
            assert parameters
            assert all(parameter.isfinite().all() for parameter in parameters)
