"""Runs of a tokenizer's training: resuming, their tokenizer file, and wrong use."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.decomposition import PCA

from runtime.errors import CheckpointError, ConfigError, MarError
from runtime.model.latents import from_uint8
from tests.helpers.command_line import Mar
from tests.helpers.tiny_runs import (
    TINY_VAE,
    one_sentence,
    tiny_tokenizer,
    tiny_training,
    write_idx_dataset,
)
from training.checkpoints.checkpoint import load_checkpoint, save_vae, save_weights
from training.checkpoints.published_files import load_vae
from training.config import RunConfig
from training.data.datasets import open_dataset, to_rgb
from training.data.latent_cache import CachedLatents, LatentEncoder, cache_latents
from training.loop.mar_trainer import MarTrainer
from training.models.autoencoder import LATENT_SCALE, AutoencoderKL
from training.models.model_sizes import model_config
from training.tokenizer.config import read_vae
from training.tokenizer.trainer import TokenizerTrainer

_SIZE = 16


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_idx_dataset(tmp_path_factory.mktemp("noise") / "data", side=_SIZE)


def test_a_resumed_run_ends_with_the_same_weights(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The run stops before the discriminator takes part, so that the state of its optimizer is resumed too."""
    TokenizerTrainer.start(tmp_path / "uninterrupted", tiny_tokenizer(data, 4)).train()
    TokenizerTrainer.start(tmp_path / "resumed", tiny_tokenizer(data, 1)).train()
    TokenizerTrainer.resume(tmp_path / "resumed", changes={"steps": 4}).train()
    files = [load_file(tmp_path / run / "training-state.safetensors") for run in ("uninterrupted", "resumed")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])
    vaes = [load_vae(tmp_path / run / "tokenizer.safetensors") for run in ("uninterrupted", "resumed")]
    assert vaes[0].latent_scale == vaes[1].latent_scale
    log = [json.loads(line) for line in (tmp_path / "resumed" / "log.jsonl").read_text().splitlines()]
    steps = {entry["step"]: entry for entry in log if "loss" in entry}
    assert [step for step in steps if "adaptive_weight" in steps[step]] == [3, 4]
    assert any("psnr" in entry.get("metrics", {}) for entry in log)
    assert (tmp_path / "uninterrupted" / "samples" / "step-000004.png").is_file()


