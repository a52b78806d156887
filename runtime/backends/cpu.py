"""What the backends have in common whose engines run on the processor, called by the loop on the host."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence

from runtime.errors import BackendError
from runtime.model.config import ModelConfig
from runtime.model.engine_spec import Array, EngineSpec, TensorSpec
from runtime.sampling.plan import PlanLoop

# What a library runs a graph by: the inputs of its spec in their order, to the outputs in theirs.
Run = Callable[[Sequence[Array]], Sequence[Array]]
Tensors = list[tuple[str, str, list[int | None]]]  # name, dtype, and shape with None for dynamic axes


class CpuEngine:
    """One loaded graph, called with arrays by name."""

    def __init__(self, spec: EngineSpec, run: Run, told: Callable[[Exception], str]) -> None:
        """`told` says in one line what an exception of `run` means."""
        self._spec, self._told = spec, told
        self._run: Run | None = run

    def __call__(self, **inputs: Array) -> tuple[Array, ...]:
        if self._run is None:
            raise BackendError(f"engine {self._spec.name} was used after its generator was closed")
        try:
            return tuple(self._run([inputs[tensor.name] for tensor in self._spec.inputs]))
        except Exception as error:  # the libraries' exceptions share no narrower base
            raise BackendError(f"engine {self._spec.name} failed in {self._told(error)}") from error

    def close(self) -> None:
        self._run = None


class CpuBackend:
    """A `runtime.backends.Backend` but for `load` and `precisions`."""

    def __init__(self, library: str, threads: int) -> None:
        """`library` is its name and version."""
        self.description = f"{library}, cpu, {threads} thread{'s' * (threads > 1)}"
        self._engines: list[CpuEngine] = []

    def loop(self, config: ModelConfig) -> PlanLoop | None:
        return None

    def close(self) -> None:
        for engine in self._engines:
            engine.close()
        self._engines.clear()

    def _engine(self, spec: EngineSpec, run: Run, told: Callable[[Exception], str]) -> CpuEngine:
        engine = CpuEngine(spec, run, told)
        self._engines.append(engine)
        return engine


def check_tensors(path: pathlib.Path, found: Tensors, expected: tuple[TensorSpec, ...]) -> None:
    """What a graph takes or gives against its spec: names, types and fixed sizes, in order. Raises `BackendError`."""
    wanted = [(spec.name, spec.dtype, fixed_sizes(spec.shape)) for spec in expected]
    if found != wanted:
        raise BackendError(f"{path}: the graph has {found} where its spec has {wanted}; export again")


def fixed_sizes(shape: Sequence[object]) -> list[int | None]:
    """The sizes that are numbers, and None for names and what else stands for a dynamic axis."""
    return [size if isinstance(size, int) else None for size in shape]
