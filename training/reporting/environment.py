"""The environment of a training run: command, versions and machine, once for each start and each resume.

Secrets are left out of the command, and no environment variable is stored.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import pathlib
import platform
import sys
from typing import TYPE_CHECKING, Any

from runtime.errors import CheckpointError
from runtime.provenance import commit, processor_name, without_secrets
from runtime.storage.files import write_json
from runtime.storage.structured_files import FaultReport, read_json
from runtime.version import __version__

if TYPE_CHECKING:
    from training.distributed import Processes

ENVIRONMENT_FILE = "environment.json"
_FAULT_REPORT = FaultReport(CheckpointError, "delete it; the run continues without the record of its earlier sessions")
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
    """Read the environments of all sessions of a run; the list is empty if there is no file.

    Raises:
        CheckpointError: The file is damaged.
    """
    file = run / ENVIRONMENT_FILE
    if not file.exists():
        return []
    sessions = read_json(file, _FAULT_REPORT)
    if not isinstance(sessions, list) or not all(isinstance(session, dict) for session in sessions):
        _FAULT_REPORT.raise_(file, "expected a list of objects")
    return sessions


def _environment(processes: Processes, step: int) -> dict[str, Any]:
    import torch  # sessions are read without it

    on_gpu = processes.device.type == "cuda"
    return {
        "from_step": step,
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": without_secrets(sys.argv),
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
