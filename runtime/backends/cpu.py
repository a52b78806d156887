"""The base of all backends whose engines run on the processor, where the loop on the host calls them."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Sequence

from runtime.checks import pluralize
from runtime.errors import BackendError
from runtime.model.engine_spec import Array, EngineSpec, Shapes, TensorSpec
from runtime.model.family_config import FamilyConfig
from runtime.sampling.plan import PlanLoop

RunGraph = Callable[[Sequence[Array]], Sequence[Array]]
"""Runs a graph: takes its inputs in the order of its spec, and returns its outputs in the order of its spec."""

Tensors = list[tuple[str, str, list[int | None]]]
"""The inputs or outputs of a graph: name, numpy dtype, and shape with None for every dynamic axis."""

_SHAPES_KEPT = 1024  # sets of input shapes of an engine whose output shapes are computed once


class CpuEngine:
    """A `runtime.model.engine_spec.Engine` that runs one loaded graph."""

    def __init__(self, spec: EngineSpec, run: RunGraph, describe: Callable[[Exception], str]) -> None:
        """Create an engine.

        Args:
            spec: Its inputs and outputs.
            run: Runs the graph.
            describe: Describes an exception that `run` raised in one line.
        """
        self._spec, self._describe = spec, describe
        self._run: RunGraph | None = run
        self._output_shapes = functools.lru_cache(_SHAPES_KEPT)(spec.output_shapes)

    def __call__(self, **inputs: Array) -> tuple[Array, ...]:
        """Run the graph on every input of its spec by name, and return its outputs in the spec's order.

        Raises:
            BackendError: The library failed, an output has a wrong shape, or the engine was closed.
        """
        if self._run is None:
            raise BackendError(f"engine {self._spec.name} was used after its generator was closed")
        try:
            arrays = [inputs[tensor.name] for tensor in self._spec.inputs]
            outputs = tuple(self._run(arrays))
            _check_shapes(self._spec, _shapes(outputs), self._output_shapes(_shapes(arrays)))
            return outputs
        except Exception as error:  # the libraries' exceptions share no narrower base
            raise BackendError(f"engine {self._spec.name} failed in {self._describe(error)}") from error

    def close(self) -> None:
        """Free the graph."""
        self._run = None


class CpuBackend:
    """Everything that a `runtime.backends.Backend` on a processor needs, except `load` and `precisions`.

    Attributes:
        description: The library, its version and the number of threads.
    """

    def __init__(self, library: str, threads: int) -> None:
        """Create a backend without engines.

        Args:
            library: Name and version of the library, for people.
            threads: The number of processor threads that it uses.
        """
        self.description = f"{library}, cpu, {pluralize(threads, 'thread')}"
        self._engines: list[CpuEngine] = []

    def loop(self, config: FamilyConfig) -> PlanLoop | None:
        """Return None: the loop on the host calls the engines."""
        return None

    def close(self) -> None:
        """Free all loaded engines."""
        for engine in self._engines:
            engine.close()
        self._engines.clear()

    def _engine(self, spec: EngineSpec, run: RunGraph, describe: Callable[[Exception], str]) -> CpuEngine:
        engine = CpuEngine(spec, run, describe)
        self._engines.append(engine)
        return engine


def _shapes(arrays: Sequence[Array]) -> Shapes:
    return tuple(array.shape for array in arrays)


def _check_shapes(spec: EngineSpec, found: Shapes, expected: Shapes) -> None:
    """Check the shapes of the outputs of an engine: numpy would let a loop go on with other ones.

    Raises:
        ValueError: Some differ; the message has the first of them.
    """
    if found == expected:
        return
    for tensor, shape, right in zip(spec.outputs, found, expected, strict=True):
        if shape != right:
            raise ValueError(f"it gives {tensor.name} {list(shape)} where {list(right)} is right; use another backend")


def check_tensors(path: pathlib.Path, found: Tensors, expected: tuple[TensorSpec, ...]) -> None:
    """Check that the inputs or outputs of a graph match its spec: names, dtypes and fixed sizes, in order.

    Raises:
        BackendError: They differ.
    """
    specified = [(spec.name, spec.dtype, fixed_sizes(spec.shape)) for spec in expected]
    if found != specified:
        raise BackendError(f"{path}: the graph has {found} where its spec has {specified}; export again")


def fixed_sizes(shape: Sequence[object]) -> list[int | None]:
    """Return a shape with None for every axis whose size is not a number."""
    return [size if isinstance(size, int) else None for size in shape]
