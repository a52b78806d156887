"""The environment of a training run: command, versions and machine, once for each start and each resume."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import pathlib
import platform
import sys
from typing import Any

import torch

from runtime import __version__
from runtime.files import write_json
from runtime.provenance import commit, processor_name
from training.distributed import Processes

ENVIRONMENT_FILE = "environment.json"
_PACKAGES = ("torch", "numpy", "safetensors", "pillow")


def record_environment(run: pathlib.Path, processes: Processes, step: int) -> None:
    """Append the environment of this session to `environment.json` of the folder `run`.

    Args:
        run: The run folder.
        processes: The processes that train.
        step: The number of steps that were done before this session.
    """
    write_json(run / ENVIRONMENT_FILE, [*read_sessions(run), _environment(processes, step)])


def read_sessions(run: pathlib.Path) -> list[dict[str, Any]]:
    """Read the environments of all sessions of a run; the list is empty if the file is missing or damaged."""
    try:
        entries = json.loads((run / ENVIRONMENT_FILE).read_text())
    except (OSError, ValueError):
        return []
    return entries if isinstance(entries, list) else []


def _environment(processes: Processes, step: int) -> dict[str, Any]:
    on_gpu = processes.device.type == "cuda"
    return {
        "from_step": step,
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        "version": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "machine": platform.node(),
        "system": platform.platform(),
        "device": torch.cuda.get_device_name(processes.device) if on_gpu else processor_name(),
        "processes": processes.world_size,
        "threads": torch.get_num_threads(),
    }
