"""Thousands of images of a model, drawn by several processes into files, so that a stop costs little.

Image `index` of a seed is the same whoever draws it, and always together with the same others, so that it is the
same to the last bit. Images lie under a name made of all that decides them: whatever asks for the same ones finds
those that are there already.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import pathlib
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from runtime.artifact.artifact_folder import Artifact, is_artifact
from runtime.backends import available_threads
from runtime.errors import BackendError, DataError, RequestError
from runtime.files import replacing, write_json
from runtime.generator import Generator
from runtime.model.config import ModelConfig
from runtime.model.latents import to_uint8
from runtime.sampling.constraints import default_sampling
from runtime.sampling.plan import build_plan
from runtime.sampling.presets import resolve_sampling
from runtime.sampling.rng import seeded_noise, seeded_order
from runtime.sampling.settings import Sampling
from training.checkpoints.checkpoint import Checkpoint, load_checkpoint
from training.models.autoencoder import AutoencoderKL
from training.models.reference_loop import sample

_A_FILE = 50  # images, and as many are drawn together

_Painter = Callable[[NDArray[np.int64], range], NDArray[np.uint8]]  # labels [B], indices -> [B, H, W, c]


@dataclasses.dataclass(frozen=True)
class Drawing:
    """What is drawn: `subject`, an artifact or a checkpoint, with `seed` and `settings` of a request.

    `backend` are arguments of `Generator.load` for an artifact, `checkpoint` those of `load_checkpoint` for a
    checkpoint, both as (name, value), for eager PyTorch on a CPU.
    """

    subject: pathlib.Path
    seed: int
    settings: tuple[tuple[str, Any], ...]
    backend: tuple[tuple[str, Any], ...] = ()
    checkpoint: tuple[tuple[str, Any], ...] = ()

    @functools.cached_property
    def described(self) -> tuple[ModelConfig, Sampling, dict[str, Any]]:
        """The model, how it is sampled, and all that decides an image, for JSON. Raises `RequestError`."""
        of: dict[str, Any]
        if is_artifact(self.subject):
            manifest = Artifact(self.subject).manifest
            config, tokenizer, sampling = manifest.model, manifest.tokenizer, manifest.resolve_sampling(dict(self.settings))
            of = {"files": {name: file.sha256 for name, file in sorted(manifest.files.items())}, **dict(self.backend)}
        else:
            loaded = _checkpoint(self)
            config, tokenizer = loaded.model.config, loaded.tokenizer
            sampling = resolve_sampling(default_sampling(config), config, dict(self.settings))
            vae = None if loaded.vae is None else _sha256(loaded.vae)
            of = {"checkpoint": loaded.sha256, "vae": vae, "torch": torch.__version__}
        if tokenizer == "none":
            raise RequestError(f"{self.subject} has no decoder, so it makes no images to judge; see --tokenizer")
        build_plan(config.tokens, sampling)  # wrong settings are told before the work
        of |= {"model": config.to_dict(), "tokenizer": tokenizer, "sampling": dataclasses.asdict(sampling)}
        return config, sampling, {"seed": self.seed, **of}


def draw(
    drawing: Drawing,
    count: int,
    out: pathlib.Path,
    processes: int,
    threads: int | None,
    progress: Callable[[int], None],
) -> None:
    """Draw what of the images 0..count - 1 is not in `out` yet: class i % classes for image i.

    `processes` processes share `threads`; `progress` is told of images as they are there. Raises `BackendError`.
    """
    folder = _folder(drawing, out)
    write_json(folder / "drawing.json", drawing.described[2])
    starts = range(0, count, _A_FILE)
    left = [start for start in starts if not _file(folder, start).exists()]
    progress(count - sum(min(_A_FILE, count - start) for start in left))
    share = max(1, (threads or available_threads()) // processes)
    if processes == 1:
        for start in left:
            _draw_file(drawing, folder, start, share)
            progress(min(_A_FILE, count - start))
    else:
        _draw_files(drawing, folder, left, processes, share, lambda start: progress(min(_A_FILE, count - start)))


def drawn(drawing: Drawing, count: int, out: pathlib.Path) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """The images 0..count - 1 that `draw` has put there, uint8 [B, H, W, c] at a time, with their classes [B].

    Raises `DataError`.
    """
    for start in range(0, count, _A_FILE):
        file = _file(_folder(drawing, out), start)
        try:
            with np.load(file, allow_pickle=False) as kept:
                yield kept["images"][: count - start], kept["labels"][: count - start]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(f"{file}: not whole images ({error}); remove it, and it is drawn again") from None


def labels_of(drawing: Drawing, count: int) -> NDArray[np.int64]:
    """The classes of the images 0..count - 1, int64 [count]."""
    return np.arange(count, dtype=np.int64) % drawing.described[0].class_num


def _draw_files(
    drawing: Drawing, folder: pathlib.Path, starts: list[int], processes: int, threads: int, done: Callable[[int], None]
) -> None:
    context = multiprocessing.get_context("spawn")  # a fork would inherit PyTorch's threads
    with concurrent.futures.ProcessPoolExecutor(processes, mp_context=context) as pool:
        waiting = {pool.submit(_draw_file, drawing, folder, start, threads): start for start in starts}
        try:
            for one in concurrent.futures.as_completed(waiting):
                one.result()
                done(waiting[one])
        except BrokenProcessPool:
            raise BackendError("a process that drew images ended; not enough memory?") from None
        finally:
            pool.shutdown(cancel_futures=True)  # after a failure: what has not begun must not begin


def _draw_file(drawing: Drawing, folder: pathlib.Path, start: int, threads: int) -> None:
    """Draw one file of images. All of it even where fewer are wanted: the others may be wanted later."""
    indices = range(start, start + _A_FILE)
    labels = labels_of(drawing, start + _A_FILE)[start:]
    images = _painter(drawing, threads)(labels, indices)
    with replacing(_file(folder, start)) as temporary:
        np.savez_compressed(temporary, images=images, labels=labels)


def _folder(drawing: Drawing, out: pathlib.Path) -> pathlib.Path:
    """Where images of this drawing lie, and no others."""
    return out / f"images-{hashlib.sha256(json.dumps(drawing.described[2], sort_keys=True).encode()).hexdigest()[:16]}"


def _file(folder: pathlib.Path, start: int) -> pathlib.Path:
    return folder / f"images-{start:07}.npz"


@functools.lru_cache(maxsize=1)
def _painter(drawing: Drawing, threads: int) -> _Painter:
    """What draws in this process."""
    settings: Mapping[str, Any] = dict(drawing.settings)
    if is_artifact(drawing.subject):
        generator = Generator.load(drawing.subject, threads=threads, **dict(drawing.backend))

        def exported(labels: NDArray[np.int64], indices: range) -> NDArray[np.uint8]:
            images = generator.generate(labels.tolist(), seed=drawing.seed, index=indices, **settings).images
            assert images is not None  # what has no decoder was refused
            return images

        return exported
    torch.set_num_threads(threads)
    loaded, (config, sampling, _) = _checkpoint(drawing), drawing.described
    plan = build_plan(config.tokens, sampling)

    def eager(labels: NDArray[np.int64], indices: range) -> NDArray[np.uint8]:
        order = seeded_order(drawing.seed, indices, config, plan.token_order)
        noise = seeded_noise(drawing.seed, indices, plan.diffusion_steps, config)
        latents = sample(loaded.model, labels, plan, order, noise)  # [B, C, h, w]
        if loaded.vae is None:
            return to_uint8(latents)
        with torch.inference_mode():  # one at a time: an autoencoder takes gigabytes for many
            decoded = [loaded.vae.decode(torch.from_numpy(one[None])).numpy() for one in latents]
        return to_uint8(np.concatenate(decoded))

    return eager


@functools.lru_cache(maxsize=1)
def _checkpoint(drawing: Drawing) -> Checkpoint:
    return load_checkpoint(drawing.subject, **dict(drawing.checkpoint))


def _sha256(vae: AutoencoderKL) -> str:
    """What tells one autoencoder from another, whatever file or folder it came from."""
    digest = hashlib.sha256(repr((vae.config, vae.latent_scale)).encode())
    for tensor in vae.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
