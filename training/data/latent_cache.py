"""A cache of latents: the mean and log-variance of every image, and of its mirror image, in a few large files.

A cache is a folder:

    index.json            what is cached, of which images, up to which one; its files with their hashes; images that
                          were left out
    latents-00000.safetensors ...   moments float32 [n, M, 2C, h, w], straight and, where M is 2, mirrored;
                          labels int64 [n]; names uint8, one line of UTF-8 for each image
    tokenizer.safetensors the autoencoder itself, so that a run can decode images and be exported

Each file is written completely or not at all, and the index after it. An interrupted cache therefore resumes at the
next file, and only a complete one is trained on. Opening a cache reads all of it once, to compare the hashes.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from runtime.checks import pluralize
from runtime.errors import DataError, RequestError
from runtime.model.latents import from_uint8, to_uint8
from runtime.storage.files import replacing, sha256
from training.checkpoints import checkpoint, run_folder
from training.checkpoints.published_files import latent_scale, load_vae
from training.data.cache_index import INDEX_FILE, CachedFile, CacheIndex, file_name, unreadable
from training.data.class_names import check_same_classes, describe_classes, list_some
from training.data.datasets import ImageDataset
from training.data.unreadable_images import TolerantReader
from training.models.autoencoder import LOG_VARIANCE, AutoencoderKL

_FILE_BYTES = 2**30


@dataclasses.dataclass(frozen=True)
class LatentEncoder:
    """An autoencoder and how it is called.

    Attributes:
        vae: The autoencoder, in evaluation mode.
        name: A name that no other autoencoder has, such as the hash of its file.
        image_size: The side of the images in pixels.
        batch_size: Images encoded together.
        device: Where the autoencoder runs.
        mirror: Whether mirror images are encoded too.
    """

    vae: AutoencoderKL
    name: str
    image_size: int
    batch_size: int
    device: torch.device
    mirror: bool = True

    @property
    def versions(self) -> int:
        """M, the versions of an image that are encoded: itself, and its mirror image."""
        return 2 if self.mirror else 1

    @property
    def images_per_file(self) -> int:
        """The number of images whose moments fill one file of a cache."""
        channels, side = self.vae.config.latent_channels, self.image_size // self.vae.config.stride
        return max(1, _FILE_BYTES // (self.versions * 2 * channels * side**2 * 4))

    @torch.inference_mode()
    def moments(self, images: NDArray[np.uint8]) -> Tensor:
        """Encode images uint8 [b, H, W, 3]: the moments of each and of its mirror image, float32 [b, M, 2C, h, w]."""
        vae = self.vae.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        straight = torch.from_numpy(from_uint8(images)).to(self.device)  # [b, 3, H, W]
        versions = torch.cat([straight, straight.flip(-1)][: self.versions])  # [M b, 3, H, W]
        moments: Tensor = vae.moments(versions.contiguous(memory_format=torch.channels_last)).cpu().float().contiguous()
        return torch.stack(moments.chunk(self.versions), dim=1)


def is_cache(path: pathlib.Path) -> bool:
    """Return whether a folder is a cache of latents, complete or not."""
    return (path / INDEX_FILE).is_file()


def cache_latents(
    dataset: ImageDataset,
    encoder: LatentEncoder,
    cache: pathlib.Path,
    progress: Callable[[int], None],
    warn: Callable[[str], None],
    resumed: Callable[[int], None] = lambda images: None,
) -> None:
    """Encode all images of a dataset, or those that an interrupted cache lacks. Unreadable images are left out.

    Args:
        dataset: RGB images of the encoder's size.
        encoder: The autoencoder.
        cache: The folder to write.
        progress: Called with the number of images each time some are done.
        warn: Called with one line for each defect of the data.
        resumed: Called once with the number of images that an interrupted cache has.

    Raises:
        RequestError: `cache` holds other latents.
        DataError: A hundred images in a row cannot be read.
    """
    index = _open_index(dataset, encoder, cache)
    resumed(index.next)
    while index.next < index.images:
        stop = min(index.images, index.next + encoder.images_per_file)
        kept, moments, left_out = _encode(dataset, range(index.next, stop), encoder, progress, warn)
        files = index.files
        if kept:
            name = file_name(len(files))
            names = "\n".join(dataset.name(example) for example in kept).encode()
            tensors = {
                "moments": moments,
                "labels": torch.from_numpy(dataset.labels[kept]),
                "names": torch.frombuffer(bytearray(names or b"\n"), dtype=torch.uint8),
            }
            checkpoint.save_weights(cache / name, tensors)
            files = [*files, CachedFile(name, len(kept), sha256(cache / name))]
        index = dataclasses.replace(index, next=stop, files=files, left_out=[*index.left_out, *left_out])
        index.write(cache)


def _open_index(dataset: ImageDataset, encoder: LatentEncoder, cache: pathlib.Path) -> CacheIndex:
    """Return the index of a cache to resume, or of a new one, whose autoencoder is then written."""
    vae = encoder.vae.config
    if is_cache(cache):
        index = CacheIndex.read(cache)
    else:
        checkpoint.save_vae(cache / run_folder.TOKENIZER_FILE, encoder.vae)
        index = None
    empty = CacheIndex(
        encoder.image_size,
        vae.stride,
        vae.latent_channels,
        list(dataset.classes),
        len(dataset.labels),
        dataset.fingerprint,
        encoder.name,
        index.tokenizer_sha256 if index else sha256(cache / run_folder.TOKENIZER_FILE),
        mirrored=encoder.mirror,
    )
    if index is None:
        empty.write(cache)  # so that a killed process leaves a cache that the next one resumes
        return empty
    check_same_classes(dataset.classes, index.classes, "the dataset", str(cache))
    if dataclasses.replace(index, next=0, files=[], left_out=[]) != empty:
        raise RequestError(f"{cache} holds latents of other images or settings; choose another --out, or remove it")
    index.check_files(cache)
    return index


def _encode(
    dataset: ImageDataset,
    examples: range,
    encoder: LatentEncoder,
    progress: Callable[[int], None],
    warn: Callable[[str], None],
) -> tuple[list[int], Tensor, list[str]]:
    """Return the readable images, their moments [n, M, 2C, h, w], and one line about each unreadable image."""
    kept: list[int] = []
    left_out: list[str] = []
    moments: list[Tensor] = []

    def leave_out(warning: str) -> None:
        left_out.append(warning)
        warn(warning)

    reader = TolerantReader(len(dataset.labels), leave_out)
    for start in range(0, len(examples), encoder.batch_size):
        part = examples[start : start + encoder.batch_size]
        images = []
        for example in part:
            image = reader.read(functools.partial(dataset.images, np.array([example])))
            if image is not None:
                images.append(image)
                kept.append(example)
        while dataset.warnings:
            warn(dataset.warnings.pop(0))
        if images:
            moments.append(encoder.moments(np.concatenate(images)))
        progress(len(part))
    return kept, torch.cat(moments) if kept else torch.empty(0), left_out


class CachedLatents:
    """A complete cache as a `LatentDataset`: each call samples latents from the distribution of an image.

    Attributes:
        notes: What the cache holds and what was left out of it.
        warnings: Empty; what is wrong with the images was reported when they were cached.
        classes: The names of the classes.
        channels: C, the channels of a latent.
        stride: Pixels along one side of a latent.
        mirrored: Whether it has the latents of mirror images.
        labels: The class of each image, int64 [n].
    """

    tokenizer = "kl"

    def __init__(self, cache: pathlib.Path, image_size: int) -> None:
        index, self.warnings = CacheIndex.read(cache), list[str]()
        if index.next < index.images:
            raise DataError(
                f"{cache}: only {index.next} of {pluralize(index.images, 'image')} cached; run mar cache-latents again"
            )
        if index.image_size != image_size:
            raise DataError(f"{cache}: latents of {index.image_size}x{index.image_size} images, not of {image_size}")
        index.check_files(cache)
        self._content = hashlib.sha256(repr([file.sha256 for file in index.files]).encode()).hexdigest()
        self.classes, self.channels, self.stride = tuple(index.classes), index.channels, index.stride
        self.mirrored = index.mirrored
        self._scale, self._shift = latent_scale(cache / run_folder.TOKENIZER_FILE)
        self._cache, self._files = cache, [_open(cache / file.name) for file in index.files]
        parts = [_labels(cache, index, number, opened) for number, opened in enumerate(self._files)]
        self.labels = np.concatenate([np.empty(0, np.int64), *parts])  # [n]
        self._names: tuple[int, list[str]] = (-1, [])  # of the file that was read last, and its number
        self._moments = [file.get_slice("moments") for file in self._files]
        self._starts = np.cumsum([0] + [file.images for file in index.files])
        self.notes: tuple[str, ...] = (f"{cache}: {describe_classes(self.classes, self.labels)}",)
        if index.left_out:
            images = pluralize(len(index.left_out), "unreadable image")
            self.notes += (f"{cache}: left out {images}: {list_some(index.left_out)}",)

    @property
    def content(self) -> str:
        """The SHA-256 of the hashes of all files."""
        return self._content

    def latent(self, index: int, flip: bool, stream: np.random.Generator) -> NDArray[np.float32]:
        """Sample the latents of an image, or of its mirror image: float32 [C, h, w], of about unit variance."""
        file, row = self._locate(index)
        moments: NDArray[np.float32] = self._moments[file][row, int(flip)]  # [2C, h, w]
        mean, log_variance = np.split(moments, 2)
        deviation = np.exp(np.float32(0.5) * log_variance.clip(*LOG_VARIANCE))
        sample = mean + deviation * stream.standard_normal(mean.shape, np.float32)
        return ((sample - self._shift) * self._scale).astype(np.float32)

    def images(self, latents: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Decode latents [B, C, h, w] by the cached autoencoder: uint8 [B, H, W, 3]."""
        with torch.inference_mode():
            vae = load_vae(self._cache / run_folder.TOKENIZER_FILE)
            return to_uint8(vae.decode(torch.from_numpy(latents)).numpy())

    def save_tokenizer(self, run: pathlib.Path) -> None:
        """Copy the cached autoencoder into the folder of a run."""
        with replacing(run / run_folder.TOKENIZER_FILE) as temporary:
            shutil.copyfile(self._cache / run_folder.TOKENIZER_FILE, temporary)

    def name(self, index: int) -> str:
        """Return where a person finds the image."""
        file, row = self._locate(index)
        if self._names[0] != file:
            self._names = file, self._files[file].get_tensor("names").tobytes().decode().split("\n")
        return self._names[1][row]

    def _locate(self, index: int) -> tuple[int, int]:
        """Return the number of the file that holds an image, and its row there."""
        file = int(np.searchsorted(self._starts, index, side="right")) - 1
        return file, index - int(self._starts[file])


