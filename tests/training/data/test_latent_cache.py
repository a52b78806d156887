"""Cached latents: they are what the autoencoder says, they survive being stopped, and a model trains on them."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from runtime.errors import DataError, MarError, RequestError
from runtime.model.config import ModelConfig
from runtime.model.latents import from_uint8
from runtime.storage.files import sha256
from tests.helpers.published_forms import VAE, vae_weights, write_safetensors
from tests.helpers.tiny_runs import TINY, logged, one_sentence, one_thread, tiny_training
from training.checkpoints.checkpoint import load_checkpoint, save_vae, save_weights
from training.checkpoints.published_files import load_vae
from training.checkpoints.tensor_files import read_safetensors
from training.cli.cache_latents import cache as command
from training.config import RunConfig
from training.data import latent_cache
from training.data.datasets import open_dataset, to_rgb
from training.data.latent_cache import CachedLatents, LatentEncoder, cache_latents
from training.loop.mar_trainer import MarTrainer
from training.models.autoencoder import LATENT_SCALE

_SIZE, _STRIDE, _CHANNELS = 16, 4, 4
MODEL = ModelConfig(
    **{**TINY.to_dict(), "img_size": _SIZE, "vae_stride": _STRIDE, "patch_size": 2, "vae_embed_dim": _CHANNELS}
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_safetensors(tmp_path_factory.mktemp("tokenizer") / "kl.safetensors", vae_weights(VAE))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Seven images of three classes, and one that is none."""
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for number in range(8):
        file = folder / "abc"[number % 3] / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (_SIZE, _SIZE, 3), dtype=np.uint8)).save(file)
    (folder / "b" / "4.png").write_text("torn")
    return folder


