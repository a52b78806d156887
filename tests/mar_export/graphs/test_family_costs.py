"""The cost models of NOVA and UVA, against what PyTorch counts while it runs the modules that are exported."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mar_export.graphs.engine_modules import loop_modules
from mar_export.onnx_export.example_inputs import example_inputs
from runtime.cost.operations import iteration_costs, plan_costs
from runtime.model.engine_spec import CONDITION
from runtime.model.families import engine_specs, family_of, imported
from runtime.sampling.constraints import default_sampling, plan_for
from training.models.model_sizes import model_config

# No two sizes alike, so that none can stand for another.
NOVA: dict[str, Any] = {
    "image_height": 64,
    "image_width": 96,
    "image_stride": 8,
    "image_dim": 3,
    "text_token_dim": 10,
    "text_token_len": 7,
    "width": 32,
    "heads": 2,
    "condition_depth": 2,
    "image_depth": 5,
    "head_width": 24,
    "head_depth": 3,
}
UVA: dict[str, Any] = {
    "encoder_embed_dim": 16,
    "encoder_depth": 2,
    "encoder_num_heads": 2,
    "action_dim": 3,
    "text_dim": 6,
    "decoder_embed_dim": 24,
    "decoder_depth": 3,
    "decoder_num_heads": 2,
    "state_dim": 5,
    "state_steps": 4,
    "diffloss_act_w": 40,
    "diffloss_act_d": 2,
}
BATCH = 2


@pytest.mark.parametrize(
    ("size", "fields"),
    [("nova_small", NOVA), ("nova_small", {**NOVA, "rotary": True, "heads": 1}), ("uva_small", UVA)],
    ids=["nova", "rotary", "uva"],
)
def test_every_engine_costs_what_pytorch_counts(size: str, fields: dict[str, Any]) -> None:
    config = model_config(size, **fields)
    torch.manual_seed(0)
    modules = loop_modules(imported(family_of(config).model)(**config.to_dict()))
    plan = plan_for(config, default_sampling(config))
    for iteration in (plan.iterations[0], plan.iterations[-1]):
        sequences = BATCH * (2 if iteration.guided else 1)
        axes = {
            "B": BATCH,
            "Q": BATCH,
            "GB": sequences,
            "V": iteration.known,
            "K": iteration.count,
            "T": 3,
            "R": config.tokens - iteration.known - iteration.count,
            "N": BATCH * iteration.count,
            "GN": sequences * iteration.count,
        }
        for name, (_, cost) in iteration_costs(config, iteration, BATCH).items():
            spec = engine_specs(config)[name]
            inputs = example_inputs(spec, config, axes, 0)
            with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as flops:
                modules[name](**{tensor: torch.from_numpy(array) for tensor, array in inputs.items()})
            expected = cost.operations
            if name == "conditioning":  # for three timesteps
                expected -= (iteration.table.steps - 3) * _of_a_timestep(config, sequences * iteration.count)
            assert flops.get_total_flops() == expected, name


def _of_a_timestep(config: Any, rows: int) -> int:
    width = config.diffloss_act_w if hasattr(config, "diffloss_act_w") else config.head_width
    return 2 * (rows * width * config.modulation_channels + (256 + width) * width)


def test_the_condition_is_paid_for_once_an_image() -> None:
    config = model_config("nova_small", **NOVA)
    plan = plan_for(config, default_sampling(config))
    paid = [CONDITION in iteration_costs(config, iteration, BATCH) for iteration in plan.iterations]
    assert paid == [True] + [False] * (len(plan.iterations) - 1)
    _, of_first = iteration_costs(config, plan.iterations[0], BATCH)[CONDITION]
    assert plan_costs(config, plan, BATCH)[CONDITION] == of_first