def test_the_latents_of_a_trained_tokenizer_have_unit_variance(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The scale passes from the run to a latent cache, to a MAR trained on it, and to its checkpoint."""
    TokenizerTrainer.start(tmp_path / "run", tiny_tokenizer(data, 2)).train()
    vae, dataset = load_vae(tmp_path / "run" / "tokenizer.safetensors"), to_rgb(open_dataset(data, _SIZE))
    assert vae.latent_scale != LATENT_SCALE
    cpu = torch.device("cpu")
    cache_latents(dataset, LatentEncoder(vae, "it", _SIZE, 4, cpu), tmp_path / "cache", lambda done: None, print)
    cached = CachedLatents(tmp_path / "cache", _SIZE)
    stream = np.random.default_rng(0)
    latents = np.stack([cached.latent(n, False, stream) for n in range(len(cached.labels)) for _ in range(20)])
    assert latents.std() == pytest.approx(1, abs=0.02)
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


def test_the_groups_of_normalizations_are_saved_with_a_tokenizer(tmp_path: pathlib.Path) -> None:
    file, vae = tmp_path / "kl.safetensors", AutoencoderKL(read_vae({**TINY_VAE, "norm_groups": 8}, "test"))
    save_vae(file, vae)
    assert load_vae(file).config == vae.config
    save_weights(file, vae.state_dict(), {"norm_groups": "-8"})
    with pytest.raises(CheckpointError, match="norm_groups must be a positive whole number, found '-8'") as caught:
        load_vae(file)
    one_sentence(caught)


def test_a_run_begins_with_the_best_linear_autoencoder(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Its reconstructions are those of scikit-learn's PCA; its latents have a mean variance of 1."""
    model = read_vae({**TINY_VAE, "linear_path": True, "latent_channels": 5}, "test")
    trainer = TokenizerTrainer.start(tmp_path / "run", dataclasses.replace(tiny_tokenizer(data, 1), model=model))
    images = trainer.dataset.image_dataset.images(np.arange(len(trainer.dataset.labels)))
    pixels = torch.from_numpy(from_uint8(images))
    patches = torch.nn.functional.pixel_unshuffle(pixels, 2).permute(0, 2, 3, 1).flatten(0, 2).double().numpy()
    kept = PCA(5).fit(patches)
    expected = kept.inverse_transform(kept.transform(patches))
    for vae in (trainer.train_step.averaged_model(), trainer.train_step.model.vae):
        with torch.no_grad():
            latents = vae.encode(pixels)
            decoded = vae.decode(latents)
        actual = torch.nn.functional.pixel_unshuffle(decoded, 2).permute(0, 2, 3, 1).flatten(0, 2).numpy()
        np.testing.assert_allclose(actual, expected, atol=1e-4)
        variances = (latents / vae.latent_scale).var(dim=(0, 2, 3))
        assert variances.mean().item() == pytest.approx(1, rel=0.01)


def test_a_run_begins_with_the_weights_of_another(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    TokenizerTrainer.start(tmp_path / "first", tiny_tokenizer(data, 1)).train()
    file = tmp_path / "first" / "tokenizer.safetensors"
    second = TokenizerTrainer.start(tmp_path / "second", tiny_tokenizer(data, 1, init=str(file), seed=1))
    expected = load_vae(file).state_dict()
    for vae in (second.train_step.averaged_model(), second.train_step.model.vae):
        assert all(torch.equal(weight, expected[name]) for name, weight in vae.state_dict().items())
    model = read_vae({**TINY_VAE, "blocks": 2}, "test")
    other = dataclasses.replace(tiny_tokenizer(data, 1, init=str(file)), model=model)
    with pytest.raises(CheckpointError, match=r"tokenizer\.safetensors: expected an autoencoder of") as caught:
        TokenizerTrainer.start(tmp_path / "third", other)
    one_sentence(caught)


def test_a_decoder_alone_is_trained_for_latents_that_stay(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match="decoder_only needs init"):
        tiny_tokenizer(data, 1, decoder_only=True)
    first = tmp_path / "first" / "tokenizer.safetensors"
    TokenizerTrainer.start(tmp_path / "first", tiny_tokenizer(data, 1)).train()
    vae = load_vae(first)
    vae.latent_scale, vae.scale_source = 0.5, "this test"
    save_vae(first, vae)
    other_images = write_idx_dataset(tmp_path / "data", images=8, side=16)
    config = tiny_tokenizer(other_images, 2, init=str(first), decoder_only=True, seed=1)
    TokenizerTrainer.start(tmp_path / "second", config).train()
    first.unlink()
    TokenizerTrainer.resume(tmp_path / "second", changes={"steps": 4}).train()
    trained, images = load_vae(tmp_path / "second" / "tokenizer.safetensors"), torch.rand(2, 3, 16, 16)
    assert (trained.latent_scale, trained.scale_source) == (0.5, "this test")
    assert torch.equal(vae.moments(images), trained.moments(images))
    latents = vae.encode(images)
    assert not torch.allclose(vae.decode(latents), trained.decode(latents))


@pytest.mark.parametrize("scale", ["0", "-1", "inf", "nan", "much"])
def test_an_invalid_scale_is_refused(tmp_path: pathlib.Path, scale: str) -> None:
    save_weights(
        tmp_path / "kl.safetensors", AutoencoderKL(read_vae(TINY_VAE, "")).state_dict(), {"latent_scale": scale}
    )
    with pytest.raises(CheckpointError, match="latent_scale") as caught:
        load_vae(tmp_path / "kl.safetensors")
    one_sentence(caught)


def test_a_finished_run_prints_how_its_tokenizer_is_used(data: pathlib.Path, tmp_path: pathlib.Path, mar: Mar) -> None:
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


def test_a_run_is_not_started_twice_nor_resumed_with_another_config(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    TokenizerTrainer.start(tmp_path / "run", tiny_tokenizer(data, 2))
    with pytest.raises(MarError, match="--resume"):
        TokenizerTrainer.start(tmp_path / "run", tiny_tokenizer(data, 2))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps({**config, "model": {"img_size": 16}}))
    with pytest.raises(CheckpointError, match="not the config of a run of mar train-tokenizer"):
        TokenizerTrainer.resume(tmp_path / "run")
    with pytest.raises(ConfigError, match="batch of 100"):
        TokenizerTrainer.start(tmp_path / "big", dataclasses.replace(tiny_tokenizer(data, 2, batch_size=100)))
