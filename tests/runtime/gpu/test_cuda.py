"""One stream, memory and graphs of the GPU, and what becomes of every driver call that fails."""

from __future__ import annotations

import contextlib
import pathlib

import numpy as np
import pytest

from runtime.errors import BackendError
from runtime.generator import Generator
from runtime.gpu.clock import StageClock
from runtime.gpu.cuda import Cuda
from tests.fakes.simulated_cuda import SimulatedCuda
from tests.helpers.driver_calls import CALLS, LABELS, REQUEST, SHARED_ONLY, Scenario, error_of
from tests.helpers.simulated_gpu import left_on

STATUS = 7
FREED_BY = {  # what is not freed if a call fails
    "cuMemFree_v2": "device",
    "cuMemFreeHost": "host",
    "cuStreamDestroy_v2": "stream",
    "cuGraphDestroy": "graph",
    "cuGraphExecDestroy": "executable",
    "cuDevicePrimaryCtxRelease_v2": "context",
    "cuEventDestroy_v2": "event",
}


def named(function: str) -> str:
    """The name of a function in error messages."""
    return function.partition("_v")[0]


@pytest.fixture(scope="module")
def expected(golden_artifacts: dict[str, pathlib.Path]) -> bytes:
    """The latents that the host generates."""
    with Generator.load(golden_artifacts["small"], threads=1) as host:
        return host.generate(LABELS, **REQUEST).latents.tobytes()


@pytest.fixture(scope="module")
def driver_calls(built_artifacts: dict[str, pathlib.Path]) -> dict[bool, dict[str, list[str]]]:
    """The calls of the driver in each phase if none fails, by whether processor and GPU share their memory."""
    driver_calls: dict[bool, dict[str, list[str]]] = {}
    for shared in (False, True):
        cuda = SimulatedCuda(shared)
        with pytest.MonkeyPatch.context() as patch:
            scenario, driver_calls[shared] = Scenario(built_artifacts["small"], patch, cuda), {}
            for phase in Scenario.phases:
                before = len(cuda.history)
                getattr(scenario, phase)()
                driver_calls[shared][phase] = cuda.history[before:]
    return driver_calls


@pytest.mark.parametrize("lasting", [True, False], ids=["from then on", "once"])
@pytest.mark.parametrize("function", [name for name in CALLS if name != "cuGetErrorString"])
def test_a_failing_call_is_one_error_and_everything_that_can_be_freed_is_freed(
    built_artifacts: dict[str, pathlib.Path],
    driver_calls: dict[bool, dict[str, list[str]]],
    expected: bytes,
    function: str,
    lasting: bool,
) -> None:
    """The first and the last call of every phase fail, in turn."""
    shared = function == SHARED_ONLY
    counts = {phase: driver_calls[shared][phase].count(function) for phase in Scenario.phases}
    cases = [(phase, calls) for phase, count in counts.items() for calls in sorted({0, count - 1}) if count]
    assert cases, "never called"
    message = f"{named(function)} failed: error {STATUS} ({STATUS})"
    for case in cases:
        broken, calls = case
        cuda = SimulatedCuda(shared)
        with pytest.MonkeyPatch.context() as patch:
            scenario = Scenario(built_artifacts["small"], patch, cuda)
            for phase in Scenario.phases[: Scenario.phases.index(broken)]:
                getattr(scenario, phase)()
            cuda.failing, cuda.lasting = {function: (calls, STATUS)}, lasting
            assert error_of(getattr(scenario, broken)) == message, case
            if not lasting and broken not in ("load", "close"):
                scenario.call()
                assert scenario.generate() == expected, case
            end = error_of(scenario.close)
            assert end in ((None, message) if lasting else (None,)), case
            left = left_on(cuda)
        kind = FREED_BY.get(function)
        assert set(left) <= {kind}, case
        assert len(left) == (kind is not None) or lasting, case


# Graphs.


@pytest.fixture
def opened(cuda: SimulatedCuda) -> Cuda:
    return Cuda()


def broken_work() -> None:
    raise BackendError("an engine failed")