def _open(path: pathlib.Path) -> Any:
    try:
        return safe_open(path, "numpy")
    except Exception as error:  # damaged headers can raise any exception
        raise unreadable(path, error) from None


def _labels(cache: pathlib.Path, index: CacheIndex, number: int, opened: Any) -> NDArray[np.int64]:
    """Return the labels [n] of a file, after checking the shapes of what it holds.

    Raises:
        DataError: The file holds something else than the index says.
    """
    file, side = index.files[number], index.image_size // index.stride
    try:
        labels: NDArray[np.int64] = opened.get_tensor("labels")
        moments, names = opened.get_slice("moments"), opened.get_slice("names")
        shapes = [list(labels.shape), moments.get_shape(), len(names.get_shape())]
        dtypes = [labels.dtype.name, moments.get_dtype(), names.get_dtype()]
    except Exception as error:  # a tensor is missing, or of a dtype that numpy does not have
        raise unreadable(cache / file.name, error) from None
    expected = [[file.images], [file.images, 1 + index.mirrored, 2 * index.channels, side, side], 1]
    if [shapes, dtypes] != [expected, ["int64", "F32", "U8"]]:
        raise unreadable(cache / file.name, f"tensors {shapes} {dtypes}, expected {expected}")
    if labels.min() < 0 or labels.max() >= len(index.classes):
        raise unreadable(cache / file.name, f"labels beyond {pluralize(len(index.classes), 'class')}")
    return labels
