"""The rates of the machine, and the start-up time of a process."""

from __future__ import annotations

import itertools
import pathlib
import types
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from mar_export.benchmark import machine_probe, startup_time
from runtime.cost.operations import Machine
from runtime.errors import BackendError


def test_rates_are_operations_and_bytes_over_the_median_call(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = types.SimpleNamespace(now=0.0)
    takes = {(4, 8, 16): 2.0, (1, 32, 64): 4.0}
    shapes: list[tuple[int, ...]] = []

    def session(shape: tuple[int, int, int], threads: int) -> Callable[[NDArray[np.float32]], None]:
        assert threads == 3
        durations = itertools.chain([500.0, 100.0], itertools.repeat(takes[shape]))  # the first calls are slow

        def call(x: NDArray[np.float32]) -> None:
            shapes.append(x.shape)
            clock.now += next(durations)

        return call

    monkeypatch.setattr(machine_probe, "_PRODUCT", (4, 8, 16))
    monkeypatch.setattr(machine_probe, "_READ", (1, 32, 64))
    monkeypatch.setattr(machine_probe, "_session", session)
    monkeypatch.setattr(machine_probe, "time", types.SimpleNamespace(perf_counter=lambda: clock.now))
    assert machine_probe.Probe(3).measure() == Machine(operations=2 * 4 * 8 * 16 / 2.0, bytes=4 * 32 * 64 / 4.0)
    assert set(shapes) == {(4, 8), (1, 32)}


def test_products_have_the_shapes_of_the_probe() -> None:
    (found,) = machine_probe._session((3, 40, 5), threads=1)(np.ones((3, 40), np.float32))
    assert found.shape == (3, 5)
    assert (found == found[:1]).all()
    assert 40 * 0.3 < found[0].mean() < 40 * 0.7  # sums of 40 weights between 0 and 1


def test_startup_is_timed_up_to_the_first_backbone_call(small_artifact: pathlib.Path) -> None:
    found = startup_time.startup_seconds(small_artifact, 1, "onnxruntime", "cpu", repeats=1)
    assert set(found) == {"interpreter", "import_runtime", "first_backbone_call"}
    assert min(found["interpreter"], found["first_backbone_call"]) > 0


def test_failed_start_is_one_line(tmp_path: pathlib.Path) -> None:
    with pytest.raises(BackendError, match=r"a fresh process failed.*not an artifact") as caught:
        startup_time.first_call_seconds(tmp_path, 1, "onnxruntime", "cpu")
    assert "\n" not in str(caught.value)
