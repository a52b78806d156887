"""The generated images of an evaluation: a dataset of `runtime.dataset`, in a folder of its own.

The folder is named by a hash of everything that the images depend on: a second evaluation of the same images finds and
reads them. An image is always generated in the same batch as the same other images, so that it is identical to the last
bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from runtime.artifact.artifact_folder import Artifact, is_artifact
from runtime.backends import available_threads, uses_gpu
from runtime.dataset.artifact_model import open_artifact
from runtime.dataset.draw import Draw, draw_dataset
from runtime.dataset.packed_shards import read_npz
from runtime.dataset.plan import DrawingPlan
from runtime.dataset.shard_folder import shard_name
from runtime.errors import DataError, RequestError
from runtime.image_records.record import ImageRecord, settings_values
from runtime.model.families import check_supported
from runtime.model.family_config import FamilyConfig
from runtime.model.latents import to_uint8
from runtime.sampling.constraints import default_sampling, plan_for
from runtime.sampling.presets import resolve_sampling
from runtime.sampling.rng import seeded_noise, seeded_order
from runtime.sampling.settings import Sampling
from runtime.storage.files import write_json
from runtime.storage.stored_files import content_sha256
from runtime.storage.structured_files import FaultReport
from runtime.version import __version__
from runtime.workers.worker_group import Workers
from training.checkpoints.checkpoint import Checkpoint, load_checkpoint
from training.evaluation.feature_networks import LabelledBatch
from training.models.autoencoder import AutoencoderKL
from training.models.reference_loop import sample

_IMAGES_PER_FILE = 50  # which is also the batch that is generated together
_FORMAT = 3


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
            RequestError: The model draws no classes or has no decoder, or the settings are invalid.
        """
        inputs: dict[str, Any]
        warnings: tuple[str, ...] = ()
        if is_artifact(self.source):
            manifest = Artifact(self.source).manifest
            check_supported(manifest.model, "mar evaluate")
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
        plan_for(config, sampling)  # refuses invalid settings before the work
        inputs |= {"model": config.to_dict(), "tokenizer": tokenizer, "sampling": dataclasses.asdict(sampling)}
        return ResolvedJob(config, names, sampling, {"seed": self.seed, **inputs}, warnings)


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

    config: FamilyConfig
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
        processes: The number of processes; more than one need Ray.
        threads: The CPU threads of all processes together; None for all threads of this machine.
        progress: Is called with a number of images whenever so many more are in `out`.
        resumed: Is called once with the number of images that are in `out` already.

    Raises:
        RequestError: The settings are invalid, or the model has no decoder.
        BackendError: An engine failed, Ray is not installed, or processes died again and again.
    """
    folder, remaining = _folder(job, out), count
    write_json(folder / "inputs.json", job.resolved.inputs)
    workers = Workers.of_this_machine(processes, threads or available_threads(), _uses_gpu(job))

    def report(images: int, were_there: bool) -> None:
        nonlocal remaining
        (resumed if were_there else progress)(min(images, remaining))
        remaining -= min(images, remaining)

    open_model = functools.partial(_open_model, job, workers.threads)
    draw_dataset(_plan(job, count), open_model, "npz", folder, workers, report)


def read_images(job: GenerationJob, count: int, out: pathlib.Path) -> Iterator[LabelledBatch]:
    """Yield the images 0..count - 1 that `generate_images` has put into `out`, with their classes.

    Raises:
        DataError: A file is missing, damaged, or was altered.
    """
    fault_report = FaultReport(DataError, "remove the file to generate its images again")
    folder, side, plan = _folder(job, out), job.resolved.config.image_shape[0], _plan(job, count)
    for number, shard in enumerate(plan.shards()):
        records = list(plan.records(shard))
        images = read_npz(folder / shard_name(number, ".npz"), records, side, fault_report)
        labels = np.array([record.class_number for record in records], np.int64)
        yield images[: count - shard.start], labels[: count - shard.start]


def _plan(job: GenerationJob, count: int) -> DrawingPlan:
    """Return the plan of complete files, even if fewer images are requested: a later call may request the others."""
    resolved = job.resolved
    inputs = content_sha256(resolved.inputs)
    return DrawingPlan(
        model=ImageRecord(0, "", job.seed, 0, settings_values(resolved.sampling), None, inputs),
        classes=range(resolved.config.class_num),
        class_names=resolved.class_names,
        count=-(-count // _IMAGES_PER_FILE) * _IMAGES_PER_FILE,
        batch_size=_IMAGES_PER_FILE,
        shard_size=_IMAGES_PER_FILE,
    )


def _folder(job: GenerationJob, out: pathlib.Path) -> pathlib.Path:
    """The folder of the images of `job`, named by a hash of everything that they depend on."""
    inputs = {"format": _FORMAT, "version": __version__, **job.resolved.inputs}
    return out / f"images-{content_sha256(inputs)[:16]}"


def _uses_gpu(job: GenerationJob) -> bool:
    backend = dict(job.backend)
    return is_artifact(job.source) and uses_gpu(backend.get("backend", "onnxruntime"), backend.get("device"))


@contextlib.contextmanager
def _open_model(job: GenerationJob, threads: int) -> Iterator[Draw]:
    """Open the model of `job` in a worker."""
    if is_artifact(job.source):
        sha256, backend = Artifact(job.source).manifest.content_sha256, {**dict(job.backend), "threads": threads}
        with open_artifact(job.source, sha256, job.resolved.sampling, backend) as draw:
            yield draw
    else:
        torch.set_num_threads(threads)
        yield _checkpoint_drawing(job)


def _checkpoint_drawing(job: GenerationJob) -> Draw:
    loaded, config = _load_checkpoint(job), job.resolved.config
    plan = plan_for(config, job.resolved.sampling)

    def draw_batch(records: Sequence[ImageRecord]) -> NDArray[np.uint8]:
        seeds, index = [record.seed for record in records], [record.index for record in records]
        labels = np.array([record.class_number for record in records], np.int64)
        order = seeded_order(seeds, index, config, plan.token_order)
        noise = seeded_noise(seeds, index, plan.noise_steps, config)
        latents = sample(loaded.model, labels, plan, order, noise)  # [B, C, h, w]
        if loaded.vae is None:
            return to_uint8(latents)
        with torch.inference_mode():  # one image at a time: an autoencoder needs gigabytes for a batch
            decoded = [loaded.vae.decode(torch.from_numpy(latent[None])).numpy() for latent in latents]
        return to_uint8(np.concatenate(decoded))

    def draw(records: Sequence[ImageRecord], batch_size: int) -> Iterator[NDArray[np.uint8]]:
        for start in range(0, len(records), batch_size):
            yield draw_batch(records[start : start + batch_size])

    return draw


@functools.lru_cache(maxsize=1)
def _load_checkpoint(job: GenerationJob) -> Checkpoint:
    return load_checkpoint(job.source, **dict(job.checkpoint))


def _vae_sha256(vae: AutoencoderKL) -> str:
    """Hash the configuration and the weights, so that the file or folder they came from does not matter."""
    digest = hashlib.sha256(repr((vae.config, vae.latent_scale, vae.latent_shift)).encode())
    for tensor in vae.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
