"""What a plan costs, against what PyTorch counts while it runs the very modules that are exported."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mar_export.graphs.backbone import Backbone
from mar_export.graphs.diffusion_head import Conditioning, Denoise
from mar_export.graphs.recap import FullBackbone, LocalBackbone
from runtime.cost.operations import (
    Cost,
    Machine,
    backbone_cost,
    conditioning_cost,
    denoise_cost,
    iteration_costs,
    plan_costs,
    roofline_seconds,
)
from runtime.model.config import ModelConfig
from runtime.model.engine_spec import BACKBONE, CONDITIONING, DENOISE, ENGINES
from runtime.model.families import recap_specs_of
from runtime.model.recap_engines import FULL, LOCAL
from runtime.sampling.plan import Iteration, Plan, build_plan
from runtime.sampling.settings import Sampling
from training.models.mar import MAR
from training.models.model_sizes import model_config

# No two sizes alike, so that none can stand for another.
TINY = ModelConfig(
    img_size=8,
    vae_stride=1,
    patch_size=2,
    vae_embed_dim=3,
    class_num=5,
    buffer_size=3,
    encoder_embed_dim=24,
    encoder_depth=2,
    encoder_num_heads=2,
    decoder_embed_dim=32,
    decoder_depth=3,
    decoder_num_heads=4,
    mlp_ratio=2.5,
    diffloss_d=2,
    diffloss_w=40,
)
CONFIGS = {"tiny": TINY, "middling": model_config("pixel_small")}
# Images, guidance halves, known tokens, predicted tokens; -1 stands for all that are left.
PASSES = [(1, 1, 0, 1), (1, 2, 3, 5), (3, 1, 2, -1), (2, 2, -1, 1)]


class WeightsRead(TorchDispatchMode):
    """The parameters of `module` that are operands of matrix products, biases not among them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._sizes = {p.data_ptr(): p.numel() for p in module.parameters()}
        self._read: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        operands = {torch.ops.aten.addmm.default: args[1:], torch.ops.aten.mm.default: args}.get(func, ())
        for operand in operands:
            address = operand.data_ptr()
            if address in self._sizes:
                self._read.add(address)
        return func(*args, **(kwargs or {}))

    @property
    def numbers(self) -> int:
        return sum(self._sizes[address] for address in self._read)


@pytest.fixture(scope="module", params=list(CONFIGS))
def model(request: pytest.FixtureRequest) -> MAR:
    return MAR(**CONFIGS[request.param].to_dict()).eval()


def counted(module: nn.Module, *inputs: Tensor) -> tuple[int, int]:
    """Operations and numbers of weights of one call. Fused attention on a CPU is not in the counter's list."""
    module = module.eval()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as flops:
            module(*inputs)
        with WeightsRead(module) as weights:
            module(*inputs)
    return flops.get_total_flops(), weights.numbers


def backbone_inputs(config: ModelConfig, images: int, halves: int, known: int, count: int) -> tuple[Tensor, ...]:
    places = torch.arange(config.tokens)[:, None].expand(-1, images)
    visible, predict, rest = places.split([known, count, config.tokens - known - count])
    tokens = torch.zeros(known, images, config.token_channels)
    return tokens, visible, predict, rest, torch.zeros(images * halves, dtype=torch.int64)


@pytest.mark.parametrize(("images", "halves", "known", "count"), PASSES)
def test_the_backbone_costs_what_pytorch_counts(model: MAR, images: int, halves: int, known: int, count: int) -> None:
    config = model.config
    known = config.tokens - count if known < 0 else known
    count = config.tokens - known if count < 0 else count
    cost = backbone_cost(config, images, halves, known, count)
    operations, weights = counted(Backbone(model), *backbone_inputs(config, images, halves, known, count))
    assert cost.operations == operations
    assert cost.bytes == 4 * weights


