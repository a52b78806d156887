"""Reading of tensor files from any source, without running code that they may contain.

Tensors are memory-mapped: those that are never used, such as the state of an optimizer, are never read.
"""

from __future__ import annotations

import argparse
import pathlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from runtime.errors import CheckpointError


def read_safetensors(path: pathlib.Path, remedy: str = "copy it again") -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, by name.

    Args:
        path: The file.
        remedy: What a person can do about a damaged file, for the message.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint file at {path}")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a complete safetensors file ({error}); {remedy}") from error


def read_metadata(path: pathlib.Path) -> dict[str, str]:
    """Return the metadata in the header of a safetensors file; empty if the file is missing or damaged."""
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError):
        return {}


def read_pickle(path: pathlib.Path) -> Any:
    """Read a file of `torch.save`: tensors, plain values, and the `argparse.Namespace` of published checkpoints.

    Raises:
        CheckpointError: The file is missing or damaged, or contains any other object.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about an unknown format; torch.load raises an error for it anyway
            # Files from before PyTorch 1.6 are not zip archives and cannot be mapped.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        match = re.search(r"GLOBAL ([\w.]+)", str(error))
        if match is None:
            raise CheckpointError(f"{path}: not a PyTorch checkpoint, or not one of tensors alone") from error
        what = f"{match[1]}, which is no tensor and could run code when read"
        raise CheckpointError(f"{path}: refused, it holds {what}") from error
    except Exception as error:  # damaged bytes can raise any exception in torch.load
        raise CheckpointError(f"{path}: not a complete PyTorch checkpoint; copy it again") from error


def tensors_under(content: Any, key: str, path: pathlib.Path, what: str) -> dict[str, Tensor]:
    """Return the tensors, by name, that the content of a file holds under a key.

    Args:
        content: What was read from the file.
        key: The key.
        path: The file, for messages.
        what: What the tensors are, for messages.

    Raises:
        CheckpointError: There are no such tensors.
    """
    tensors = content.get(key) if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in tensors.items()
    ):
        raise CheckpointError(f"{path}: expected {what} under {key!r}, as the published code saves them")
    return tensors


def assign_weights(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Assign weights to a module, as float32, and put it in evaluation mode; float32 tensors are not copied.

    Args:
        module: A module on the meta device.
        weights: A tensor for each parameter and buffer of the module, of its shape.
        source: The source of the weights, for messages.

    Raises:
        CheckpointError: A tensor is missing, unknown, of another shape, or not finite.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    actual = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    converted = {}
    for name in [*expected, *sorted(actual.keys() - expected.keys())]:
        if expected.get(name) != actual.get(name):
            raise CheckpointError(
                f"{source}: {name} is {actual.get(name, 'missing')} but the config requires "
                f"{expected.get(name, 'no such parameter')}"
            )
        converted[name] = weights[name].float()
        if not converted[name].isfinite().all():
            raise CheckpointError(f"{source}: {name} holds values that are not finite")
    module.load_state_dict(converted, assign=True)
    module.eval().requires_grad_(False)
