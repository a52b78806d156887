"""Calls in new processes: any script may make them, failures end them, and nothing of them outlives their parent."""

from __future__ import annotations

import math
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from runtime.errors import BackendError
from training.evaluation.worker_processes import run_in_processes

UNGUARDED = """
import math
from training.evaluation.worker_processes import run_in_processes
print("the main part runs")
results = {}
run_in_processes(math.sqrt, [1.0, 4.0, 9.0], 2, results.__setitem__)
print(sorted(results.items()))
"""


def test_a_script_needs_no_guard(tmp_path: pathlib.Path) -> None:
    (tmp_path / "script.py").write_text(UNGUARDED)
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout == "the main part runs\n[(1.0, 1.0), (4.0, 2.0), (9.0, 3.0)]\n"


def test_a_failure_is_raised_here_and_ends_the_others() -> None:
    results: dict[float, float] = {}
    with pytest.raises(ValueError, match="math domain error"):
        run_in_processes(math.sqrt, [-1.0, 4.0, 4.0, 4.0], 1, results.__setitem__)
    assert results == {}


def test_a_killed_process_is_one_line() -> None:
    with pytest.raises(BackendError, match="was killed; it may need more memory"):
        run_in_processes(os._exit, [1], 1, lambda status, result: None)


INTERRUPTED = """
import os, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from training.evaluation.worker_processes import run_in_processes
def started(argument, result):
    os.killpg(0, signal.SIGINT)
    time.sleep(60)
try:
    run_in_processes(time.sleep, [0, 600, 600], 2, started)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_ctrl_c_reaches_all_processes_of_a_terminal_and_only_the_first_one_speaks() -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, check=False, start_new_session=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")


ORPHANED = """
import os, signal, time
from training.evaluation.worker_processes import run_in_processes
run_in_processes(eval, ["__import__('os').getpid()", "__import__('time').sleep(1)"], 1,
                 lambda argument, result: (print(result, flush=True), os.kill(os.getpid(), signal.SIGKILL)))
"""


def test_a_worker_ends_after_its_call_when_its_parent_was_killed() -> None:
    done = subprocess.run([sys.executable, "-c", ORPHANED], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL  # `run` has waited until the worker closed its outputs too
    assert int(done.stdout)