def _make(data: pathlib.Path, tokenizer: pathlib.Path, out: pathlib.Path, *options: str) -> str:
    arguments = ["--data", data, "--tokenizer", tokenizer, "--out", out, "--image-size", _SIZE, "--batch-size", 3]
    done = CliRunner().invoke(command, [*map(str, arguments), *options], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


@pytest.fixture(scope="module")
def cached(data: pathlib.Path, tokenizer: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Made by the command, three images a file. Read only."""
    out = tmp_path_factory.mktemp("made") / "cache"
    with one_thread(), pytest.MonkeyPatch.context() as patched:
        patched.setattr(latent_cache, "_FILE_BYTES", 3 * 2 * 2 * _CHANNELS * (_SIZE // _STRIDE) ** 2 * 4)
        output = _make(data, tokenizer, out)
    assert f"{data / 'b' / '4.png'}: not a readable image" in output
    assert "the latents of 7 images of 3 classes and of their mirror images, 1 left out" in output
    return out


def test_a_cache_is_a_few_files_and_an_index(cached: pathlib.Path) -> None:
    names = sorted(path.name for path in cached.iterdir())
    assert names == [
        "index.json",
        *(f"latents-0000{number}.safetensors" for number in range(3)),
        "tokenizer.safetensors",
    ]
    index = json.loads((cached / "index.json").read_text())
    assert [file["images"] for file in index["files"]] == [3, 2, 2]
    assert len(index["left_out"]) == 1


@pytest.mark.parametrize("flip", [False, True])
def test_latents_are_samples_of_the_distribution_of_the_image_or_its_mirror(
    cached: pathlib.Path, data: pathlib.Path, tokenizer: pathlib.Path, flip: bool
) -> None:
    source, vae = CachedLatents(cached, _SIZE), load_vae(tokenizer)
    for index in range(7):
        name = pathlib.Path(source.name(index))
        image = np.asarray(Image.open(name))[None]
        pixels = torch.from_numpy(from_uint8(image[:, :, ::-1] if flip else image))
        mean, log_variance = (part.numpy()[0] for part in vae.moments(pixels).chunk(2, dim=1))
        drawn = np.random.default_rng(index).standard_normal(mean.shape, np.float32)
        expected = (mean + np.exp(0.5 * log_variance) * drawn) * LATENT_SCALE
        actual = source.latent(index, flip, np.random.default_rng(index))
        assert actual.dtype == np.float32
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)  # other batches, other sums
        assert source.classes[source.labels[index]] == name.parent.name


def test_a_model_trains_on_a_cache_and_its_run_has_all_that_an_export_needs(
    cached: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = tmp_path / "run"
    MarTrainer.start(run, RunConfig(str(cached), MODEL, tiny_training(3))).train()
    assert sorted(logged(run, "loss")) == [1, 2, 3]
    assert (run / "samples" / "step-000003.png").is_file()
    loaded = load_checkpoint(run)
    assert loaded.tokenizer == "kl"
    assert loaded.vae is not None
    assert (loaded.class_names, loaded.model.config) == (("a", "b", "c"), MODEL)


def test_a_cache_without_mirror_images_is_half_as_large_and_trains_without_flips(
    cached: pathlib.Path, data: pathlib.Path, tokenizer: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "cache"
    assert "the latents of 7 images of 3 classes, 1 left out" in _make(data, tokenizer, out, "--no-mirror")
    straight, both = CachedLatents(out, _SIZE), CachedLatents(cached, _SIZE)
    for index in range(7):
        ours, theirs = (each.latent(index, False, np.random.default_rng(index)) for each in (straight, both))
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)  # other batches, other sums
    training = tiny_training(2)
    with pytest.raises(DataError, match="without mirror images, which flip needs"):
        MarTrainer.start(tmp_path / "run", RunConfig(str(out), MODEL, dataclasses.replace(training, flip=True)))
    MarTrainer.start(tmp_path / "run", RunConfig(str(out), MODEL, dataclasses.replace(training, flip=False))).train()
    with pytest.raises(RequestError, match="holds latents of other images or settings"):
        _resume_mirrored(data, tokenizer, out)


def _resume_mirrored(data: pathlib.Path, tokenizer: pathlib.Path, out: pathlib.Path) -> None:
    dataset = to_rgb(open_dataset(data, _SIZE))
    encoder = LatentEncoder(load_vae(tokenizer), sha256(tokenizer), _SIZE, 3, torch.device("cpu"))
    cache_latents(dataset, encoder, out, lambda done: None, print)


def test_an_interrupted_cache_resumes_to_the_same_files(
    cached: pathlib.Path,
    data: pathlib.Path,
    tokenizer: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "cache"
    monkeypatch.setattr(latent_cache, "_FILE_BYTES", 3 * 2 * 2 * _CHANNELS * (_SIZE // _STRIDE) ** 2 * 4)

    def stop(done: int, seen: list[int] = []) -> None:  # noqa: B006 counts
        seen.append(done)
        if sum(seen) > 3:
            raise KeyboardInterrupt

    digest = json.loads((cached / "index.json").read_text())["tokenizer"]
    vae, dataset = load_vae(tokenizer), open_dataset(data, _SIZE)
    with pytest.raises(KeyboardInterrupt):
        cache_latents(
            dataset, LatentEncoder(vae, digest, _SIZE, 3, torch.device("cpu")), out, stop, lambda warning: None
        )
    with pytest.raises(DataError, match=r"only 3 of 8 images.*mar cache-latents") as caught:
        CachedLatents(out, _SIZE)
    one_sentence(caught)
    before = (out / "latents-00000.safetensors").stat().st_mtime_ns
    _make(data, tokenizer, out)
    assert (out / "latents-00000.safetensors").stat().st_mtime_ns == before
    for file in cached.iterdir():
        assert (out / file.name).read_bytes() == file.read_bytes()


def test_a_cache_of_other_latents_is_not_resumed(
    cached: pathlib.Path, data: pathlib.Path, tokenizer: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    for option in (("--image-size", "8"), ("--background", "black")):
        with pytest.raises(RequestError, match="latents of other images or settings"):
            _make(data, tokenizer, cached, *option)
    other = pathlib.Path(shutil.copytree(data, tmp_path / "other"))
    (other / "a" / "0.png").rename(other / "a" / "00.png")
    with pytest.raises(RequestError, match="latents of other images or settings"):
        _make(other, tokenizer, cached)
    (other / "a").rename(other / "z")
    with pytest.raises(DataError, match=r"has the classes b, c, z, but .*cache has a, b, c"):
        _make(other, tokenizer, cached)


def test_images_with_names_of_any_bytes_are_cached(tokenizer: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Each name stays with its image, and the cache is read again."""
    names = sorted(os.fsdecode(name) for name in (b"caf\xe9.png", b"a\nb.png", b"c.png"))
    for number, name in enumerate(names):
        file = tmp_path / "data" / os.fsdecode(b"tea\xff") / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as stream:
            Image.new("RGB", (_SIZE, _SIZE), (100 * number, 0, 0)).save(stream, "PNG")
    output = _make(tmp_path / "data", tokenizer, tmp_path / "cache")
    assert "3 images of 1 class: tea\\xff 3" in output
    cached = CachedLatents(tmp_path / "cache", _SIZE)
    assert cached.classes == ("tea\\xff",)
    escaped = {"a\nb.png": "a\\nb.png", os.fsdecode(b"caf\xe9.png"): "caf\\xe9.png"}
    assert [cached.name(index).split("/")[-1] for index in range(3)] == [escaped.get(name, name) for name in names]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("index.json", b"{}"),
        ("index.json", b"torn"),
        ("index.json", b'{"format": 2}'),
        ("index.json", b'{"format": 1, "sizes": 3}'),
        ("latents-00001.safetensors", b""),
        ("latents-00001.safetensors", b"torn" * 100),
        ("latents-00001.safetensors", None),
    ],
)
def test_the_error_about_a_damaged_cache_names_the_file(
    cached: pathlib.Path, tmp_path: pathlib.Path, file: str, content: bytes | None
) -> None:
    copy = pathlib.Path(shutil.copytree(cached, tmp_path / "cache"))
    (copy / file).unlink()
    if content is not None:
        (copy / file).write_bytes(content)
    with pytest.raises(DataError) as caught:
        CachedLatents(copy, _SIZE)
    assert str(copy / file) in one_sentence(caught)


