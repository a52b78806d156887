"""Fixtures of `tests.helpers`, available to every test."""

from __future__ import annotations

import os
import signal
import threading

from runtime.backends.telemetry import disable_telemetry

# The models here are tiny: a second thread costs them more than it gives. Subprocesses inherit this.
os.environ["OMP_NUM_THREADS"] = "1"

# Processes that a test starts inherit the signals that this one ignores, as it does under nohup.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)

disable_telemetry()  # some tests import these libraries themselves

pytest_plugins = [
    "tests.helpers.artifacts",
    "tests.helpers.benchmarks",
    "tests.helpers.browser",
    "tests.helpers.command_line",
    "tests.helpers.damaged_artifacts",
    "tests.helpers.exported_artifacts",
    "tests.helpers.quantized_artifacts",
    "tests.helpers.simulated_gpu",
    "tests.helpers.step_search",
    "tests.helpers.studies",
    "tests.helpers.tensorrt_builds",
    "tests.helpers.train_command",
]
