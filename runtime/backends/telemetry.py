"""Imports of ONNX Runtime, OpenVINO and Ray without the statistics that they send to their makers.

Every import of these libraries in this project is a call of `import_library`.
"""

from __future__ import annotations

import importlib
import os
import pathlib
import sys
from typing import Any

_SETTINGS = {"ORT_DISABLE_TELEMETRY": "1", "RAY_USAGE_STATS_ENABLED": "0"}  # of ONNX Runtime, and of Ray
_OPENVINO_SENDER = "openvino_telemetry"  # OpenVINO has a stub in place of this package, which it uses if it is missing
_OPENVINO_CONSENT = pathlib.Path("intel", "openvino_telemetry")  # in the home folder, written by opt_in_out


def import_library(name: str) -> Any:
    """Import `onnxruntime`, `openvino`, `ray` or a part of it without its telemetry, unless the user has set otherwise.

    Raises:
        ImportError: It is not installed.
        OSError: It does not load.
    """
    disable_telemetry()
    return importlib.import_module(name)


def disable_telemetry() -> None:
    """Switch the telemetry of these libraries off, in this process and in the processes that it starts.

    A user's own setting stays: the environment variables `ORT_DISABLE_TELEMETRY` and `RAY_USAGE_STATS_ENABLED`, and
    OpenVINO's file of consent, `~/intel/openvino_telemetry`. A library that was imported before keeps what it does.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    if "openvino" not in sys.modules and not _user_consents_to_openvino():
        sys.modules[_OPENVINO_SENDER] = None  # type: ignore[assignment]  # an import of it raises ImportError


def _user_consents_to_openvino() -> bool:
    try:
        return (pathlib.Path.home() / _OPENVINO_CONSENT).read_bytes().strip() == b"1"
    except (OSError, RuntimeError):  # there is no such file, or no home folder
        return False
