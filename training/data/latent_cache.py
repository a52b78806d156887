"""Images encoded once: what the autoencoder says of each of them and of its mirror image, in a few large files.

A cache is a folder:

    index.json            what was cached, of what, how far; which files hold it; images that were left out
    latents-00000.safetensors ...   moments float32 [n, 2, 2C, h, w], straight and mirrored; labels int64 [n];
                          names uint8, a line of UTF-8 for each image
    tokenizer.safetensors the autoencoder itself, so that a run can draw images and be exported

Each file is written whole or not at all, and the index after it: a cache that was stopped goes on at the next
file, and none is trained on before it is complete.
"""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from runtime.errors import CheckpointError, DataError, RequestError
from runtime.files import replacing, write_json
from runtime.model.latents import from_uint8, to_uint8
from training.checkpoints import checkpoint
from training.checkpoints.published_files import latent_scale, load_vae, read_json_object
from training.data.datasets import Dataset, UnreadableImageError, check_disk
from training.models.autoencoder import LOG_VARIANCE, AutoencoderKL

INDEX_FILE = "index.json"
_FORMAT = 1
_FILE_BYTES = 2**30


@dataclasses.dataclass(frozen=True)
class _Index:
    """What index.json holds; `files` are (name, images in it), `next` the first image that none of them covers."""

    format: int
    image_size: int
    stride: int
    channels: int
    classes: list[str]
    images: int
    tokenizer: str
    next: int = 0
    files: list[tuple[str, int]] = dataclasses.field(default_factory=list)
    left_out: list[str] = dataclasses.field(default_factory=list)

    def write(self, cache: pathlib.Path) -> None:
        write_json(cache / INDEX_FILE, dataclasses.asdict(self))


def is_cache(path: pathlib.Path) -> bool:
    return (path / INDEX_FILE).is_file()