def _swap(cache: pathlib.Path) -> None:
    one, two = cache / "latents-00001.safetensors", cache / "latents-00002.safetensors"
    kept = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(kept)


def _alter_index(cache: pathlib.Path) -> None:
    index = json.loads((cache / "index.json").read_text())
    index["classes"].reverse()
    (cache / "index.json").write_text(json.dumps(index))


def _flip_a_bit(cache: pathlib.Path) -> None:
    file = cache / "latents-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 1]))


def _other_tokenizer(cache: pathlib.Path) -> None:
    save_vae(
        cache / "tokenizer.safetensors", load_vae(write_safetensors(cache / "other.safetensors", vae_weights(VAE)))
    )
    file = cache / "tokenizer.safetensors"
    save_weights(file, read_safetensors(file), {"latent_scale": "0.5"})


@pytest.mark.parametrize("alter", [_swap, _alter_index, _flip_a_bit, _other_tokenizer])
def test_an_altered_cache_is_refused_and_says_what_to_remove(
    cached: pathlib.Path, data: pathlib.Path, tokenizer: pathlib.Path, tmp_path: pathlib.Path, alter: Any
) -> None:
    copy = pathlib.Path(shutil.copytree(cached, tmp_path / "cache"))
    alter(copy)
    with pytest.raises(DataError, match=r"altered.*remove the cache and run mar cache-latents again") as caught:
        CachedLatents(copy, _SIZE)
    one_sentence(caught)
    with pytest.raises(DataError, match="altered"):
        _make(data, tokenizer, copy)


@pytest.mark.parametrize(("field", "value"), [("img_size", 32), ("vae_stride", 8), ("vae_stride", 1)])
def test_a_model_that_a_cache_does_not_fit_is_refused(
    cached: pathlib.Path, tmp_path: pathlib.Path, field: str, value: int
) -> None:
    model = ModelConfig(**{**MODEL.to_dict(), field: value})
    with pytest.raises(MarError) as caught:
        MarTrainer.start(tmp_path / "run", RunConfig(str(cached), model, tiny_training(1)))
    assert str(cached) in one_sentence(caught)
    assert not (tmp_path / "run").exists()
