"""What a generator does on a GPU from loading to closing, and the functions of the driver that the runtime calls."""

from __future__ import annotations

import ast
import contextlib
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from runtime.errors import BackendError
from runtime.generator import Generator
from runtime.gpu import cuda as cuda_module
from runtime.gpu.clock import StageClock
from tests.fakes.simulated_cuda import SimulatedCuda
from tests.helpers.simulated_gpu import install_cuda, install_tensorrt

LABELS = [2, 0]
REQUEST: dict[str, Any] = {"iterations": 2, "diffusion_steps": 2, "cfg_scale": 2.0}
SHARED_ONLY = "cuMemHostGetDevicePointer_v2"


def driver_calls() -> list[str]:
    """The functions that the runtime calls, read from its source."""
    names = set()
    for path in pathlib.Path(cuda_module.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            value = node.value if isinstance(node, ast.Constant) else getattr(node, "attr", None)
            if isinstance(value, str) and re.fullmatch(r"cu[A-Z]\w+", value):
                names.add(value)
    return sorted(names)


CALLS = driver_calls()


class Scenario:
    """A generator from its beginning to its end, phase by phase."""

    phases = ("load", "generate", "replay", "call", "timed", "close")

    def __init__(self, path: pathlib.Path, patch: pytest.MonkeyPatch, cuda: SimulatedCuda) -> None:
        install_cuda(patch, cuda)
        install_tensorrt(patch, cuda)
        self._path, self._close = path, contextlib.ExitStack()

    def load(self) -> None:
        self._generator = self._close.enter_context(Generator.load(self._path, backend="tensorrt"))

    def generate(self) -> bytes:
        return self._generator.generate(LABELS, **REQUEST).latents.tobytes()

    replay = generate

    def call(self) -> None:
        z = np.zeros((1, self._generator.manifest.model.z_channels), np.float32)
        self._generator.engines.conditioning(z=z, timesteps=np.ones(1, np.float32))

    def timed(self) -> None:
        loop: Any = self._generator.loop
        loop.clock = clock = StageClock(loop.cuda)
        try:
            self.generate()
        except BackendError:
            with contextlib.suppress(BackendError):
                clock.seconds()  # which gives the marks back
            raise
        finally:
            loop.clock = None
        seconds = clock.seconds()
        assert seconds.keys() == {"upload", "backbone", "head"}
        loop.cuda.memory_used()

    def close(self) -> None:
        self._close.close()


def error_of(work: Callable[[], Any]) -> str | None:
    try:
        work()
    except BackendError as error:
        return str(error)
    return None
