"""The base of all backends that run on a GPU: one stream, the engines on it, and the loop."""

from __future__ import annotations

import contextlib

from runtime.gpu.cuda import Cuda
from runtime.gpu.current_gpu import current_gpu
from runtime.gpu.device_loop import GpuLoop
from runtime.gpu.engine import GpuEngine, HostEngine
from runtime.model.engine_spec import Engine
from runtime.model.families import GPU_LOOP, check_supported, loop_specs
from runtime.model.family_config import FamilyConfig
from runtime.sampling.plan import PlanLoop


class GpuBackend:
    """Everything that a `runtime.backends.Backend` on a GPU needs, except `load`.

    `load` must return every engine through `_host_engine`, so that the loop finds it and `close` frees it.

    Attributes:
        description: The library, its version and the name of the GPU.
        precisions: The precisions in which the GPU has matrix products.
    """

    def __init__(self, library: str, captures: bool) -> None:
        """Open the first GPU.

        Args:
            library: Name and version of the library, for people.
            captures: Whether the loop captures its calls as CUDA graphs.

        Raises:
            BackendError: There is no GPU, or the driver reports a failure.
        """
        self._gpu = current_gpu()
        self.precisions = self._gpu.precisions
        self._cuda, self._captures = Cuda(), captures
        self._owner = contextlib.ExitStack()  # frees what was created last first
        self._owner.callback(self._cuda.close)
        self.description = f"{library}, {self._gpu.name}"
        self._engines: dict[str, HostEngine] = {}

    def loop(self, config: FamilyConfig) -> PlanLoop | None:
        """Create the loop that keeps every array on the GPU. All engines of the loop must be loaded.

        Raises:
            RequestError: The model has causal attention, which this loop does not support.
        """
        check_supported(config, GPU_LOOP)
        engines = {name: self._engines[name].on_gpu for name in loop_specs(config, self._engines)}
        loop = GpuLoop(self._cuda, engines, config, self._captures)
        self._owner.callback(loop.close)
        return loop

    def close(self) -> None:
        """Free the loop, the engines and the stream. It frees the others even if one of them fails."""
        with self._owner:
            if not self._cuda.closed:
                self._cuda.activate()

    def _host_engine(self, engine: GpuEngine) -> Engine:
        """Keep an engine for the loop and for `close`, and return what calls it with arrays on the host."""
        self._engines[engine.spec.name] = host_engine = HostEngine(self._cuda, engine)
        self._owner.callback(host_engine.close)
        return host_engine
