"""What a run was trained with: program, versions, machine. One entry for each time it was started or resumed."""

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
    """Add to the run what trains it from `step` on."""
    file = run / ENVIRONMENT_FILE
    write_json(file, [*sessions(run), _environment(processes, step)])


def sessions(run: pathlib.Path) -> list[dict[str, Any]]:
    """The entries of a run; none if it has no such file, or a damaged one."""
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