@pytest.mark.parametrize("cache_buffer", [True, False])
def test_the_passes_of_recap_cost_what_pytorch_counts(model: MAR, cache_buffer: bool) -> None:
    config, batch = model.config, 2
    settings = Sampling(
        iterations=6,
        cfg_scale=2.0,
        cfg_interval=(0.2, 1.0),
        recap_plain_iterations=1,
        recap_local_iterations=2,
        recap_cache_buffer=cache_buffer,
        diffusion_steps=2,
    )
    called = list[str]()
    for iteration in build_plan(config.tokens, settings).iterations:
        costs = iteration_costs(config, iteration, batch)
        (name,) = costs.keys() - {CONDITIONING, DENOISE}
        called.append(name)
        if iteration.group is None:
            continue
        n = iteration.group.sizes(iteration.known, iteration.count, config.tokens, config.buffer_size)
        sequences = batch * iteration.backbone_halves
        axes = {**n, "B": batch, "GB": sequences}
        spec = recap_specs_of(config)[name]
        inputs = [torch.zeros(tensor.sized(axes), dtype=getattr(torch, tensor.dtype)) for tensor in spec.inputs]
        operations, weights = counted({FULL: FullBackbone, LOCAL: LocalBackbone}[name](model), *inputs)
        tensors = spec.outputs if name == FULL else spec.inputs
        caches = sum(math.prod(tensor.sized(axes)) for tensor in tensors if tensor.name.endswith("_cache"))
        assert costs[name] == (1, Cost(operations, 4 * (weights + caches)))
    assert called == [BACKBONE, FULL, LOCAL, LOCAL, FULL, LOCAL]


def test_the_last_decoder_block_is_paid_for_the_rows_it_answers(model: MAR) -> None:
    """Keys and values aside, an answer costs as much whatever the number of others."""
    one, two, eleven = (backbone_cost(model.config, 1, 1, 4, count).operations for count in (1, 2, 11))
    width, sequence = model.config.decoder_embed_dim, model.config.buffer_size + model.config.tokens
    assert two - one == 2 * width * (2 * width * (1 + model.config.mlp_ratio) + 2 * sequence)
    assert eleven - one == 10 * (two - one)


@pytest.mark.parametrize(("rows", "steps"), [(1, 1), (6, 1), (1, 5), (10, 7)])
def test_conditioning_costs_what_pytorch_counts(model: MAR, rows: int, steps: int) -> None:
    config = model.config
    cost = conditioning_cost(config, rows, steps)
    z, timesteps = torch.zeros(rows, config.decoder_embed_dim), torch.arange(float(steps))
    operations, weights = counted(Conditioning(model), z, timesteps)
    assert cost.operations == operations
    assert cost.bytes == 4 * (weights + steps * rows * config.modulation_channels)


def denoise_counted(model: MAR, images: int, halves: int) -> tuple[int, int]:
    x = torch.zeros(images, model.config.token_channels)
    modulation = torch.zeros(halves * images, model.config.modulation_channels)
    return counted(Denoise(model), x, x, x, modulation, torch.zeros(10), torch.ones(1))


@pytest.mark.parametrize("rows", [1, 9])
def test_an_unguided_step_costs_what_pytorch_counts(model: MAR, rows: int) -> None:
    cost = denoise_cost(model.config, rows, rows)
    operations, weights = denoise_counted(model, rows, 1)
    assert cost.operations == operations
    assert cost.bytes == 4 * (weights + rows * model.config.modulation_channels)


def test_a_guided_step_reads_the_same_weights_and_the_modulation_of_both_halves(model: MAR) -> None:
    _, weights = denoise_counted(model, 9, 2)
    assert denoise_cost(model.config, 9, 18).bytes == 4 * (weights + 18 * model.config.modulation_channels)


def test_a_guided_step_costs_what_pytorch_counts(model: MAR) -> None:
    operations, _ = denoise_counted(model, 9, 2)
    assert denoise_cost(model.config, 9, 18).operations == operations


def plan_of(**settings: Any) -> Plan:
    return build_plan(TINY.tokens, Sampling(**{"iterations": 5, "diffusion_steps": 8, **settings}))


def _projection(iteration: Iteration) -> int:
    """The operations that project the known tokens of one image, which both guidance halves share."""
    return 2 * iteration.known * TINY.token_channels * TINY.encoder_embed_dim


def test_an_iteration_calls_each_engine_as_the_loop_does() -> None:
    """One pass of the backbone, one conditioning of all steps, one call a step; both halves under guidance."""
    iteration = plan_of(cfg_scale=2.0).iterations[2]
    known, count = iteration.known, iteration.count
    assert count > 1
    assert iteration_costs(TINY, iteration, 3) == {
        BACKBONE: (1, backbone_cost(TINY, 3, 2, known, count)),
        CONDITIONING: (1, conditioning_cost(TINY, 6 * count, 8)),
        DENOISE: (8, denoise_cost(TINY, 3 * count, 6 * count)),
    }