def test_a_failure_while_capturing_ends_the_capture_and_leaves_no_graph(opened: Cuda, cuda: SimulatedCuda) -> None:
    with contextlib.ExitStack() as owner:
        source, to = (opened.memory(8, owner) for _ in range(2))

        def copies_then_fails() -> None:
            opened.copy(to, source, 8)
            broken_work()

        for work in (broken_work, copies_then_fails):
            before = sorted(cuda.leaks)
            with pytest.raises(BackendError, match=r"^an engine failed$"):
                opened.capture(work, owner)
            assert sorted(cuda.leaks) == before
        opened.synchronize()  # which a stream that is captured refuses
        cuda.on_device(source, 8)[...] = 1
        replay = opened.capture(lambda: opened.copy(to, source, 8), owner)
        assert cuda.on_device(to, 8).tolist() == [0xA5] * 8  # captured is not done
        for value in (1, 2):
            cuda.on_device(source, 8)[...] = value
            replay()
            opened.synchronize()
            assert cuda.on_device(to, 8).tolist() == [value] * 8
    opened.close()
    assert cuda.leaks == []


def test_the_error_is_the_one_of_the_work_not_of_the_end_of_its_capture(opened: Cuda, cuda: SimulatedCuda) -> None:
    """As where the driver itself gave the capture up: then it has no graph to give."""
    cuda.failing["cuStreamEndCapture"] = (0, 901)
    with contextlib.ExitStack() as owner, pytest.raises(BackendError, match=r"^an engine failed$"):
        opened.capture(broken_work, owner)
    opened.close()
    assert cuda.leaks == []


# Memory.


def test_a_pinned_buffer_begins_with_zeros_on_the_gpu_too(opened: Cuda, cuda: SimulatedCuda) -> None:
    with contextlib.ExitStack() as owner:
        array = opened.pinned_buffer((3, 5), np.int64, owner)
        assert not array.host.any()
        array.host[...] = 1  # before the stream has come to it
        opened.synchronize()
        assert not cuda.on_device(array.address, array.host.nbytes).any()
        array.host[...] = np.arange(15).reshape(3, 5)
        opened.upload(array)
        opened.synchronize()
        assert cuda.on_device(array.address, 120).view(np.int64).tolist() == list(range(15))
        cuda.on_device(array.address, 120).view(np.int64)[...] = 7
        opened.download(array)
        opened.synchronize()
        assert (array.host == 7).all()
    assert sorted(cuda.leaks) == ["context", "stream"]
    opened.close()


def test_an_empty_array_has_an_address_and_is_never_copied(opened: Cuda, cuda: SimulatedCuda) -> None:
    with contextlib.ExitStack() as owner:
        array = opened.pinned_buffer((0, 4), np.float32, owner)
        assert array.host.shape == (0, 4)
        assert array.address
        opened.upload(array)
        opened.copy(array.address, array.address, 0)
        opened.download(array)
        opened.synchronize()
        assert not [name for name in cuda.history if name.startswith("cuMemcpy")]
    opened.close()


def test_rows_are_copied_with_their_pitch_and_the_bytes_between_them_stay(opened: Cuda, cuda: SimulatedCuda) -> None:
    with contextlib.ExitStack() as owner:
        source, to = (opened.memory(30, owner) for _ in range(2))
        cuda.on_device(source, 30)[...] = np.arange(30)
        opened.clear(to, 30)
        opened.copy_rows(to + 1, 7, source + 2, 10, 3, 3)
        opened.synchronize()
        found = np.zeros(30, np.uint8)
        for row in range(3):
            found[1 + 7 * row : 4 + 7 * row] = np.arange(2 + 10 * row, 5 + 10 * row)
        assert cuda.on_device(to, 30).tolist() == found.tolist()
    opened.close()


def test_a_failure_to_create_the_stream_leaves_nothing_allocated(cuda: SimulatedCuda) -> None:
    cuda.failing["cuStreamCreate"] = (0, 2)
    with pytest.raises(BackendError, match=r"^cuStreamCreate failed: error 2 \(2\)$"):
        Cuda()
    assert cuda.leaks == []


def test_stages_are_timed_by_the_work_on_the_stream_between_marks(opened: Cuda, cuda: SimulatedCuda) -> None:
    with contextlib.ExitStack() as owner:
        address = opened.memory(64, owner)
        clock = StageClock(opened)
        clock.mark("before")
        for stage, operations in (("a", 3), ("b", 1), ("a", 2)):
            for _ in range(operations):
                opened.clear(address, 8)
            clock.mark(stage)
        opened.synchronize()
        assert clock.seconds() == pytest.approx({"a": (3 + 1 + 2 + 1) / 1e3, "b": (1 + 1) / 1e3})  # and the mark itself
        assert clock.seconds() == {}
        assert opened.memory_used() == 64
    opened.close()
    assert cuda.leaks == []
