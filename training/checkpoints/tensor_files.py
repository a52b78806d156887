"""Reading files of tensors that others made, without running anything they may hold.

Tensors are mapped, not copied: what is never used, such as the state of an optimizer, is never read.
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
    """The tensors of a file by name. Raises `CheckpointError`, which tells `remedy` where the file is damaged."""
    if not path.is_file():
        raise CheckpointError(f"no checkpoint file at {path}")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}); {remedy}") from error


def read_metadata(path: pathlib.Path) -> dict[str, str]:
    """What a safetensors file was saved with beside its tensors; nothing if it is missing or damaged."""
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError):
        return {}


def read_pickle(path: pathlib.Path) -> Any:
    """What `torch.save` wrote: tensors, plain values, and the `argparse.Namespace` of published checkpoints."""
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a format it may not know: it says so again where it does not
            # Files from before PyTorch 1.6 are no zip, and cannot be mapped.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named is None:
            raise CheckpointError(f"{path}: not a PyTorch checkpoint, or not one of tensors alone") from error
        what = f"{named[1]}, which is no tensor and could run code when read"
        raise CheckpointError(f"{path}: refused, it holds {what}") from error
    except Exception as error:  # damaged bytes end in whatever the reader happens to do with them
        raise CheckpointError(f"{path}: not a whole PyTorch checkpoint; copy it again") from error


def tensors_under(content: Any, key: str, path: pathlib.Path, what: str) -> dict[str, Tensor]:
    """The tensors by name that `content` holds under `key`. Raises `CheckpointError` naming `what` is expected."""
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items()
    ):
        raise CheckpointError(f"{path}: expected {what} under {key!r}, as the published code saves them")
    return found


def fill(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Give `module`, made on the meta device, the tensors `weights` themselves, as float32.

    They must be exactly its own, by name and shape, and finite. Raises `CheckpointError`.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    converted = {}
    for name in [*expected, *sorted(found.keys() - expected.keys())]:
        if expected.get(name) != found.get(name):
            raise CheckpointError(
                f"{source}: {name} is {found.get(name, 'missing')} but the config asks for "
                f"{expected.get(name, 'no such parameter')}"
            )
        converted[name] = weights[name].float()
        if not converted[name].isfinite().all():
            raise CheckpointError(f"{source}: {name} holds values that are not finite")
    module.load_state_dict(converted, assign=True)
    module.eval().requires_grad_(False)