def cache_latents(
    dataset: Dataset,
    image_size: int,
    vae: AutoencoderKL,
    tokenizer: str,
    cache: pathlib.Path,
    batch: int,
    device: torch.device,
    progress: Callable[[int], None],
    complain: Callable[[str], None],
) -> None:
    """Encode all of `dataset` into the folder `cache`, or what of it is missing there.

    `tokenizer` names the autoencoder, by its hash. `progress` is told of images as they are done,
    `complain` of what is wrong with them; those that cannot be read are left out. Raises `RequestError` where
    `cache` is of something else.
    """
    wanted = _Index(
        _FORMAT,
        image_size,
        vae.config.stride,
        vae.config.latent_channels,
        list(dataset.classes),
        len(dataset.labels),
        tokenizer,
    )
    index = wanted
    if is_cache(cache):
        index = _read_index(cache)
        if dataclasses.replace(index, next=0, files=[], left_out=[]) != wanted:
            raise RequestError(f"{cache} holds other latents than these; choose another --out, or remove it yourself")
    else:
        checkpoint.save_vae(cache / checkpoint.TOKENIZER_FILE, vae)
    side = image_size // vae.config.stride
    a_file = max(1, _FILE_BYTES // (2 * 2 * vae.config.latent_channels * side**2 * 4))
    vae = vae.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    progress(index.next)
    while index.next < index.images:
        stop = min(index.images, index.next + a_file)
        kept, moments, told = _encoded(dataset, range(index.next, stop), vae, batch, device, progress, complain)
        files = index.files
        if kept:
            name = f"latents-{len(files):05}.safetensors"
            names = "\n".join(dataset.name(example) for example in kept).encode()
            tensors = {
                "moments": moments,
                "labels": torch.from_numpy(dataset.labels[kept]),
                "names": torch.frombuffer(bytearray(names or b"\n"), dtype=torch.uint8),
            }
            checkpoint.save_weights(cache / name, tensors)
            files = [*files, (name, len(kept))]
        index = dataclasses.replace(index, next=stop, files=files, left_out=[*index.left_out, *told])
        index.write(cache)


@torch.inference_mode()
def _encoded(
    dataset: Dataset,
    examples: range,
    vae: AutoencoderKL,
    batch: int,
    device: torch.device,
    progress: Callable[[int], None],
    complain: Callable[[str], None],
) -> tuple[list[int], Tensor, list[str]]:
    """The images that could be read, their moments [n, 2, 2C, h, w], and what is wrong with the others."""
    unreadable = 0
    kept: list[int] = []
    told: list[str] = []
    moments: list[Tensor] = []
    for start in range(0, len(examples), batch):
        images = []
        for example in examples[start : start + batch]:
            try:
                images.append(from_uint8(dataset.images(np.array([example])))[0])
                kept.append(example)
                unreadable = 0
            except UnreadableImageError as error:
                told.append(str(error))
                complain(told[-1])
                unreadable += 1
                check_disk(unreadable, len(dataset.labels), told[-1])
        while dataset.warnings:
            complain(dataset.warnings.pop(0))
        if images:
            straight = torch.from_numpy(np.stack(images)).to(device)  # [b, 3, H, W]
            both = torch.cat([straight, straight.flip(-1)]).contiguous(memory_format=torch.channels_last)
            of_both = vae.moments(both).cpu().float().contiguous()  # [2b, 2C, h, w]
            moments.append(torch.stack(of_both.chunk(2), dim=1))  # [b, 2, 2C, h, w]
        progress(len(examples[start : start + batch]))
    return kept, torch.cat(moments) if kept else torch.empty(0), told


class CachedLatents:
    """A cache as a source of latents: a sample of what the autoencoder says of an image, a new one each time."""

    tokenizer = "kl"

    def __init__(self, cache: pathlib.Path, image_size: int) -> None:
        index, self.warnings = _read_index(cache), list[str]()
        if index.next < index.images:
            raise DataError(
                f"{cache}: only {index.next} of {index.images} images are cached; call mar cache-latents again"
            )
        if index.image_size != image_size:
            raise DataError(f"{cache}: latents of {index.image_size}x{index.image_size} images, not of {image_size}")
        self.classes, self.channels, self.stride = tuple(index.classes), index.channels, index.stride
        self._scale = latent_scale(cache / checkpoint.TOKENIZER_FILE)
        self._cache, self._files = cache, [_open(cache / name) for name, _ in index.files]
        self.labels = np.concatenate([file.get_tensor("labels") for file in self._files])  # [n]
        self._moments = [file.get_slice("moments") for file in self._files]
        self._starts = np.cumsum([0] + [images for _, images in index.files])
        if len(self.labels) != self._starts[-1]:
            raise DataError(f"{cache}: {len(self.labels)} labels for {self._starts[-1]} images; remove it, cache again")

    def latent(self, index: int, flip: bool, stream: np.random.Generator) -> NDArray[np.float32]:
        file, row = self._place(index)
        moments: NDArray[np.float32] = self._moments[file][row, int(flip)]  # [2C, h, w]
        mean, log_variance = np.split(moments, 2)
        spread = np.exp(np.float32(0.5) * log_variance.clip(*LOG_VARIANCE))
        drawn = mean + spread * stream.standard_normal(mean.shape, np.float32)
        return (drawn * self._scale).astype(np.float32)

    def images(self, latents: NDArray[np.float32]) -> NDArray[np.uint8]:
        with torch.inference_mode():
            vae = load_vae(self._cache / checkpoint.TOKENIZER_FILE)
            return to_uint8(vae.decode(torch.from_numpy(latents)).numpy())

    def save_tokenizer(self, run: pathlib.Path) -> None:
        with replacing(run / checkpoint.TOKENIZER_FILE) as temporary:
            shutil.copyfile(self._cache / checkpoint.TOKENIZER_FILE, temporary)

    def name(self, index: int) -> str:
        file, row = self._place(index)
        names = self._files[file].get_tensor("names").tobytes().decode()
        return str(names.split("\n")[row])

    def _place(self, index: int) -> tuple[int, int]:
        file = int(np.searchsorted(self._starts, index, side="right")) - 1
        return file, index - int(self._starts[file])


def _open(path: pathlib.Path) -> Any:
    try:
        return safe_open(path, "numpy")
    except Exception as error:
        raise DataError(f"{path}: not a whole file of latents ({error}); remove the cache and make it again") from error


def _read_index(cache: pathlib.Path) -> _Index:
    path = cache / INDEX_FILE
    try:
        values = read_json_object(path)
        if values.get("format") != _FORMAT:
            raise DataError(f"{path}: format {values.get('format')!r}, where this version reads {_FORMAT}")
        index = _Index(**values)
        return dataclasses.replace(index, files=[(str(name), int(images)) for name, images in index.files])
    except (CheckpointError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not the index of cached latents ({error})") from error
