"""The folder of a run: its files, and its config, which are read without PyTorch.

It holds `config.json`, the averaged weights in `model.safetensors`, the weights of the autoencoder in
`tokenizer.safetensors` where there is one, and all that resuming needs in `training-state.safetensors`.
"""

from __future__ import annotations

import pathlib
from typing import Any

from runtime.artifact.artifact_folder import is_artifact
from runtime.errors import CheckpointError
from runtime.storage.folder_kinds import FolderKind, foreign_folder
from runtime.storage.structured_files import FaultReport, read_json_object
from training.checkpoints.sharded_checkpoints import refuse_sharded_folder

CONFIG_FILE = "config.json"
"""The config of a run."""
WEIGHTS_FILE = "model.safetensors"
"""The averaged weights of a run."""
TOKENIZER_FILE = "tokenizer.safetensors"
"""The autoencoder of a run or of a cache of latents."""
STATE_FILE = "training-state.safetensors"
"""What a run resumes from."""

RUN_FOLDER = FolderKind("run", lambda folder: (folder / CONFIG_FILE).is_file())

_WEIGHT_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
_FILES_NAMED = 5


def check_new_folder(folder: pathlib.Path, what: str = "run") -> None:
    """Check that a new run, or `what` is made, would replace nothing in a folder.

    What a killed process has left before it wrote the config or index, hidden files and an autoencoder, may be there.

    Raises:
        RequestError: The folder holds something else, or is a file.
    """
    if folder.is_dir() and all(path.name.startswith(".") or path.name == TOKENIZER_FILE for path in folder.iterdir()):
        return
    if folder.exists():
        raise foreign_folder(folder, what)


def read_run_config(run: pathlib.Path) -> dict[str, Any]:
    """Return the config in the folder of a run.

    Raises:
        CheckpointError: The folder holds no run, or the config is damaged.
    """
    path = run / CONFIG_FILE
    if not path.is_file():
        refuse_sharded_folder(run)
        what = "an artifact" if is_artifact(run) else "a folder"
        raise CheckpointError(
            f"{run}: {what}, not a run of mar train: it has no {CONFIG_FILE}{describe_weight_files(run)}"
        )
    return read_json_object(path, FaultReport(CheckpointError))


def describe_weight_files(folder: pathlib.Path) -> str:
    """Return the end of a message about a folder: which of its files a person may have meant, if there are any."""
    try:
        names = sorted(file.name for file in folder.iterdir() if file.suffix.lower() in _WEIGHT_SUFFIXES)
    except OSError:
        return ""
    return f"; to use one of its files, name that: {', '.join(names[:_FILES_NAMED])}" if names else ""
