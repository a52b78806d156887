"""Engines that report the activation of every quantizable layer while they generate images."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir

from calibration.quantization.quantizable_layers import quantizable_layers
from runtime.backends.telemetry import import_library
from runtime.model.engine_spec import BACKBONE, CONDITIONING, DENOISE, Array, EngineSpec
from runtime.model.himar_engines import BACKBONE2, CONDITIONING2, DENOISE2
from runtime.model.recap_engines import RECAP_ENGINES

OnActivation = Callable[[str, Array, int, range], None]
"""Called with a layer's name ("engine/layer"), its activation, the iteration and the diffusion steps.

The engine is the one whose weights the layer has, so that graphs with the same weights have layers in common.

The steps are those that the rows of the activation belong to; the range is empty for the backbone.
"""


class ActivationObserver:
    """Wraps the engines of the sampling loop and reports what their layers multiply.

    Engines do not know which iteration and diffusion step they run for. The observer counts their calls instead,
    which always come in the same order. In the first iteration the backbone may be called once for each class.
    """

    def __init__(self, on_activation: OnActivation) -> None:
        """`on_activation` is called for every layer at every call of an engine."""
        self._on_activation = on_activation
        self._iteration, self._step = -1, 0
        self._steps = range(0)

    def begin_image(self) -> None:
        """Count iterations from 0 again. Call this before each batch of images."""
        self._iteration = -1

    def wrap(self, spec: EngineSpec, graph: pathlib.Path, work: pathlib.Path, threads: int) -> Any:
        """Return an engine that runs `graph` on the CPU and reports its activations.

        Args:
            spec: The inputs and outputs of the engine.
            graph: Its ONNX file.
            work: An existing folder, for a copy of the graph that has the activations as outputs.
            threads: Number of processor threads.
        """
        session, activations = _session_with_activations(graph, work / graph.name, threads)
        outputs, owner = [tensor.name for tensor in spec.outputs], spec.weights_of or spec.name

        def engine(**inputs: Array) -> tuple[Array, ...]:
            steps = self._advance(spec.name, inputs)
            fetched = [name for name in dict.fromkeys([*outputs, *activations.values()]) if name not in inputs]
            values = {**inputs, **dict(zip(fetched, session.run(fetched, inputs), strict=True))}
            for layer, activation in activations.items():
                self._on_activation(f"{owner}/{layer}", values[activation], self._iteration, steps)
            return tuple(values[name] for name in outputs)

        return engine

    def _advance(self, engine: str, inputs: Mapping[str, Array]) -> range:
        """Count this call of an engine; return the diffusion steps that it is for."""
        if engine in (BACKBONE, BACKBONE2, *RECAP_ENGINES):
            begins = engine != BACKBONE2 and not len(inputs["tokens"])
            self._iteration = 0 if begins else self._iteration + 1
            self._step, self._steps = 0, range(0)
            return range(0)
        if engine in (CONDITIONING, CONDITIONING2):
            first = self._steps.stop
            self._steps = range(first, first + len(inputs["timesteps"]))
            return self._steps
        assert engine in (DENOISE, DENOISE2)
        self._step += 1
        return range(self._step - 1, self._step)


def _session_with_activations(graph: pathlib.Path, copy: pathlib.Path, threads: int) -> tuple[Any, dict[str, str]]:
    """Return a session of `graph` that also outputs its layers' activations, and their names by layer."""
    model = ir.load(graph)
    activations = {layer.name: layer.activation for layer in quantizable_layers(model.graph)}
    existing = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
    for value in activations.values():
        if value.name not in existing:
            model.graph.outputs.append(value)
    ir.save(model, copy, external_data=f"{copy.name}.data")
    onnxruntime = import_library("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.enable_mem_pattern = False
    session = onnxruntime.InferenceSession(str(copy), options, providers=["CPUExecutionProvider"])
    return session, {layer: str(value.name) for layer, value in activations.items()}
