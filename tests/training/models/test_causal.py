"""Causal attention and raster order in training: who sees whom, what is masked, runs that go on."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest
import torch
from torch import Tensor

from runtime.errors import ConfigError
from runtime.model.config import ModelConfig
from tests.helpers.tiny_runs import TINY, one_sentence, randomized, tiny_training, write_idx_dataset
from training.checkpoints.checkpoint import load_checkpoint
from training.config import RunConfig
from training.data.draws import draw_example, example_stream, masked_tokens
from training.distributed import Processes
from training.loop.mar_trainer import MarTrainer
from training.loop.optimizer_step import MarTrainStep
from training.models.mar import MAR

CAUSAL = dataclasses.replace(TINY, attention="causal")
FORMS = {
    "causal": CAUSAL,
    "causal raster vq": dataclasses.replace(CAUSAL, order="raster", head="vq", codebook_size=6),
    "vq": dataclasses.replace(TINY, head="vq", codebook_size=6),
    "raster": dataclasses.replace(TINY, order="raster", mask_ratio_min=0.0),
}


def _causal(config: ModelConfig = CAUSAL) -> MAR:
    return randomized(MAR(**config.to_dict())).eval()


def _inputs(batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, an order of its own for each image, and labels with none among them."""
    generator = torch.Generator().manual_seed(5)
    order = torch.stack([torch.randperm(TINY.tokens, generator=generator) for _ in range(batch)])
    tokens = torch.randn(batch, TINY.tokens, TINY.token_channels, generator=generator)
    return tokens, order, torch.arange(batch) + TINY.class_num - 1


@torch.inference_mode()
def test_only_later_tokens_attend_to_a_token() -> None:
    model, (tokens, order, labels) = _causal(), _inputs()
    before = model.predict_next(tokens, order, labels)
    for place in range(TINY.tokens):
        changed = tokens.clone()
        changed[:, place] += 1
        difference = (model.predict_next(changed, order, labels) - before).abs().amax(dim=(0, 2))  # [L]
        assert (difference[: place + 1] == 0).all()
        assert (difference[place + 1 :] > 1e-4).all()


@torch.inference_mode()
def test_a_token_is_predicted_for_the_position_it_will_have() -> None:
    """With the same tokens before it: only where it is to lie differs."""
    model, (tokens, order, labels) = _causal(), _inputs()
    other = order.clone()
    other[:, -2:] = order[:, -2:].flip(1)
    here, there = (model.predict_next(tokens, each, labels) for each in (order, other))
    shift = model.diffusion_pos_embed_learned[0]
    assert torch.equal(here[:, :-2], there[:, :-2])
    difference = (here[:, -2] - shift[order[:, -2]]) - (there[:, -2] - shift[other[:, -2]])
    assert difference.abs().amax() > 1e-3  # and not by what is added at the very end alone


@torch.inference_mode()
def test_the_class_reaches_every_token() -> None:
    model, (tokens, order, _) = _causal(), _inputs()
    one, two = (model.predict_next(tokens, order, torch.full((2,), label)) for label in (0, 1))
    assert ((one - two).abs().amax(dim=(0, 2)) > 1e-4).all()


@pytest.mark.parametrize("attention", ["fp32", "bf16"])
def test_the_operators_for_cpus_compute_the_same(attention: str) -> None:
    """The train_step writes attention out; its mask must be the same."""
    tokens, order, labels = _inputs()
    train_step = MarTrainStep(CAUSAL, tiny_training(1, attention_precision=attention), Processes())
    model = MAR(**CAUSAL.to_dict()).eval()
    model.load_state_dict(train_step.model.state_dict())
    with torch.inference_mode():
        actual = train_step.model.eval().predict_next(tokens, order, labels)
        torch.testing.assert_close(actual, model.predict_next(tokens, order, labels), rtol=1e-5, atol=1e-5)


def test_the_loss_predicts_every_token_from_those_before_it() -> None:
    model, (_, order, labels) = _causal(), _inputs()
    latents = torch.randn(2, 1, 12, 12, generator=torch.Generator().manual_seed(2))
    timesteps = torch.full((1, 2, TINY.tokens), 400)
    noise = torch.randn(1, 2, TINY.tokens, TINY.token_channels, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        tokens = model.patchify(latents)[torch.arange(2)[:, None], order]
        z = model.predict_next(tokens, order, labels)
        each = [
            model.diffloss(tokens[:, place], z[:, place], timesteps[0, :, place], noise[0, :, place])
            for place in range(TINY.tokens)
        ]
        torch.testing.assert_close(model(latents, labels, order, timesteps, noise), torch.stack(each).mean())


def test_under_causal_attention_every_token_is_predicted_in_its_order() -> None:
    assert {masked_tokens(CAUSAL, 0, step) for step in range(20)} == {TINY.tokens}
    drawn = draw_example(FORMS["causal raster vq"], TINY.tokens, example_stream(0, 0, 0))
    assert drawn.order.tolist() == list(range(TINY.tokens))


def test_in_raster_order_a_prefix_is_known_and_every_length_occurs() -> None:
    config = FORMS["raster"]
    masked = [masked_tokens(config, 0, step) for step in range(900)]
    counts = np.bincount(masked, minlength=config.tokens + 1)
    assert counts[0] == 0
    assert (np.abs(counts[1:] - 100) < 50).all()  # 100 each; five deviations
    drawn = draw_example(config, 4, example_stream(0, 0, 0))
    assert drawn.order.tolist() == [5, 6, 7, 8, 0, 1, 2, 3, 4]  # the masked ones first


@pytest.mark.parametrize("form", FORMS)
def test_a_stopped_run_resumes_to_the_same_weights(form: str, tmp_path: pathlib.Path) -> None:
    config = RunConfig(str(write_idx_dataset(tmp_path / "data")), FORMS[form], tiny_training(4, checkpoint_every=2))
    MarTrainer.start(tmp_path / "whole", config).train()
    half = dataclasses.replace(config, training=dataclasses.replace(config.training, steps=2))
    MarTrainer.start(tmp_path / "half", half).train()
    MarTrainer.resume(tmp_path / "half", changes={"steps": 4}).train()
    whole, resumed = (load_checkpoint(tmp_path / name).model for name in ("whole", "half"))
    assert whole.config == FORMS[form]
    for (name, one), two in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two), name


@pytest.mark.parametrize("changes", [{"attention": "none"}, {"order": "spiral"}, {"head": "gan"}, {"attention": 1}])
def test_an_unknown_attention_order_or_head_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_dict({**TINY.to_dict(), **changes}, "here")
    assert "must be one of" in one_sentence(caught)


@pytest.mark.parametrize(
    "changes", [{"codebook_size": 8}, {"codebook_size": 1}, {"head": "vq"}, {"head": "vq", "codebook_size": 1}]
)
def test_a_codebook_size_requires_a_vq_head(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="2 or more for the head vq") as caught:
        ModelConfig.from_dict({**TINY.to_dict(), **changes}, "here")
    one_sentence(caught)
