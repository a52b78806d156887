"""The surfaces that are fuzzed: what is read, from which files, and what a right result is.

A surface is made once in a folder. Its files are then changed one at a time, and it is read after every change. Reading
returns what a user would get, as bytes.
"""

from __future__ import annotations

import functools
import json
import pathlib
import shutil
import tempfile

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from PIL import Image
from torch import nn

from calibration.quantization.statistics import ActivationStatistics, LayerStatistics
from mar_export.artifact.export import export_artifact
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import MANIFEST
from runtime.artifact.signatures import sign, verify_signature
from runtime.cli.generate import _read_array
from runtime.model.config import LATER_FIELDS
from runtime.requests.validation import check_noise, check_order
from runtime.sampling.settings import Sampling
from runtime.storage.stored_files import save_arrays
from tests.fuzz.image_surfaces import IMAGE_SURFACES
from tests.fuzz.surface import Surface, WrongResultError, digest
from tests.helpers.published_forms import (
    CONFIG,
    VAE,
    vae_weights,
    write_component,
    write_pipeline,
    write_pth,
    write_safetensors,
)
from tests.helpers.published_forms import mar_weights as published_weights
from tests.helpers.tiny_runs import TINY, start, write_idx_dataset
from training.checkpoints.checkpoint import Checkpoint, load_checkpoint
from training.checkpoints.published_files import load_vae
from training.cli.cache_latents import cache as cache_latents
from training.cli.train import train
from training.data.latent_cache import CachedLatents
from training.evaluation import generate_images, real_statistics
from training.evaluation.generate_images import GenerationJob, read_images
from training.loop.mar_trainer import MarTrainer
from training.loop.state import load_state
from training.models.mar import MAR
from training.reporting.run_comparison import difference_table, find_runs, summarize, summary_table

_SIDE = 16  # of the images of the latent cache
_KEY = {"network": "tiny"}  # of the statistics of real images


def _module(module: nn.Module) -> bytes:
    return digest(*(part for item in sorted(module.state_dict().items()) for part in item))


def _make_run(folder: pathlib.Path) -> None:
    start(folder / "run", write_idx_dataset(folder / "data"), 4).train()


def _read_runs(folder: pathlib.Path) -> bytes:
    runs = [summarize(run) for run in find_runs([folder / "run"])]
    return digest(summary_table(runs), difference_table([*runs, *runs]))


def _read_run(folder: pathlib.Path) -> bytes:
    return _module(load_checkpoint(folder / "run").model)


def _read_state(folder: pathlib.Path) -> bytes:
    train_step = MarTrainer.resume(folder / "run", changes={}).train_step
    step = load_state(folder / "run", train_step)
    return digest(step) + _module(train_step.model)


@functools.cache
def _exported() -> tempfile.TemporaryDirectory[str]:
    """A folder with the artifact of a tiny model with random weights, made once in a process."""
    folder = tempfile.TemporaryDirectory()
    torch.manual_seed(0)
    checkpoint = Checkpoint(MAR(**TINY.to_dict()).eval(), "pixel", ("a", "b", "c"), "random weights", "0" * 64)
    sampling = Sampling(iterations=2, diffusion_steps=2)
    export_artifact(checkpoint, pathlib.Path(folder.name, "artifact"), lambda text: None, sampling)
    return folder


def export(folder: pathlib.Path) -> None:
    """Put an artifact of a tiny model into a folder, as `artifact`."""
    shutil.copytree(pathlib.Path(_exported().name, "artifact"), folder / "artifact")


def _read_manifest(folder: pathlib.Path) -> bytes:
    """A manifest that is accepted says what its file says; 0 and 0.0 are one number."""
    artifact = Artifact(folder / "artifact")
    artifact.verify()
    understood = json.loads(json.dumps(artifact.manifest.to_dict()), parse_int=float)
    written = json.loads((folder / "artifact" / MANIFEST).read_bytes(), parse_int=float)
    for later in LATER_FIELDS & understood["model"].keys():
        written["model"].setdefault(later, understood["model"][later])
    if json.dumps(understood, sort_keys=True) != json.dumps(written, sort_keys=True):
        raise WrongResultError("the manifest says something else than its file")
    return digest(understood)


