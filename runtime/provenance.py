"""What produced a figure or a model: the commit of this code, and the processor it ran on."""

from __future__ import annotations

import pathlib
import platform
import subprocess

UNKNOWN_COMMIT = "unknown"

_CHECKOUT = pathlib.Path(__file__).resolve().parents[1]


def commit() -> str:
    """Return the commit of the checkout that this code runs from, as 12 hexadecimal digits.

    A `+` follows where tracked files differ from that commit. The result is `UNKNOWN_COMMIT` where the package runs
    from no checkout, even if it is installed inside another project's, and where git is missing or fails.
    """
    if not (_CHECKOUT / ".git").exists():
        return UNKNOWN_COMMIT
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            cwd=_CHECKOUT,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN_COMMIT
    return described.stdout.strip() or UNKNOWN_COMMIT


def processor_name() -> str:
    """Return the model name of the CPU, such as `AMD EPYC 7B13`, or its architecture where the system has no name."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
