"""Generation of thousands of images into files by several processes, which can be stopped and resumed.

An image depends on the seed and its index only. It is always generated in the same batch as the same other images, so
that it is identical to the last bit. The folder of the images is named by a hash of everything that they depend on:
a second evaluation of the same images finds and reads them.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from runtime.artifact.artifact_folder import Artifact, is_artifact
from runtime.backends import available_threads
from runtime.errors import DataError, RequestError
from runtime.files import write_json
from runtime.generator import Generator
from runtime.model.config import ModelConfig
from runtime.model.latents import to_uint8
from runtime.sampling.constraints import default_sampling
from runtime.sampling.plan import build_plan
from runtime.sampling.presets import resolve_sampling
from runtime.sampling.rng import seeded_noise, seeded_order
from runtime.sampling.settings import Sampling
from runtime.stored_files import load_arrays, save_arrays
from runtime.structured_files import FaultReport, shape_fits
from training.checkpoints.checkpoint import Checkpoint, load_checkpoint
from training.evaluation.feature_networks import LabelledBatch
from training.evaluation.worker_processes import run_in_processes
from training.models.autoencoder import AutoencoderKL
from training.models.reference_loop import sample

_IMAGES_PER_FILE = 50  # which is also the batch that is generated together
_FORMAT = 2

_GenerateBatch = Callable[[NDArray[np.int64], range], NDArray[np.uint8]]  # labels [B], indices -> [B, H, W, c]


@dataclasses.dataclass(frozen=True)
class GenerationJob:
    """A model and the settings to generate images with.

    Attributes:
        source: The folder of an artifact, or a checkpoint, which eager PyTorch runs on the CPU.
        seed: The seed of the token orders and of the noise.
        settings: The preset and the sampling settings of a request, as pairs of name and value.
        backend: For an artifact: arguments of `Generator.load`, as pairs of name and value.
        checkpoint: For a checkpoint: arguments of `load_checkpoint`, as pairs of name and value.
    """

    source: pathlib.Path
    seed: int
    settings: tuple[tuple[str, Any], ...]
    backend: tuple[tuple[str, Any], ...] = ()
    checkpoint: tuple[tuple[str, Any], ...] = ()

    @functools.cached_property
    def resolved(self) -> ResolvedJob:
        """The model and the complete settings of this job.

        Raises:
            RequestError: The settings are invalid, or the model has no decoder.
        """
        inputs: dict[str, Any]
        warnings: tuple[str, ...] = ()
        if is_artifact(self.source):
            manifest = Artifact(self.source).manifest
            names = manifest.class_names
            config, tokenizer, sampling = (
                manifest.model,
                manifest.tokenizer,
                manifest.resolve_sampling(dict(self.settings)),
            )
            files = {name: file.sha256 for name, file in sorted(manifest.files.items())}
            inputs = {"files": files, **dict(self.backend)}
        else:
            loaded = _load_checkpoint(self)
            warnings = loaded.warnings
            config, tokenizer, names = loaded.model.config, loaded.tokenizer, loaded.class_names
            sampling = resolve_sampling(default_sampling(config), config, dict(self.settings))
            vae = None if loaded.vae is None else _vae_sha256(loaded.vae)
            inputs = {"checkpoint": loaded.sha256, "vae": vae, "torch": torch.__version__}
        if tokenizer == "none":
            raise RequestError(f"{self.source} has no decoder, so it makes no images to evaluate; see --tokenizer")
        build_plan(config.tokens, sampling)  # refuses invalid settings before the work
        inputs |= {"model": config.to_dict(), "tokenizer": tokenizer, "sampling": dataclasses.asdict(sampling)}
        return ResolvedJob(config, names, sampling, {"seed": self.seed, **inputs}, warnings)


@dataclasses.dataclass(frozen=True)
class _Header:
    """What a file of images holds beside arrays: the name of its folder, and the index of its first image."""

    folder: str
    start: int


@dataclasses.dataclass(frozen=True)
class ResolvedJob:
    """What a `GenerationJob` means for its model.

    Attributes:
        config: The shape of the model.
        class_names: The names of its classes, or none.
        sampling: The complete sampling settings.
        inputs: Everything that the images depend on, as a JSON value; two jobs with equal inputs make equal images.
        warnings: What a person should know about the files of a checkpoint, one line each.
    """

    config: ModelConfig
    class_names: tuple[str, ...]
    sampling: Sampling
    inputs: dict[str, Any]
    warnings: tuple[str, ...] = ()


def generate_images(
    job: GenerationJob,
    count: int,
    out: pathlib.Path,
    processes: int,
    threads: int | None,
    progress: Callable[[int], None],
    resumed: Callable[[int], None] = lambda images: None,
) -> None:
    """Generate those of the images 0..count - 1 that are not in `out` yet; image i has class i % classes.

    Args:
        job: The model and the settings.
        count: The number of images.
        out: The folder with the images of all jobs.
        processes: The number of processes.
        threads: The CPU threads of all processes together; None for all threads of this machine.
        progress: Is called with a number of images whenever so many more are in `out`.
        resumed: Is called once with the number of images that are in `out` already.

    Raises:
        RequestError: The settings are invalid, or the model has no decoder.
        BackendError: A process ended before its work was done.
    """
    folder = _folder(job, out)
    write_json(folder / "inputs.json", job.resolved.inputs)
    missing = [start for start in range(0, count, _IMAGES_PER_FILE) if not _file(folder, start).exists()]
    resumed(count - sum(min(_IMAGES_PER_FILE, count - start) for start in missing))
    threads_each = max(1, (threads or available_threads()) // processes)
    task = functools.partial(_generate_file, job, folder, threads_each)
    if processes == 1:
        for start in missing:
            task(start)
            progress(min(_IMAGES_PER_FILE, count - start))
    else:
        run_in_processes(task, missing, processes, lambda start, _: progress(min(_IMAGES_PER_FILE, count - start)))


def read_images(job: GenerationJob, count: int, out: pathlib.Path) -> Iterator[LabelledBatch]:
    """Yield the images 0..count - 1 that `generate_images` has put into `out`, with their classes.

    Raises:
        DataError: A file is missing, damaged, or was altered.
    """
    fault_report = FaultReport(DataError, "remove the file to generate its images again")
    folder, side = _folder(job, out), job.resolved.config.img_size
    for start in range(0, count, _IMAGES_PER_FILE):
        file = _file(folder, start)
        header, arrays = load_arrays(file, _Header, fault_report)
        images, labels = (arrays.get(name, np.empty(0)) for name in ("images", "labels"))
        expected = class_labels(job, start + _IMAGES_PER_FILE)[start:]
        fits = images.dtype == np.uint8 and shape_fits(images.shape, (len(expected), side, side, None))
        if header != _Header(folder.name, start) or not fits or not np.array_equal(labels, expected):
            fault_report.raise_(file, "not the images of this evaluation")
        yield images[: count - start], labels[: count - start]


def class_labels(job: GenerationJob, count: int) -> NDArray[np.int64]:
    """The classes of the images 0..count - 1 of `job`, int64 [count]."""
    return np.arange(count, dtype=np.int64) % job.resolved.config.class_num


def _generate_file(job: GenerationJob, folder: pathlib.Path, threads: int, start: int) -> None:
    """Generate one complete file of images, even if fewer are requested now: a later call may request the others."""
    indices = range(start, start + _IMAGES_PER_FILE)
    labels = class_labels(job, start + _IMAGES_PER_FILE)[start:]
    images = _open_generator(job, threads)(labels, indices)
    arrays: dict[str, NDArray[Any]] = {"images": images, "labels": labels}
    save_arrays(_file(folder, start), _Header(folder.name, start), arrays, compress=True)


def _folder(job: GenerationJob, out: pathlib.Path) -> pathlib.Path:
    """The folder of the images of `job`, named by a hash of everything that they depend on."""
    inputs = json.dumps({"format": _FORMAT, **job.resolved.inputs}, sort_keys=True)
    return out / f"images-{hashlib.sha256(inputs.encode()).hexdigest()[:16]}"


def _file(folder: pathlib.Path, start: int) -> pathlib.Path:
    return folder / f"images-{start:07}.npz"


@functools.lru_cache(maxsize=1)
def _open_generator(job: GenerationJob, threads: int) -> _GenerateBatch:
    """Open the model of `job` for this process, and return the function that generates a batch with it."""
    if is_artifact(job.source):
        return _artifact_generator(job, threads)
    torch.set_num_threads(threads)
    return _checkpoint_generator(job)


def _artifact_generator(job: GenerationJob, threads: int) -> _GenerateBatch:
    settings: Mapping[str, Any] = dict(job.settings)
    generator = Generator.load(job.source, threads=threads, **dict(job.backend))

    def generate(labels: NDArray[np.int64], indices: range) -> NDArray[np.uint8]:
        images = generator.generate(labels.tolist(), seed=job.seed, index=indices, **settings).images
        assert images is not None  # `resolved` refuses a model without a decoder
        return images

    return generate


def _checkpoint_generator(job: GenerationJob) -> _GenerateBatch:
    loaded, config = _load_checkpoint(job), job.resolved.config
    plan = build_plan(config.tokens, job.resolved.sampling)

    def generate(labels: NDArray[np.int64], indices: range) -> NDArray[np.uint8]:
        order = seeded_order(job.seed, indices, config, plan.token_order)
        noise = seeded_noise(job.seed, indices, plan.diffusion_steps, config)
        latents = sample(loaded.model, labels, plan, order, noise)  # [B, C, h, w]
        if loaded.vae is None:
            return to_uint8(latents)
        with torch.inference_mode():  # one image at a time: an autoencoder needs gigabytes for a batch
            decoded = [loaded.vae.decode(torch.from_numpy(latent[None])).numpy() for latent in latents]
        return to_uint8(np.concatenate(decoded))

    return generate


@functools.lru_cache(maxsize=1)
def _load_checkpoint(job: GenerationJob) -> Checkpoint:
    return load_checkpoint(job.source, **dict(job.checkpoint))


def _vae_sha256(vae: AutoencoderKL) -> str:
    """Hash the configuration and the weights, so that the file or folder they came from does not matter."""
    digest = hashlib.sha256(repr((vae.config, vae.latent_scale, vae.latent_shift)).encode())
    for tensor in vae.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
