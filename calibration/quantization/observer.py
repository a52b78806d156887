"""Engines that tell what passes into their products while real images are drawn."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir
import onnxruntime

from calibration.quantization.quantizable_layers import layers
from runtime.model.engine_spec import BACKBONE, CONDITIONING, DENOISE, Array, EngineSpec

# (layer as "engine/layer", activation, iteration, steps of the diffusion chain that its rows are of)
Watch = Callable[[str, Array, int, range], None]


class Observer:
    """Wraps the engines of a loop; knows from the order of calls which iteration and steps they are of."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._iteration, self._step = -1, 0
        self._steps = range(0)

    def begin(self) -> None:
        """An image begins."""
        self._iteration = -1

    def observed(self, spec: EngineSpec, graph: pathlib.Path, work: pathlib.Path, threads: int) -> Any:
        """The engine of `graph` with all its layers watched; `work` is a folder for its copy."""
        session, activations = _with_activations(graph, work / graph.name, threads)
        outputs = [tensor.name for tensor in spec.outputs]

        def engine(**inputs: Array) -> tuple[Array, ...]:
            steps = self._place(spec.name, inputs)
            asked = [name for name in dict.fromkeys([*outputs, *activations.values()]) if name not in inputs]
            values = {**inputs, **dict(zip(asked, session.run(asked, inputs), strict=True))}
            for layer, activation in activations.items():
                self._watch(f"{spec.name}/{layer}", values[activation], self._iteration, steps)
            return tuple(values[name] for name in outputs)

        return engine

    def _place(self, engine: str, inputs: Mapping[str, Array]) -> range:
        """Note where in the image this call is; the steps that it is of."""
        if engine == BACKBONE:
            self._iteration, self._step, self._steps = self._iteration + 1, 0, range(0)
            return range(0)
        if engine == CONDITIONING:
            first = self._steps.stop
            self._steps = range(first, first + len(inputs["timesteps"]))
            return self._steps
        assert engine == DENOISE
        self._step += 1
        return range(self._step - 1, self._step)


def _with_activations(graph: pathlib.Path, copy: pathlib.Path, threads: int) -> tuple[Any, dict[str, str]]:
    """A session of the graph that also gives what its layers are fed, and the names of that by layer."""
    model = ir.load(graph)
    activations = {layer.name: layer.activation for layer in layers(model.graph)}
    own = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
    for value in activations.values():
        if value.name not in own:
            model.graph.outputs.append(value)
    ir.save(model, copy, external_data=f"{copy.name}.data")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.enable_mem_pattern = False
    session = onnxruntime.InferenceSession(str(copy), options, providers=["CPUExecutionProvider"])
    return session, {layer: str(value.name) for layer, value in activations.items()}