def _read_engines(folder: pathlib.Path) -> bytes:
    artifact = Artifact(folder / "artifact")
    artifact.verify()
    contents = []
    for name in artifact.manifest.engines:
        with artifact.verified_graph(name) as graph:
            contents.append(pathlib.Path(graph.source).read_bytes())
    return digest(contents)


def _make_signature(folder: pathlib.Path) -> None:
    export(folder)
    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "pub.pem").write_bytes(public)
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    sign(Artifact(folder / "artifact"), folder / "key.pem")


def _read_signature(folder: pathlib.Path) -> bytes:
    return verify_signature(Artifact(folder / "artifact"), [folder / "pub.pem"]).encode()


def _job(folder: pathlib.Path) -> GenerationJob:
    return GenerationJob(folder / "artifact", 3, (("iterations", 2), ("diffusion_steps", 2)))


def _make_images(folder: pathlib.Path) -> None:
    export(folder)
    generate_images._IMAGES_PER_FILE = 6
    generate_images.generate_images(_job(folder), 12, folder / "out", 1, 1, lambda done: None)


def _read_images(folder: pathlib.Path) -> bytes:
    generate_images._IMAGES_PER_FILE = 6
    return digest(*(part for batch in read_images(_job(folder), 12, folder / "out") for part in batch))


def _make_real_statistics(folder: pathlib.Path) -> None:
    random = np.random.default_rng(0)
    arrays = {"mean": random.random(5), "covariance": random.random((5, 5)), "sample": random.random((7, 5))}
    header = real_statistics._Header(_KEY, 7, 0.5, None)
    save_arrays(folder / "statistics.npz", header, arrays)


def _read_real_statistics(folder: pathlib.Path) -> bytes:
    found = real_statistics._load(folder / "statistics.npz", _KEY)
    moments, numbers = found.moments, (found.images, found.top1_accuracy, found.inception_score)
    return digest(moments.mean, moments.covariance, found.sample, numbers)


def _make_cache(folder: pathlib.Path) -> None:
    random = np.random.default_rng(0)
    for number in range(6):
        file = folder / "data" / "abc"[number % 3] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8)).save(file)
    tokenizer = write_safetensors(folder / "kl.safetensors", vae_weights(VAE))
    arguments = ["--data", folder / "data", "--tokenizer", tokenizer, "--out", folder / "cache", "--image-size", _SIDE]
    cache_latents([*map(str, arguments), "--batch-size", "3"], standalone_mode=False)


def _read_cache(folder: pathlib.Path) -> bytes:
    cache = CachedLatents(folder / "cache", _SIDE)
    latents = [cache.latent(number, False, np.random.default_rng(0)) for number in range(len(cache.labels))]
    names = [cache.name(number) for number in range(len(cache.labels))]
    return digest(cache.labels, *latents, names, cache.classes)


def _make_requests(folder: pathlib.Path) -> None:
    random = np.random.default_rng(0)
    order = random.permuted(np.tile(np.arange(TINY.tokens), (2, 1)), axis=1)
    noise = random.standard_normal((3, 2, TINY.tokens, TINY.token_channels), np.float32)
    np.savez(folder / "order.npz", generation_order=order)
    np.savez_compressed(folder / "noise.npz", noise=noise)


def _read_requests(folder: pathlib.Path) -> bytes:
    order, noise = _read_array(folder / "order.npz", "generation_order"), _read_array(folder / "noise.npz", "noise")
    assert order is not None
    assert noise is not None
    checked_order, checked_noise = check_order(order, 2, TINY), check_noise(noise, 2, 2, TINY)
    if not np.array_equal(np.sort(checked_order), np.tile(np.arange(TINY.tokens), (2, 1))):
        raise WrongResultError("the order is no order")
    if not np.isfinite(checked_noise).all():
        raise WrongResultError("the noise is not finite")
    return digest(checked_order, checked_noise)


def _make_published(folder: pathlib.Path) -> None:
    write_pth(folder / "checkpoint-last.pth", published_weights())
    (folder / "heads.json").write_text(json.dumps({"encoder_num_heads": 3, "decoder_num_heads": 8}))


