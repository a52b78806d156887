"""Under bf16 autocast, what must not be rounded is not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from tiny_runs import TINY, one_thread, randomized, tiny_training
from torch import Tensor

from training import head
from training.config import TrainConfig
from training.distribution import Processes
from training.learner import Learner
from training.loader import Batch, MicroBatch
from training.numerics import AttentionInFloat32


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def _batch() -> MicroBatch:
    generator = torch.Generator().manual_seed(3)
    order = torch.rand(4, 9, generator=generator).argsort(dim=1)
    timesteps = torch.randint(0, 1000, (2, 4, 6), generator=generator)
    noise = torch.randn(2, 4, 6, 16, generator=generator)
    pictures = torch.rand(4, 1, 12, 12, generator=generator) * 2 - 1
    return MicroBatch(Batch(pictures, torch.tensor([0, 1, 2, 3]), order, timesteps, noise), torch.arange(4))


def _dtypes(monkeypatch: pytest.MonkeyPatch, config: TrainConfig) -> dict[str, set[torch.dtype]]:
    """The types that attention, matrix products and the variational bound see during a step."""
    seen: dict[str, set[torch.dtype]] = {"attention": set(), "products": set(), "bound": set()}
    attend, bound = F.scaled_dot_product_attention, head._gaussian_kl

    def watched_attention(q: Tensor, k: Tensor, v: Tensor, dropout_p: float) -> Tensor:
        out = attend(q, k, v, dropout_p=dropout_p)
        seen["attention"].add(out.dtype)
        return out

    def watched_bound(*arguments: Tensor) -> Tensor:
        seen["bound"].update(argument.dtype for argument in arguments)
        return bound(*arguments)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched_attention)
    monkeypatch.setattr(head, "_gaussian_kl", watched_bound)
    learner = Learner(TINY, config, Processes())
    randomized(learner.model)
    for block in (*learner.model.encoder_blocks, *learner.model.diffloss.net.res_blocks):
        layer = block.mlp.fc1 if hasattr(block.mlp, "fc1") else block.mlp[0]
        layer.register_forward_hook(lambda module, inputs, output: seen["products"].add(output.dtype))
    assert learner.update(0, [_batch()]).taken
    return seen


_BF16, _FP32 = {torch.bfloat16}, {torch.float32}


@pytest.mark.parametrize(
    ("settings", "attention", "products"),
    [
        ({"precision": "bf16"}, _FP32, _BF16),
        ({"precision": "bf16", "attention": "bf16"}, _BF16, _BF16),
        ({"precision": "fp32"}, _FP32, _FP32),
    ],
)
def test_products_are_as_asked_and_attention_and_loss_float32(
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, str],
    attention: set[torch.dtype],
    products: set[torch.dtype],
) -> None:
    seen = _dtypes(monkeypatch, tiny_training(1, **settings))
    assert seen == {"attention": attention, "products": products, "bound": _FP32}


def test_bf16_with_attention_and_loss_in_fp32_is_what_one_gets() -> None:
    config = TrainConfig(steps=1)
    assert (config.precision, config.attention) == ("bf16", "fp32")


def test_attention_in_float32_tells_apart_what_bfloat16_cannot() -> None:
    """Logits of 300 and 301 are the same number in bfloat16, and differ by e in float32."""
    q, k = torch.tensor([[[[300.0]]]]), torch.tensor([[[[1.0], [301 / 300]]]])
    v = torch.tensor([[[[0.0], [1.0]]]])
    with torch.autocast("cpu", torch.bfloat16):
        found = AttentionInFloat32(dropout=0.0)(q, k, v).item()
    assert found == pytest.approx(1 / (1 + 2.718281828**-1), abs=1e-4)
