"""`mar train` of a Hi-MAR: both losses fall, a run can be loaded, and what it cannot be trained on is one line."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
import pytest
import torch

from runtime.errors import ConfigError
from tests.helpers.himar_cases import TINY_HIMAR
from tests.helpers.tiny_runs import one_thread, tiny_training, write_idx_dataset
from training.checkpoints.checkpoint import load_checkpoint
from training.config import RunConfig
from training.data.himar_batches import HimarBatches
from training.loop.mar_trainer import MarTrainer
from training.models.himar import Himar

TINY = dataclasses.replace(
    TINY_HIMAR, img_size=12, diffusion_batch_mul=2, attn_dropout=0.0, proj_dropout=0.0, cond_scale=3, gdm_d=1
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_idx_dataset(tmp_path_factory.mktemp("images"))


def _batches(images: pathlib.Path, steps: int) -> HimarBatches:
    config = RunConfig(str(images), TINY, tiny_training(steps))
    return HimarBatches(MarTrainer.open_data(config), TINY, config.training, 0, 1)


def test_a_run_has_the_model_and_loads_as_a_checkpoint(tmp_path: pathlib.Path, images: pathlib.Path) -> None:
    config = RunConfig(str(images), TINY, tiny_training(3))
    with one_thread():
        MarTrainer.start(tmp_path / "run", config).train()
    checkpoint = load_checkpoint(tmp_path / "run", any_family=True)
    assert checkpoint.model.config == TINY
    assert checkpoint.tokenizer == "pixel"
    assert [*(tmp_path / "run").rglob("*.png")], "no grid of samples"
    assert RunConfig.from_dict(config.to_dict(), "the run").model == TINY


def test_both_losses_train_their_parts(images: pathlib.Path) -> None:
    torch.manual_seed(0)
    model = Himar(**TINY.to_dict())
    with torch.no_grad():  # the first guess of eps is zero, through which no gradient passes
        for layer in (model.diffloss.net.final_layer.linear, model.cond_diffloss.net.final_layer.linear):
            layer.weight.normal_(std=0.1)
        for block in (*model.diffloss.net.res_blocks, *model.cond_diffloss.net.blocks):
            block.adaLN_modulation[1].weight.normal_(std=0.1)
    with one_thread():
        model(*_batches(images, 2)[0].batch).backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {"cond_diffloss.net.pos_embed", "cond_diffloss.net.c_pos_embed"}


def test_the_loss_falls_on_a_batch_that_is_seen_again_and_again(images: pathlib.Path) -> None:
    torch.manual_seed(0)
    model, batch = Himar(**TINY.to_dict()), _batches(images, 2)[0].batch
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    with one_thread():
        for _ in range(60):
            optimizer.zero_grad()
            loss = model(*batch)
            loss.backward()
            optimizer.step()
            losses.append(float(loss))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_the_low_resolution_image_is_the_picture_made_smaller() -> None:
    model = Himar(**TINY.to_dict())
    ramp = torch.linspace(-1, 1, 12).expand(1, 1, 12, 12)
    small = model.low_resolution(ramp)
    assert small.shape == (1, 1, 6, 6)
    assert torch.allclose(small[0, 0, 3, 1:-1], torch.linspace(-1, 1, 12).view(6, 2).mean(1)[1:-1], atol=0.05)


def test_batches_are_the_same_however_they_are_split(images: pathlib.Path) -> None:
    whole = _batches(images, 2)
    halves = [HimarBatches(whole.dataset, TINY, whole.training, rank, 2) for rank in range(2)]
    for name in ("latents", "labels"):
        parts = torch.cat([getattr(half[0].batch, name) for half in halves])
        assert torch.equal(parts, getattr(whole[0].batch, name))
    assert torch.equal(torch.cat([half[0].batch.of_big.noise for half in halves]), whole[0].batch.of_big.noise)


def test_cached_latents_are_refused(images: pathlib.Path) -> None:
    batches = _batches(images, 2)
    latents: Any = dataclasses.make_dataclass("Latents", [("tokenizer", str)])("kl")
    with pytest.raises(ConfigError, match="a Hi-MAR is trained on images of pixels"):
        HimarBatches(latents, TINY, batches.training, 0, 1)