def _read_published(folder: pathlib.Path) -> bytes:
    return _module(load_checkpoint(folder / "checkpoint-last.pth", folder / "heads.json").model)


def _make_autoencoder(folder: pathlib.Path) -> None:
    write_safetensors(folder / "kl.safetensors", vae_weights(VAE))
    torch.save({"model": vae_weights(VAE)}, folder / "kl.pth")


def _read_autoencoder(folder: pathlib.Path) -> bytes:
    return _module(load_vae(folder / "kl.safetensors")) + _module(load_vae(folder / "kl.pth"))


def _make_diffusers(folder: pathlib.Path) -> None:
    """A pipeline whose model is in shards."""
    pipeline = write_pipeline(folder / "pipeline", "mar")
    shutil.rmtree(pipeline / "mar")
    write_component(pipeline / "transformer", published_weights(), CONFIG.to_dict(), shards=2)


def _read_diffusers(folder: pathlib.Path) -> bytes:
    loaded = load_checkpoint(folder / "pipeline")
    return _module(loaded.model)


def _make_toml(folder: pathlib.Path) -> None:
    (folder / "run.toml").write_text(
        'data = "images"\n\n[model]\nname = "pixel_small"\nbuffer_size = 3\nmlp_ratio = 4.0\n\n[training]\nsteps = 20\n'
        'learning_rate = 1e-4\nprecision = "bf16"\nema_rate = 0.999\nseed = 3\n'
    )


def _read_toml(folder: pathlib.Path) -> bytes:
    train(["--config", str(folder / "run.toml"), "--print-config"], standalone_mode=False)
    return b""


def _make_calibration(folder: pathlib.Path) -> None:
    layer, random = LayerStatistics(4, 2, 3), np.random.default_rng(0)
    layer.update(random.standard_normal((9, 4)).astype(np.float32), 0, range(2), random)
    statistics = ActivationStatistics("0" * 64, {"iterations": 2}, (1.0, 2.0), {"a": layer}, 3)
    statistics.save(folder / "statistics.npz")


def _read_calibration(folder: pathlib.Path) -> bytes:
    found = ActivationStatistics.load(folder / "statistics.npz")
    layers = [part for name, layer in found.layers.items() for part in (name, *vars(layer).values())]
    return digest(found.artifact, dict(found.sampling), found.timesteps, found.images, *layers)


SURFACES: dict[str, Surface] = {
    "runs": Surface(_make_run, ("run/config.json", "run/log.jsonl", "run/environment.json"), _read_runs),
    "evaluation images": Surface(_make_images, ("out/*/*.npz",), _read_images, exact=True),
    "evaluation statistics": Surface(_make_real_statistics, ("*.npz",), _read_real_statistics, exact=True),
    "latent cache": Surface(_make_cache, ("cache/*",), _read_cache, exact=True),
    "order and noise": Surface(_make_requests, ("*.npz",), _read_requests),
    "published checkpoint": Surface(_make_published, ("*",), _read_published),
    "TOML config": Surface(_make_toml, ("*.toml",), _read_toml),
    "calibration statistics": Surface(_make_calibration, ("*.npz",), _read_calibration, exact=True),
    "training state": Surface(_make_run, ("run/training-state.safetensors",), _read_state, exact=True),
    "run weights": Surface(_make_run, ("run/model.safetensors",), _read_run, exact=True),
    "run config": Surface(_make_run, ("run/config.json",), _read_run),
    "autoencoder": Surface(_make_autoencoder, ("*",), _read_autoencoder),
    "diffusers folder": Surface(_make_diffusers, ("pipeline/**/*.*",), _read_diffusers),
    "manifest": Surface(export, ("artifact/manifest.json",), _read_manifest),
    "engines": Surface(export, ("artifact/*.onnx",), _read_engines, exact=True),
    "signature": Surface(_make_signature, ("artifact/manifest.*", "pub.pem"), _read_signature, exact=True),
    **IMAGE_SURFACES,
}
"""The surfaces whose inputs are files, by name."""
