"""What `python -m benchmarks.compatibility` measured: which precisions the libraries run, and which versions were used.

`docs/compatibility.md` shows the same facts as tables.
"""

from __future__ import annotations

import functools
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from runtime.errors import MarError
from runtime.storage.structured_files import FaultReport, read_json_object

FACTS = pathlib.Path(__file__).with_name("compatibility.json")
"""The file that the command writes."""


@functools.cache
def facts() -> Mapping[str, Any]:
    """Return what was measured: `about`, `pins`, `engines`, `operators` and `tensorrt_rtx`."""
    return read_json_object(FACTS, FaultReport(MarError, "install mar-runtime again"))


def running_precisions(backend: str) -> list[str]:
    """Return the precisions in which every engine ran on a backend of the processor, in their measured order."""
    runs: dict[str, bool] = {}
    for result in facts()["engines"]:
        if result["backend"] == backend:
            runs[result["precision"]] = runs.get(result["precision"], True) and "refused" not in result
    return [precision for precision, all_ran in runs.items() if all_ran]


def untested_version(package: str, version: str) -> str | None:
    """Return what is unusual about the version of a package on PyPI, for people; None if it is within its pins."""
    pin = facts()["pins"].get(package)
    if pin is None:
        return None
    if _parts(version) < _parts(pin["oldest"]):
        return f"older than {pin['oldest']}, the oldest that is supported; pip install --upgrade {package}"
    if pin["newest"] is not None and _parts(version) > _parts(pin["newest"]):
        return f"newer than {pin['newest']}, the newest that was tested"
    return None


def _parts(version: str) -> list[int]:
    """The numbers at the beginning of a version; `1.31.1.dev2` is [1, 31, 1]."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    return [int(part) for part in numbers.group().split(".")] if numbers else []
