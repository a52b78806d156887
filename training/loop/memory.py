"""How a training process keeps its memory."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # parameters of mallopt, from glibc's malloc.h
_NEVER = -1


def keep_freed_memory() -> None:
    """Let freed memory stay with the process, for the tensors of the next step.

    By default, glibc returns large blocks to the kernel, and each step takes them again as fresh pages of zeros, which
    is a tenth of a step of a small model. Where the C library is another one, nothing changes.

    Tensors of other sizes in each step leave gaps that no later tensor fits into, so a run trims from time to time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
