"""Fixtures of `tests.helpers`, available to every test."""

from __future__ import annotations

import gc
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Iterator

import hypothesis
import pytest

from runtime.backends.telemetry import disable_telemetry

# The models here are tiny: a second thread costs them more than it gives. Subprocesses inherit this.
os.environ["OMP_NUM_THREADS"] = "1"

# Processes that a test starts inherit the signals that this one ignores, as it does under nohup.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)

disable_telemetry()  # some tests import these libraries themselves

# How long an example takes on a busy machine proves nothing.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# The files that take longest. They are begun first, so that at the end no worker waits for another. Those of Ray, of
# which only one runs at a time, are apart.
LONGEST = (
    "mar_export/artifact/test_full_size.py",
    "mar_export/onnx_export/test_mixed_precision.py",
    "runtime/workers/test_ray_workers.py",
    "mar_export/artifact/test_nova_export.py",
    "mar_export/artifact/test_uva_export.py",
    "fuzz/test_fuzz.py",
    "docs/test_examples.py",
    "runtime/service/test_ray_app.py",
    "test_packaging.py",
    "training/test_distributed.py",
    "fuzz/test_kills.py",
    "runtime/workers/test_ray_on_this_machine.py",
)


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Give PyTorch one thread again after a test, whose command may have set another number."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def pytest_collection_finish() -> None:
    """Look for garbage more rarely, and not in what was imported: it is a seventh of the time of an export."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the longest files first, and leave the rest as it is."""
    begun = {pathlib.Path(__file__).parent / file: place for place, file in enumerate(LONGEST)}
    items.sort(key=lambda item: begun.get(item.path, len(begun)))


pytest_plugins = [
    "tests.helpers.artifacts",
    "tests.helpers.benchmarks",
    "tests.helpers.browser",
    "tests.helpers.command_line",
    "tests.helpers.damaged_artifacts",
    "tests.helpers.exported_artifacts",
    "tests.helpers.held_places",
    "tests.helpers.nova_artifacts",
    "tests.helpers.quantized_artifacts",
    "tests.helpers.recap_cases",
    "tests.helpers.simulated_gpu",
    "tests.helpers.step_search",
    "tests.helpers.studies",
    "tests.helpers.tensorrt_builds",
    "tests.helpers.train_command",
]
