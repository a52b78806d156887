"""The engines of an artifact with some of their layers in low precision, whichever those are."""

from __future__ import annotations

import abc
import pathlib
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from calibration.quantization.qdq_graph import quantize_graph
from calibration.quantization.quantizable_layers import layers
from calibration.quantization.scales import Scale, activation_scale
from calibration.quantization.smoothing import divide_modulation, modulated_block, smooths
from calibration.quantization.statistics import Statistics
from calibration.quantization.weight_only import quantize_weights
from runtime.artifact.artifact_folder import Artifact
from runtime.errors import CalibrationError
from runtime.model.engine_spec import CONDITIONING, DENOISE
from runtime.model.low_precision import stays_in_float32

Written = dict[str, tuple[pathlib.Path, str]]  # engine -> graph and its precision


class Form(abc.ABC):
    """`layers`, as "engine/layer", are those that can be quantized."""

    def __init__(self, artifact: Artifact, engines: Sequence[str], precision: str) -> None:
        self.artifact, self.precision = artifact, precision
        self.layers = [f"{engine}/{layer}" for engine in engines for layer in _quantizable(artifact, engine)]

    @abc.abstractmethod
    def write(self, folder: pathlib.Path, chosen: Collection[str]) -> Written:
        """Write the engines that `chosen`, some of `layers`, change to `folder`, under their own names."""

    def _graph(self, engine: str, folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
        """Where the graph of an engine is read, and where it goes."""
        return self.artifact.engine_file(engine), folder / self.artifact.manifest.engines[engine]


class QuantizedProducts(Form):
    """Activations and weights in int8 or fp8, by statistics of the activations."""

    def __init__(self, artifact: Artifact, engines: Sequence[str], precision: str, statistics: Statistics) -> None:
        super().__init__(artifact, engines, precision)
        self.scales: dict[str, Scale] = {}
        for engine in engines:
            for layer in layers(ir.load(artifact.engine_file(engine)).graph):
                name = f"{engine}/{layer.name}"
                if name not in self.layers:
                    continue
                if name not in statistics.layers:
                    raise CalibrationError(f"the statistics know nothing of {name}; calibrate again")
                # fp8 has exponents of its own: there is little to even out.
                smooth = precision == "int8" and smooths(engine, layer)
                self.scales[name] = activation_scale(statistics.layers[name], layer.weights, precision, smooth=smooth)

    def write(self, folder: pathlib.Path, chosen: Collection[str]) -> Written:
        of_engines: dict[str, dict[str, Scale]] = {}
        for name in chosen:
            engine, _, layer = name.partition("/")
            of_engines.setdefault(engine, {})[layer] = self.scales[name]
        columns = self._modulation(of_engines.get(DENOISE, {}))
        if columns is not None:
            of_engines.setdefault(CONDITIONING, {})
        written = {}
        for engine, scales in of_engines.items():
            source, out = self._graph(engine, folder)
            quantize_graph(source, out, self.precision, scales, columns if engine == CONDITIONING else None)
            written[engine] = out, self.precision
        return written

    def _modulation(self, scales: Mapping[str, Scale]) -> np.ndarray | None:
        """What smoothing divides the modulation [M] by, or None where it divides nothing."""
        config = self.artifact.manifest.model
        columns = np.ones(config.modulation_channels, np.float32)
        for layer, scale in scales.items():
            block = modulated_block(DENOISE, layer)
            if block is not None and scale.smoothing is not None:
                divide_modulation(columns, config, block, scale.smoothing)
        return columns if (columns != 1).any() else None


class QuantizedWeights(Form):
    """Weights alone, in blocks of 8 or 4 bits."""

    def write(self, folder: pathlib.Path, chosen: Collection[str]) -> Written:
        of_engines: dict[str, set[str]] = {}
        for name in chosen:
            engine, _, layer = name.partition("/")
            of_engines.setdefault(engine, set()).add(layer)
        written = {}
        for engine, wanted in of_engines.items():
            source, out = self._graph(engine, folder)
            quantize_weights(source, out, self.precision, wanted)
            written[engine] = out, self.precision
        return written


def _quantizable(artifact: Artifact, engine: str) -> list[str]:
    graph = ir.load(artifact.engine_file(engine)).graph
    return [layer.name for layer in layers(graph) if not stays_in_float32(layer.name)]
