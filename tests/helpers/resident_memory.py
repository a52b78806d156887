"""How much of the files that this process has mapped is in its memory, by the account of the kernel."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable


def resident_bytes(files: Iterable[pathlib.Path]) -> int:
    names, counted, size = {os.fspath(file.resolve()) for file in files}, False, 0
    for line in pathlib.Path("/proc/self/smaps").read_text().splitlines():
        key, *values = line.split(maxsplit=5)
        if not key.endswith(":"):
            counted = len(values) == 5 and values[-1].removesuffix(" (deleted)") in names
        elif counted and key == "Rss:":
            size += 1024 * int(values[0])
    return size
