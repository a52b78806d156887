"""The most memory that this process has had."""

from __future__ import annotations

import pathlib
import resource


def peak_memory_bytes() -> int:
    """Return the peak of the resident memory of this process, in bytes."""
    try:
        status = pathlib.Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # getrusage is wrong here: its peak survives exec, so it would be the parent's where that is larger.
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
