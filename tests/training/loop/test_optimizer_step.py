"""The optimizer step: AdamW's groups, the average, the learning rate, clipping, batches, and precision."""

from __future__ import annotations

import math
import pathlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.tiny_runs import TINY, logged, start, tiny_training
from tests.helpers.training_runs import STATE, WEIGHTS, assert_same_run, examples_by_step
from training.checkpoints.tensor_files import read_safetensors
from training.data.datasets import open_dataset
from training.loop.mar_trainer import MarTrainer
from training.loop.optimizer_step import learning_rate


@pytest.mark.parametrize("settings", [{"workers": 2}, {"gradient_checkpointing": True}])
def test_workers_and_gradient_checkpointing_change_no_bit(
    finished_run: pathlib.Path, training_images: pathlib.Path, tmp_path: pathlib.Path, settings: dict[str, Any]
) -> None:
    """To the last bit, dropout included."""
    start(tmp_path / "run", training_images, 8, **settings).train()
    assert_same_run(tmp_path / "run", finished_run)


def test_compiled_blocks_train_to_the_same_losses(
    finished_run: pathlib.Path, training_images: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As traced; what a compiler makes of it is PyTorch's. Every kind of block is compiled, for all sizes at once."""
    compiled: list[str] = []

    def trace(function: Any, **settings: Any) -> Any:
        compiled.append(f"{type(function.__self__).__name__}.{function.__name__}")
        return compile_(function, **settings, backend="eager")

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", trace)
    start(tmp_path / "run", training_images, 2, compile=True).train()
    assert set(compiled) == {"Block._call_impl", "ResidualBlock._call_impl", "Block.rows"}
    first_two = {step: loss for step, loss in logged(finished_run, "loss").items() if step <= 2}
    assert logged(tmp_path / "run", "loss") == pytest.approx(first_two, rel=1e-5)
    assert read_safetensors(tmp_path / "run" / WEIGHTS).keys() == read_safetensors(finished_run / WEIGHTS).keys()


_MATRICES_OF_THE_TRANSFORMER = {
    "fake_latent",
    "encoder_pos_embed_learned",
    "mask_token",
    "decoder_pos_embed_learned",
    "diffusion_pos_embed_learned",
    "class_emb.weight",
    "z_proj.weight",
    "decoder_embed.weight",
    *(
        f"{half}_blocks.0.{layer}.weight"
        for half in ("encoder", "decoder")
        for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    ),
}


def test_weight_decay_applies_to_the_matrices_of_the_transformer_only(
    training_images: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    trainer = start(tmp_path / "run", training_images, 1, weight_decay=0.03)
    names = {parameter: name for name, parameter in trainer.train_step.model.named_parameters()}
    grouped = [
        (names[parameter], group["weight_decay"])
        for group in trainer.train_step.optimizer.param_groups
        for parameter in group["params"]
    ]
    assert len(grouped) == len(names)
    assert dict(grouped) == {name: 0.03 if name in _MATRICES_OF_THE_TRANSFORMER else 0.0 for name in names.values()}


def _weights_after_each_step(trainer: MarTrainer) -> Iterator[dict[str, Tensor]]:
    batches = trainer._batches()
    for step in range(trainer.config.training.steps):
        trainer.train_step.update(step, [next(batches)])
        yield {
            name: parameter.detach().double().clone() for name, parameter in trainer.train_step.model.named_parameters()
        }


# The rate grows as (1 + n) / (10 + n) up to the configured rate, which these reach never, at once, and on the way.
@pytest.mark.parametrize(
    ("rate", "rates"),
    [(0.9999, (1 / 10, 2 / 11, 3 / 12)), (0.05, (0.05, 0.05, 0.05)), (0.2, (1 / 10, 2 / 11, 0.2)), (0.0, (0, 0, 0))],
)
def test_the_average_of_the_weights_is_exponential(
    training_images: pathlib.Path, tmp_path: pathlib.Path, rate: float, rates: tuple[float, float, float]
) -> None:
    trainer = start(tmp_path / "run", training_images, 3, ema_rate=rate)
    average = {
        name: parameter.detach().double().clone() for name, parameter in trainer.train_step.model.named_parameters()
    }
    for kept, weights in zip(rates, _weights_after_each_step(trainer), strict=True):
        average = {name: kept * average[name] + (1 - kept) * weights[name] for name in average}
    for name, expected in average.items():
        torch.testing.assert_close(trainer.train_step.average[name].double(), expected, rtol=1e-6, atol=1e-8)


def test_the_learning_rate_warms_up_linearly_and_then_stays_constant(
    training_images: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    trainer = start(tmp_path / "run", training_images, 5, learning_rate=0.01, warmup_steps=4)
    rates = [
        {group["lr"] for group in trainer.train_step.optimizer.param_groups} for _ in _weights_after_each_step(trainer)
    ]
    assert rates == [{0.0025}, {0.005}, {0.0075}, {0.01}, {0.01}]


def test_the_learning_rate_falls_to_zero_over_the_last_share_of_the_run() -> None:
    rates = [
        learning_rate(tiny_training(100, learning_rate=2.0, decay_share=0.2, warmup_steps=0), step)
        for step in range(100)
    ]
    assert rates[:81] == [2.0] * 81
    np.testing.assert_allclose(rates[80:], [1 + math.cos(math.pi * step / 20) for step in range(20)])


def test_gradients_are_clipped_to_the_configured_norm(training_images: pathlib.Path, tmp_path: pathlib.Path) -> None:
    trainer = start(tmp_path / "run", training_images, 1, gradient_clip=0.01)
    outcome = trainer.train_step.update(0, trainer._batches())
    assert outcome.gradient_norm > 0.01  # what is logged is the norm before
    squares = sum(float(parameter.grad.double().square().sum()) for parameter in trainer.train_step.model.parameters())
    assert squares**0.5 == pytest.approx(0.01, rel=1e-3)


def test_every_epoch_uses_each_example_at_most_once_in_its_own_order(
    training_images: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    taken = examples_by_step(
        start(tmp_path / "run", training_images, 6, batch_size=5)
    )  # 12 images: two batches, two left out
    epochs = [taken[first] + taken[first + 1] for first in (0, 2, 4)]
    for epoch in epochs:
        assert max(Counter(epoch).values()) == 1
        assert set(epoch) <= set(range(12))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert len({frozenset(epoch) for epoch in epochs}) > 1  # those left out change, so none is left out for ever


def test_a_batch_as_large_as_the_data_contains_every_example(
    training_images: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    taken = examples_by_step(start(tmp_path / "run", training_images, 2, batch_size=12))
    assert [sorted(batch) for batch in taken] == [list(range(12))] * 2


@pytest.mark.parametrize("flip", [True, False])
def test_images_are_mirrored_only_if_configured_and_keep_their_labels(
    training_images: pathlib.Path, tmp_path: pathlib.Path, flip: bool
) -> None:
    trainer = start(tmp_path / "run", training_images, 1, batch_size=12, flip=flip)
    known = [image[..., 0] / 127.5 - 1 for image in open_dataset(training_images, 12).images(np.arange(12))]
    [(batch, _, _)] = trainer._batches()
    mirrored = 0
    for latent, label in zip(batch.latents.numpy()[:, 0], batch.labels.tolist(), strict=True):
        straight = [i for i, image in enumerate(known) if np.allclose(latent, image, atol=1e-6)]
        turned = [i for i, image in enumerate(known) if np.allclose(latent, image[:, ::-1], atol=1e-6)]
        assert len(straight + turned) == 1
        assert label in ((straight + turned)[0] % 3, TINY.class_num)
        mirrored += len(turned)
    assert 0 < mirrored < 12 if flip else mirrored == 0


def test_bf16_gives_finite_losses_near_those_of_fp32(
    finished_run: pathlib.Path, training_images: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = tmp_path / "run"
    start(run, training_images, 2, precision="bf16").train()
    losses = logged(run, "loss")
    assert np.isfinite(list(losses.values())).all()
    assert losses[2] != logged(finished_run, "loss")[2]  # it was bf16 indeed
    assert losses[1] == pytest.approx(logged(finished_run, "loss")[1], rel=0.02)
    assert {tensor.dtype for tensor in read_safetensors(run / STATE).values()} == {torch.float32}


def test_training_lowers_the_loss(training_images: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run = tmp_path / "run"
    start(run, training_images, 80, learning_rate=5e-3, checkpoint_every=80).train()
    losses = list(logged(run, "loss").values())
    assert np.median(losses[-40:]) < 0.8 * np.median(losses[:10])
