"""What a library of `benchmarks.peers` is given and what it returns, and engines of libraries with fixed sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from runtime.model.engine_spec import Array, Engine, EngineSpec, Shapes


@dataclasses.dataclass(frozen=True)
class Work:
    """What runs.

    Attributes:
        peer: A key of `benchmarks.peers_worker.PEERS`.
        artifact: The folder of the artifact.
        model: The size of the model, whose random weights the artifact has.
        threads: The number of processor threads.
        folder: An existing folder for what a library compiles, which is used again.
    """

    peer: str
    artifact: str
    model: str
    threads: int
    folder: str


Load = Callable[[EngineSpec], Engine]
"""Loads an engine by its spec."""


def compiled_by_sizes(spec: EngineSpec, load: Callable[[Mapping[str, int]], Engine]) -> Engine:
    """Return an engine of a library that compiles for fixed sizes: the first call with new sizes compiles.

    Args:
        spec: The engine.
        load: Compiles the engine for a size of each dynamic axis.
    """
    engines: dict[Shapes, Engine] = {}

    def call(**inputs: Array) -> tuple[Array, ...]:
        shapes = tuple(inputs[tensor.name].shape for tensor in spec.inputs)
        if shapes not in engines:
            engines[shapes] = load(spec.axes(shapes))
        return engines[shapes](**inputs)

    return call


def sizes_name(spec: EngineSpec, sizes: Mapping[str, int]) -> str:
    """Return a file name for an engine at fixed sizes, such as `denoise-N4-GN8`."""
    return "-".join([spec.name, *(f"{axis}{size}" for axis, size in sizes.items())])
