"""The sizes of parity lie on both sides of those of the export, for every dynamic size that a model has.

PyTorch 2.13's exporter writes one branch of Python code that depends on a dynamic size, without an error. Only a
comparison at a size that takes the other branch shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor, nn

from mar_export.artifact.parity import eager_outputs, engine_parity
from mar_export.graphs.engine_modules import graph_modules
from mar_export.onnx_export.example_inputs import EXPORT_SIZES, Sizes, parity_sizes
from mar_export.torch_backends.torch_cpu import torch_engine
from runtime.errors import ParityError
from runtime.model.engine_spec import CONDITIONING, EngineSpec, tokenizer_specs
from runtime.model.families import engine_specs
from runtime.model.family_config import FamilyConfig
from runtime.model.nova_config import SCHEDULERS, NovaConfig, NovaScheduler
from runtime.model.uva_config import UvaConfig
from tests.helpers.variant_models import variant_checkpoint
from training.checkpoints.checkpoint import Checkpoint
from training.models.model_sizes import MODEL_SIZES, model_config

NOVA = NovaConfig(
    image_height=256,
    image_width=256,
    image_stride=8,
    image_dim=4,
    text_token_dim=8,
    text_token_len=16,
    width=32,
    heads=1,
    condition_depth=1,
    image_depth=2,
    head_width=32,
    head_depth=1,
    rotary=True,
    scheduler=NovaScheduler(SCHEDULERS[0]),
)


UVA = UvaConfig(
    encoder_embed_dim=8,
    encoder_depth=1,
    encoder_num_heads=1,
    decoder_embed_dim=8,
    decoder_depth=1,
    decoder_num_heads=1,
    diffloss_act_d=1,
    diffloss_act_w=8,
    action_dim=2,
    text_dim=4,
)


def dynamic_axes(spec: EngineSpec) -> set[str]:
    return {axis for tensor in spec.inputs for axis in tensor.shape if isinstance(axis, str)}


def both_sides(sizes: list[Sizes], axis: str) -> bool:
    found = [each[axis] for each in sizes]
    return min(found) < EXPORT_SIZES[axis] < max(found)


def a_config(name: str) -> FamilyConfig:
    if name in ("nova", "uva"):
        return NOVA if name == "nova" else UVA
    return variant_checkpoint(name).model.config if name == "causal" else model_config(name)


@pytest.mark.parametrize("name", [*MODEL_SIZES, "causal", "nova", "uva"])
def test_every_dynamic_size_is_compared_below_and_above_that_of_the_export(name: str) -> None:
    config = a_config(name)
    specs = {**engine_specs(config), **tokenizer_specs(config)}
    missing = [
        f"{spec.name} {axis}"
        for spec in specs.values()
        for axis in sorted(dynamic_axes(spec))
        if not both_sides(parity_sizes(spec, config), axis)
    ]
    assert missing == []


class Branching(nn.Module):
    """A module that computes something else on one side of the number of steps of the export."""

    def __init__(self, module: nn.Module, other: Callable[[int], bool]) -> None:
        super().__init__()
        self.module, self.other = module, other

    def forward(self, z: Tensor, timesteps: Tensor) -> Any:
        modulation = self.module(z=z, timesteps=timesteps)
        return 2 * modulation if self.other(timesteps.shape[0]) else modulation


@pytest.mark.parametrize("other", [lambda steps: steps > EXPORT_SIZES["T"], lambda steps: steps < EXPORT_SIZES["T"]])
def test_a_branch_that_the_export_lost_is_found(small_checkpoint: Checkpoint, other: Callable[[int], bool]) -> None:
    config = small_checkpoint.model.config
    spec, module = engine_specs(config)[CONDITIONING], graph_modules(small_checkpoint.model, None, False)[CONDITIONING]
    exported = torch_engine(module, spec)

    def engine(**inputs: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        return tuple(np.asarray(output) for output in exported(**inputs))

    engine_parity(engine, eager_outputs(module, spec, config), spec, config, "fp32")
    with pytest.raises(ParityError, match="engine conditioning: relative L2 distance"):
        engine_parity(engine, eager_outputs(Branching(module, other), spec, config), spec, config, "fp32")
