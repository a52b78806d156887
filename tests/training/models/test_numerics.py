"""Under bf16 autocast, what must not be rounded is not."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.helpers.tiny_runs import TINY, randomized, tiny_training
from training.config import TrainConfig
from training.data.loader import Batch, MicroBatch
from training.distributed import Processes
from training.loop.optimizer_step import MarTrainStep
from training.models import diffusion_head as head
from training.models import numerics
from training.models import reference_loop as published
from training.models.mar import MAR
from training.models.numerics import AttentionInFloat32, LayerNormOfInput, MatmulAttention, PackedDropout
from training.models.transformer import Attention, FeedForward, ScaledDotProduct


def _batch() -> MicroBatch:
    generator = torch.Generator().manual_seed(3)
    order = torch.rand(4, 9, generator=generator).argsort(dim=1)
    timesteps = torch.randint(0, 1000, (2, 4, 6), generator=generator)
    noise = torch.randn(2, 4, 6, 16, generator=generator)
    images = torch.rand(4, 1, 12, 12, generator=generator) * 2 - 1
    return MicroBatch(Batch(images, torch.tensor([0, 1, 2, 3]), order, timesteps, noise), torch.arange(4))


def _dtypes(monkeypatch: pytest.MonkeyPatch, config: TrainConfig) -> dict[str, set[torch.dtype]]:
    """The types that attention gives, matrix products give and the variational bound takes in a step."""
    seen: dict[str, set[torch.dtype]] = {"attention": set(), "products": set(), "bound": set()}
    bound = head._gaussian_kl

    def watched_bound(*arguments: Tensor) -> Tensor:
        seen["bound"].update(argument.dtype for argument in arguments)
        return bound(*arguments)

    def watch(module: nn.Module, name: str) -> None:
        module.register_forward_hook(lambda module, inputs, output: seen[name].add(output.dtype))

    monkeypatch.setattr(head, "_gaussian_kl", watched_bound)
    train_step = MarTrainStep(TINY, config, Processes())
    randomized(train_step.model)
    for module in train_step.model.modules():
        if isinstance(module, Attention):
            watch(module.attend, "attention")
        elif isinstance(module, FeedForward):
            watch(module.fc1, "products")
        elif isinstance(module, head.ResidualBlock):
            watch(module.mlp[0], "products")
    assert train_step.update(0, [_batch()]).applied
    return seen


_BF16, _FP32 = {torch.bfloat16}, {torch.float32}


@pytest.mark.parametrize(
    ("settings", "attention", "products"),
    [
        ({"precision": "bf16"}, _FP32, _BF16),
        ({"precision": "bf16", "attention_precision": "bf16"}, _BF16, _BF16),
        ({"precision": "fp32"}, _FP32, _FP32),
    ],
)
def test_matrix_products_have_the_configured_precision_and_attention_and_loss_float32(
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, str],
    attention: set[torch.dtype],
    products: set[torch.dtype],
) -> None:
    seen = _dtypes(monkeypatch, tiny_training(1, **settings))
    assert seen == {"attention": attention, "products": products, "bound": _FP32}


@pytest.mark.parametrize(
    ("features", "products"),
    [("fma avx2 avx512f", _FP32), ("avx2 avx512_bf16", _BF16), ("amx_tile amx_bf16", _BF16), ("asimd bf16", _BF16)],
)
def test_products_are_bf16_by_default_where_the_processor_has_instructions_for_them(
    monkeypatch: pytest.MonkeyPatch, features: str, products: set[torch.dtype]
) -> None:
    monkeypatch.setattr(numerics, "processor_features", lambda: frozenset(features.split()))
    seen = _dtypes(monkeypatch, dataclasses.replace(tiny_training(1), precision=None))
    assert seen == {"attention": _FP32, "products": products, "bound": _FP32}


@pytest.mark.parametrize("attend", [MatmulAttention(dropout=0.0), ScaledDotProduct(dropout=0.0)])
def test_attention_in_float32_distinguishes_logits_that_are_equal_in_bfloat16(attend: nn.Module) -> None:
    """Logits of 300 and 301 are the same number in bfloat16, and differ by e in float32."""
    q, k = torch.tensor([[[[300.0]]]]), torch.tensor([[[[1.0], [301 / 300]]]])
    v = torch.tensor([[[[0.0], [1.0]]]])
    with torch.autocast("cpu", torch.bfloat16):
        actual = AttentionInFloat32(attend)(q, k, v).item()
    assert actual == pytest.approx(1 / (1 + 2.718281828**-1), abs=1e-4)


# What is written out for CPUs


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(1, 8))
def test_matmul_attention_has_the_output_and_gradient_of_attention(
    batch: int, heads: int, rows: int, keys: int, width: int
) -> None:
    generator = torch.Generator().manual_seed(batch + 7 * rows + 13 * keys)
    q, k, v = (
        torch.randn(batch, heads, length, width, generator=generator, dtype=torch.float64, requires_grad=True)
        for length in (rows, keys, keys)
    )
    actual, expected = MatmulAttention(dropout=0.0)(q, k, v), F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    for one, other in zip(*(torch.autograd.grad(out, (q, k, v), upstream) for out in (actual, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalization_in_the_dtype_of_its_input_has_the_output_and_gradient_of_float32(
    dtype: torch.dtype, affine: bool
) -> None:
    generator = torch.Generator().manual_seed(2)
    own, plain = (norm(48, eps=1e-6, elementwise_affine=affine) for norm in (LayerNormOfInput, nn.LayerNorm))
    for parameter, other in zip(own.parameters(), plain.parameters(), strict=True):
        parameter.data.copy_(torch.randn(48, generator=generator))
        other.data.copy_(parameter.data)
    x = torch.randn(33, 48, generator=generator).to(dtype).requires_grad_()
    upstream = torch.randn(33, 48, generator=generator).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        actual, expected = own(x), plain(x).to(dtype)
    torch.testing.assert_close(actual, expected, rtol=2**-7 if dtype == torch.bfloat16 else 0, atol=0)
    gradients = (
        torch.autograd.grad(y, [x, *norm.parameters()], upstream) for y, norm in ((actual, own), (expected, plain))
    )
    for one, other in zip(*gradients, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rate", "size"), [(0.1, 400_003), (0.5, 400_000), (0.99, 400_001)])
def test_packed_dropout_has_its_rate_and_keeps_mean_and_gradient(rate: float, size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.ones(size, dtype=dtype, requires_grad=True)
    y = PackedDropout(rate)(x)
    kept = y != 0
    spread = (rate * (1 - rate) / size) ** 0.5
    assert abs(float((~kept).float().mean()) - rate) < 4 * spread + 2**-17
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / (1 - rate)), rtol=1e-2, atol=0)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y)
    for lag in (1, 2, 3, 4):  # four decisions come from one word
        both = float((~kept[:-lag] & ~kept[lag:]).float().mean())
        assert abs(both - rate**2) < 5 * (rate**2 * (1 - rate**2) / size) ** 0.5 * 1.5 + 2**-16


def test_packed_dropout_uses_the_global_generator_and_is_off_in_evaluation() -> None:
    x, drop = torch.ones(1001), PackedDropout(0.3)
    drawn = []
    for _ in range(2):
        torch.manual_seed(5)
        drawn.append(drop(x))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drop(x), drawn[0])
    assert torch.equal(drop.eval()(x), x)
    assert torch.equal(PackedDropout(0.0)(x), x)


def test_a_train_step_on_a_cpu_uses_them_and_keeps_parameter_names() -> None:
    train_step = MarTrainStep(TINY, tiny_training(1), Processes())
    assert not any(isinstance(module, nn.Dropout | ScaledDotProduct) for module in train_step.model.modules())
    assert train_step.model.state_dict().keys() == MAR(**TINY.to_dict()).state_dict().keys()


# The published form


def test_the_loss_and_its_gradients_equal_those_of_the_published_formulation() -> None:
    """The head on masked tokens alone is exact: the others are multiplied by zero."""
    model = randomized(MAR(**{**TINY.to_dict(), "attn_dropout": 0.0, "proj_dropout": 0.0})).double()
    latents, labels, order, timesteps, noise = _batch().batch
    latents, noise, masked = latents.double(), noise.double(), timesteps.shape[-1]
    mask = torch.zeros(4, 9, dtype=torch.bool).scatter_(1, order[:, :masked], True)
    at = order[None, :, :masked].expand_as(timesteps)
    of_all = torch.zeros(2, 4, 9, dtype=torch.int64).scatter_(2, at, timesteps)
    noise_of_all = torch.full((2, 4, 9, 16), 3.0).double().scatter_(2, at[..., None].expand_as(noise), noise)
    loss = model(latents, labels, order, timesteps, noise)
    theirs = published.training_loss(model, latents, labels, mask, of_all.flatten(), noise_of_all.flatten(0, 2))
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-12)
    for one, other in zip(*(torch.autograd.grad(out, list(model.parameters())) for out in (loss, theirs)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