def test_an_iteration_without_guidance_costs_half_the_operations_but_for_the_projection() -> None:
    guided, unguided = (plan_of(cfg_scale=scale).iterations[3] for scale in (2.0, 1.0))
    both, one = (iteration_costs(TINY, iteration, 2) for iteration in (guided, unguided))
    assert one[BACKBONE][1].operations == (both[BACKBONE][1].operations + 2 * _projection(guided)) / 2
    assert one[BACKBONE][1].bytes == both[BACKBONE][1].bytes
    assert one[DENOISE][1].operations <= 0.6 * both[DENOISE][1].operations


def test_guidance_outside_its_interval_costs_nothing() -> None:
    plans = [
        plan_of(cfg_scale=scale, cfg_interval=interval)
        for scale, interval in ((2.0, (0.5, 1.0)), (2.0, (0.0, 1.0)), (1.0, (0.0, 1.0)))
    ]
    part, whole, none = (plan_costs(TINY, plan) for plan in plans)
    for name in ENGINES:
        assert none[name].operations < part[name].operations < whole[name].operations
    projections = sum(_projection(iteration) for iteration in plans[0].iterations)
    assert whole[BACKBONE].operations == 2 * none[BACKBONE].operations - projections


@pytest.mark.parametrize("settings", [{}, {"cfg_scale": 3.0, "last_diffusion_steps": 2, "cfg_interval": (0.1, 0.6)}])
def test_the_totals_of_a_plan_are_sums_over_calls(settings: dict[str, Any]) -> None:
    plan = plan_of(**settings)
    total = plan_costs(TINY, plan, batch=2)
    assert set(total) == set(ENGINES)
    for name, cost in total.items():
        calls = [iteration_costs(TINY, iteration, 2)[name] for iteration in plan.iterations]
        assert cost.operations == sum(count * one.operations for count, one in calls)
        assert cost.bytes == sum(count * one.bytes for count, one in calls)
    steps = [iteration_costs(TINY, iteration, 2)[DENOISE][0] for iteration in plan.iterations]
    assert sum(steps) == plan.head_evaluations


def test_a_plan_is_counted_for_one_image_by_default() -> None:
    assert plan_costs(TINY, plan_of()) == plan_costs(TINY, plan_of(), batch=1)
    machine = Machine(operations=1e9, bytes=1e9)
    assert roofline_seconds(TINY, plan_of(), machine) == roofline_seconds(TINY, plan_of(), machine, batch=1)


@pytest.mark.parametrize(("operations", "read", "seconds"), [(100.0, 1.0, 10.0), (1.0, 60.0, 20.0), (30.0, 9.0, 3.0)])
def test_the_least_time_is_the_larger_of_the_two_limits(operations: float, read: float, seconds: float) -> None:
    assert Cost(operations, read).seconds(Machine(operations=10.0, bytes=3.0)) == pytest.approx(seconds)


def test_the_roofline_takes_the_larger_limit_of_every_call() -> None:
    """Early iterations here are bound by reading, late ones by products: the sum lies above both limits."""
    plan = plan_of(iterations=4, cfg_scale=2.0)
    calls = [iteration_costs(TINY, iteration, 1)[DENOISE] for iteration in plan.iterations]
    rates = [cost.operations / cost.bytes for _, cost in calls]
    machine = Machine(operations=float(np.mean([min(rates), max(rates)])), bytes=1.0)
    found = roofline_seconds(TINY, plan, machine)
    assert found[DENOISE] == pytest.approx(sum(count * cost.seconds(machine) for count, cost in calls))
    total = plan_costs(TINY, plan)
    assert found[DENOISE] > 1.001 * total[DENOISE].seconds(machine)
    for name in ENGINES:
        assert found[name] >= total[name].seconds(machine) * (1 - 1e-12)


@pytest.mark.parametrize("cost_of", [lambda c: backbone_cost(c, 1, 1, 3, 2), lambda c: conditioning_cost(c, 2, 3)])
def test_a_wider_model_costs_more(cost_of: Callable[[ModelConfig], Cost]) -> None:
    wide = dataclasses.replace(TINY, encoder_embed_dim=48, decoder_embed_dim=64, diffloss_w=80)
    assert cost_of(wide).operations > 2 * cost_of(TINY).operations
    assert cost_of(wide).bytes > 2 * cost_of(TINY).bytes
