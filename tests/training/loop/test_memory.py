"""Freed memory stays with a training process, but for what lies between tensors."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

from tests.helpers.tiny_runs import one_thread, start, write_idx_dataset
from training.loop import training_loop

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


_GROW = """
import pathlib
import numpy as np
from training.checkpoints.mapped_weights import trim
from training.loop.memory import keep_freed_memory

def resident():
    return int(next(line.split()[1] for line in pathlib.Path("/proc/self/status").open() if line.startswith("RssAnon")))

keep_freed_memory()
before = resident()
blocks = [np.ones(2**20, np.uint8) for _ in range(128)]
kept = blocks[::8]
del blocks
gaps = resident()
trim()
print(before, gaps, resident(), len(kept))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_trimming_gives_back_what_lies_free_between_tensors() -> None:
    printed = subprocess.run([sys.executable, "-c", _GROW], check=True, capture_output=True, text=True).stdout
    before, gaps, after, kept = map(int, printed.split())
    assert gaps - before > 120 * 1024  # KiB
    assert after - before < (kept + 4) * 1024


def test_a_run_trims_at_regular_steps(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    with one_thread():
        trainer = start(tmp_path / "run", write_idx_dataset(tmp_path / "data"), 5)
        monkeypatch.setattr(training_loop, "_TRIM_EVERY", 2)
        monkeypatch.setattr(training_loop, "trim", lambda: steps.append(trainer.step))
        trainer.train()
    assert steps == [2, 4]
