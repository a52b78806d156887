"""Reading of safetensors files, and the assignment of tensors from any source to a module.

Tensors are memory-mapped: those that are never used, such as the state of an optimizer, are never read.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from runtime.checks import truncate
from runtime.errors import CheckpointError
from runtime.storage.download_placeholders import placeholder
from runtime.storage.stored_files import HASH_KEY, check_hash, content_sha256, with_hash
from runtime.storage.structured_files import FaultReport, parse_json
from training.checkpoints.mapped_weights import release
from training.checkpoints.zip_archives import is_archive

_SUFFIX = ".safetensors"

# Integers are counters, such as that of a batch norm, or codes; complex numbers and packed types belong to no model.
_DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
)


def is_safetensors(path: pathlib.Path) -> bool:
    """Return whether a file is one of safetensors, by its name or by its first bytes."""
    named = path.suffix.lower() == _SUFFIX
    if not path.is_file():  # a pipe would be waited for
        return named
    try:
        with path.open("rb") as file:
            size, brace = int.from_bytes(file.read(8), "little"), file.read(1)
        return named or (brace == b"{" and size + 8 <= path.stat().st_size)
    except OSError:
        return named


def read_safetensors(path: pathlib.Path, remedy: str = "copy it again", *, own: bool = False) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, by name.

    Args:
        path: The file.
        remedy: What a person can do about a damaged file, for the message.
        own: Whether this project wrote the file, so that it must carry the hash of its content. In a file of others the
            hash is compared if it is there.

    Raises:
        CheckpointError: The file is missing, damaged, or altered since this project wrote it.
    """
    return read_with_metadata(path, remedy, own=own)[0]


def read_with_metadata(
    path: pathlib.Path, remedy: str = "copy it again", *, own: bool = False
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a safetensors file, and the metadata in its header without the hash.

    The arguments and errors are those of `read_safetensors`.
    """
    if not _is_file(path):
        raise CheckpointError(f"no checkpoint file at {path}")
    if (what := placeholder(path)) is not None:
        raise CheckpointError(f"{path}: {what}")
    fault_report = FaultReport(CheckpointError, remedy)
    try:
        tensors: dict[str, Tensor] = load_file(path)
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
    except MemoryError:
        raise
    except Exception as error:  # damaged headers can raise any exception
        if is_archive(path):
            raise CheckpointError(
                f"{path}: a checkpoint of PyTorch, not a safetensors file; rename it so that it ends in .pth"
            ) from None
        fault_report.raise_(path, error, "not a complete safetensors file")
    if own or HASH_KEY in metadata:
        metadata = check_hash(metadata, _as_arrays(tensors), path, fault_report)
    return check_tensors(tensors, str(path)), metadata


def _is_file(path: pathlib.Path) -> bool:
    with contextlib.suppress(OSError):  # the name is longer than that of a file can be, as in a damaged index
        return path.is_file()
    return False


def hash_metadata(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata of a new safetensors file with the hash of its content, which reading compares."""
    return with_hash(metadata, _as_arrays(tensors))


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the hash of the names, dtypes, shapes and values of tensors."""
    return content_sha256({}, _as_arrays(tensors))


def sort_metadata(path: pathlib.Path) -> None:
    """Sort the metadata of a safetensors file, whose order is random, so that equal content is equal bytes."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = parse_json(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        file.seek(8)
        file.write(json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode().ljust(size))


def read_metadata(path: pathlib.Path) -> dict[str, str]:
    """Return the metadata in the header of a safetensors file; empty if the file is missing or damaged."""
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except MemoryError:
        raise
    except Exception:  # damaged headers can raise any exception
        return {}


def check_tensors(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return tensors from a file, after checking that each is a plain array of numbers in the memory of the CPU.

    Raises:
        CheckpointError: One is sparse, quantized, nested, without values, of an unusual dtype, or larger than what
            the file holds of it. The message names it and the source `where`.
    """
    for name, tensor in tensors.items():
        problem = _problem(tensor)
        if problem:
            raise CheckpointError(
                f"{where}: {truncate(name)} is {problem}, expected a dense tensor of numbers; save it as one"
            )
    return dict(tensors)


def _problem(tensor: Tensor) -> str | None:
    """Return what is unusual about a tensor; None for a plain one."""
    if type(tensor) not in (Tensor, nn.Parameter):
        return f"a {type(tensor).__name__}"
    for unusual, what in (
        (tensor.is_quantized, "quantized"),
        (tensor.is_nested, "nested"),
        (tensor.layout != torch.strided, f"of the layout {_short(tensor.layout)}"),
        (tensor.device.type != "cpu", f"on the device {tensor.device}"),
        (tensor.dtype not in _DTYPES, f"of the dtype {_short(tensor.dtype)}"),
        (tensor.is_neg(), "a view with the opposite sign"),
    ):
        if unusual:
            return what
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"of shape {list(tensor.shape)}, more than the file holds of it"
    return None


def _short(name: object) -> str:
    return str(name).removeprefix("torch.")


def _as_arrays(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yield the bytes of tensors in the order of their names, which then say dtype and shape."""
    for name, tensor in sorted(tensors.items()):
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        yield f"{name} {_short(tensor.dtype)} {list(tensor.shape)}", content
        release([tensor])


def assign_weights(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Assign weights to a module, as float32, and put it in evaluation mode; float32 tensors are not copied.

    Args:
        module: A module on the meta device.
        weights: A tensor for each parameter and buffer of the module, of its shape.
        source: The source of the weights, for messages.

    Raises:
        CheckpointError: A tensor is missing, unknown, of another shape, or not finite.
    """
    of_module = module.state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in of_module.items()}
    actual = {name: tuple(tensor.shape) for name, tensor in check_tensors(weights, source).items()}
    converted = {}
    for name in [*expected, *sorted(actual.keys() - expected.keys())]:
        if expected.get(name) != actual.get(name):
            raise CheckpointError(
                f"{source}: {name} is {actual.get(name, 'missing')} but the config requires "
                f"{expected.get(name, 'no such parameter')}"
            )
        if of_module[name].is_floating_point() and not weights[name].is_floating_point():
            raise CheckpointError(
                f"{source}: {name} is of the dtype {_short(weights[name].dtype)}, expected floating point; "
                "give the weights as they were before quantization"
            )
        converted[name] = weights[name].float()
        if not converted[name].isfinite().all():
            raise CheckpointError(f"{source}: {name} holds values that are not finite")
        release([weights[name]])
    module.load_state_dict(converted, assign=True)
    module.eval().requires_grad_(False)
