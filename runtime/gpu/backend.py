"""What all backends on a GPU have in common: one stream, engines on it, and the loop there."""

from __future__ import annotations

import contextlib

from runtime.gpu.cuda import Cuda
from runtime.gpu.current_gpu import current_gpu
from runtime.gpu.device_loop import GpuLoop
from runtime.gpu.engine import GpuEngine, HostEngine
from runtime.model.config import ModelConfig
from runtime.model.engine_spec import ENGINES, Engine
from runtime.sampling.constraints import check_no_kv_cache
from runtime.sampling.plan import PlanLoop


class GpuBackend:
    """A `runtime.backends.Backend` but for `load`, which is to pass every engine through `_called_here`."""

    def __init__(self, library: str, captures: bool) -> None:
        """`library` is its name and version; `captures` whether the loop makes CUDA graphs of its calls."""
        self._gpu = current_gpu()
        self.precisions = self._gpu.precisions
        self._cuda, self._captures = Cuda(), captures
        self._owner = contextlib.ExitStack()  # of all that is made here, the last of it freed first
        self._owner.callback(self._cuda.close)
        self.description = f"{library}, {self._gpu.name}"
        self._engines: dict[str, HostEngine] = {}

    def loop(self, config: ModelConfig) -> PlanLoop | None:
        check_no_kv_cache(config, "the loop on a GPU")
        engines = {name: self._engines[name].on_gpu for name in ENGINES}
        loop = GpuLoop(self._cuda, engines, config, self._captures)
        self._owner.callback(loop.close)
        return loop

    def close(self) -> None:
        with self._owner:  # which frees the rest, whatever of it fails
            if not self._cuda.closed:
                self._cuda.activate()

    def _called_here(self, engine: GpuEngine) -> Engine:
        self._engines[engine.spec.name] = called = HostEngine(self._cuda, engine)
        self._owner.callback(called.close)
        return called
