"""Imports of ONNX Runtime and OpenVINO without the statistics that both send to their makers.

Every import of these libraries in this project is a call of `import_library`.
"""

from __future__ import annotations

import importlib
import os
import pathlib
import sys
from typing import Any

_ONNXRUNTIME_SETTING = "ORT_DISABLE_TELEMETRY"
_OPENVINO_SENDER = "openvino_telemetry"  # OpenVINO has a stub in place of this package, which it uses if it is missing
_OPENVINO_CONSENT = pathlib.Path("intel", "openvino_telemetry")  # in the home folder, written by opt_in_out


def import_library(name: str) -> Any:
    """Import `onnxruntime` or `openvino` with its telemetry off, unless the user has set otherwise.

    Raises:
        ImportError: It is not installed.
        OSError: It does not load.
    """
    disable_telemetry()
    return importlib.import_module(name)


def disable_telemetry() -> None:
    """Switch the telemetry of ONNX Runtime and OpenVINO off, in this process and in the processes that it starts.

    A user's own setting stays: the environment variable `ORT_DISABLE_TELEMETRY`, and OpenVINO's file of consent,
    `~/intel/openvino_telemetry`. A library that was imported before keeps what it does.
    """
    os.environ.setdefault(_ONNXRUNTIME_SETTING, "1")
    if "openvino" not in sys.modules and not _user_consents_to_openvino():
        sys.modules[_OPENVINO_SENDER] = None  # type: ignore[assignment]  # an import of it raises ImportError


def _user_consents_to_openvino() -> bool:
    try:
        return (pathlib.Path.home() / _OPENVINO_CONSENT).read_bytes().strip() == b"1"
    except (OSError, RuntimeError):  # there is no such file, or no home folder
        return False
