"""Freed memory stays with a training process."""

from __future__ import annotations

import subprocess
import sys

import pytest

_PAGES = 64 * 2**20 // 4096

_COUNT_FAULTS = """
import resource
import numpy as np
from training.loop.memory import keep_freed_memory

def use_and_free():
    [np.ones(2**20, np.uint8) for _ in range(64)]

{prepare}
use_and_free()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use_and_free()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_blocks_that_are_used_again_are_no_fresh_pages_of_the_kernel() -> None:
    def faults(prepare: str) -> int:
        program = [sys.executable, "-c", _COUNT_FAULTS.format(prepare=prepare)]
        return int(subprocess.run(program, check=True, capture_output=True, text=True).stdout)

    assert faults("keep_freed_memory()") < _PAGES / 10
    assert faults("") > _PAGES / 2  # what glibc does without it
