"""Parts of checkpoints that were saved by several processes: refused by name, with how to gather them."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from runtime.errors import CheckpointError
from training.checkpoints.zip_archives import read_member

_ZERO_FILE = re.compile(r"(^|_)zero_pp_rank_\d+|_optim_states\.pt$")
_ZERO_KEYS = ("ds_config", "ds_version", "param_shapes")
_DCP_FILE = ".distcp"
_MOST_PICKLE_BYTES = 2**26


def refuse_sharded_folder(folder: pathlib.Path) -> None:
    """Raise `CheckpointError` for a folder of torch.distributed.checkpoint or of DeepSpeed's ZeRO, or one above it."""
    for each in (folder, *(child for child in _files(folder) if child.is_dir())):
        names = [file.name for file in _files(each)]
        if any(name.endswith(_DCP_FILE) for name in names):
            _refuse_dcp(folder, each)
        if any(_ZERO_FILE.search(name) for name in names):
            _refuse_zero(folder)


def refuse_sharded_file(path: pathlib.Path) -> None:
    """Raise `CheckpointError` for a file that holds parts of tensors, as its name or its first bytes show."""
    if path.suffix == _DCP_FILE:
        _refuse_dcp(path, path.parent)
    if _ZERO_FILE.search(path.name):
        _refuse_zero(path)
    pickled = read_member(path, "/data.pkl", _MOST_PICKLE_BYTES)
    if any(name in pickled for name in (b"\nDTensor\n", b"\nShardedTensor\n")):
        raise CheckpointError(
            f"{path}: one process's part of a model (tensors of torch.distributed, as FSDP saves them); gather it "
            "where it was trained, with get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)) of "
            "torch.distributed.checkpoint.state_dict, and torch.save it in one process"
        )


def refuse_sharded_content(path: pathlib.Path, content: Any) -> None:
    """Raise `CheckpointError` for what DeepSpeed saves in place of weights that are in parts elsewhere."""
    from torch import Tensor  # folders are checked without PyTorch

    if isinstance(content, Mapping) and any(key in content for key in _ZERO_KEYS):
        module = content.get("module")
        tensors = [value for value in module.values() if isinstance(value, Tensor)] if isinstance(module, dict) else []
        if not any(tensor.numel() for tensor in tensors):
            _refuse_zero(path)


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return what is in a folder; nothing where it is no folder or cannot be read."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _refuse_dcp(path: pathlib.Path, folder: pathlib.Path) -> NoReturn:
    raise CheckpointError(
        f"{path}: parts of a model, saved by torch.distributed.checkpoint; gather them with "
        f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} gathered.pth"
    )


def _refuse_zero(path: pathlib.Path) -> NoReturn:
    raise CheckpointError(
        f"{path}: parts of a model, saved by DeepSpeed's ZeRO; gather them with the script zero_to_fp32.py that it "
        "wrote into the checkpoint's folder: python zero_to_fp32.py . gathered"
    )
