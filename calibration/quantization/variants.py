"""The engines of an artifact with any choice of their layers in low precision."""

from __future__ import annotations

import abc
import functools
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from calibration.quantization.qdq_graph import quantize_graph
from calibration.quantization.quantizable_layers import quantizable_layers
from calibration.quantization.scales import Scale, activation_scale
from calibration.quantization.smoothing import can_smooth, divide_modulation, modulated_block
from calibration.quantization.statistics import ActivationStatistics
from calibration.quantization.weight_only import quantize_weights
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import Manifest
from runtime.artifact.shared_weights import share_weights
from runtime.errors import CalibrationError
from runtime.model.engine_spec import CONDITIONING, DENOISE
from runtime.model.families import check_supported
from runtime.model.low_precision import stays_in_float32

ChangedGraphs = dict[str, tuple[pathlib.Path, str]]
"""The quantized graphs, by engine: an ONNX file and its precision."""


def engines_with_weights_of(manifest: Manifest, engine: str) -> list[str]:
    """Return the engines of an artifact whose weights are those of `engine`, which are quantized with it."""
    return [name for name, spec in manifest.specs.items() if spec.weights_of == engine]


class QuantizedVariant(abc.ABC):
    """One way to quantize the engines of an artifact.

    Attributes:
        artifact: The artifact in float32.
        precision: One of `runtime.artifact.manifest.QUANTIZED_PRECISIONS`.
        layers: Every layer that can be quantized, as "engine/layer".
    """

    def __init__(self, artifact: Artifact, engines: Sequence[str], precision: str) -> None:
        """`engines` are the names of the engines to quantize."""
        self.artifact, self.precision = artifact, precision
        self.layers = [f"{engine}/{layer}" for engine in engines for layer in _layers_to_quantize(artifact, engine)]

    @abc.abstractmethod
    def write(self, folder: pathlib.Path, chosen: Collection[str]) -> ChangedGraphs:
        """Write the graphs of all engines that change when the layers `chosen` are quantized.

        Args:
            folder: An existing folder. Each graph gets the name that it has in the artifact.
            chosen: Some of `layers`. All others stay in float32.

        Returns:
            The graphs that were written.
        """

    def provenance(self, chosen: Collection[str]) -> dict[str, str]:
        """Return what the manifest says of quantizing the layers `chosen`."""
        return {}

    def _write_changed(
        self, engine: str, folder: pathlib.Path, change: Callable[[pathlib.Path, pathlib.Path], None]
    ) -> ChangedGraphs:
        """Write the changed graphs of an engine and of those that have its weights, which are stored once.

        Args:
            engine: The engine.
            folder: The folder to write to.
            change: Called with the graph of an engine in the artifact, and with its copy to write.
        """
        manifest, graphs = self.artifact.manifest, ChangedGraphs()
        for name in (engine, *engines_with_weights_of(manifest, engine)):
            out = folder / manifest.engines[name]
            change(self.artifact.engine_file(name), out)
            graphs[name] = out, self.precision
        first, *others = (out for out, _ in graphs.values())
        for out in others:
            share_weights(out, first)
        return graphs


class QdqVariant(QuantizedVariant):
    """Activations and weights in int8 or fp8, with scales from statistics of the activations.

    Attributes:
        scales: The scale of each layer's activation, by "engine/layer".
    """

    def __init__(
        self, artifact: Artifact, engines: Sequence[str], precision: str, statistics: ActivationStatistics
    ) -> None:
        """Choose all scales. Raises `CalibrationError` if `statistics` lack a layer."""
        super().__init__(artifact, engines, precision)
        self.scales: dict[str, Scale] = {}
        for engine in engines:
            for layer in quantizable_layers(ir.load(artifact.engine_file(engine)).graph):
                name = f"{engine}/{layer.name}"
                if name not in self.layers:
                    continue
                if name not in statistics.layers:
                    raise CalibrationError(f"the statistics have no layer {name}; calibrate again")
                # fp8 values have exponents of their own: smoothing gains little there.
                smooth = precision == "int8" and can_smooth(engine, layer)
                self.scales[name] = activation_scale(statistics.layers[name], layer.weights, precision, smooth=smooth)

    def write(self, folder: pathlib.Path, chosen: Collection[str]) -> ChangedGraphs:
        """Write the changed graphs; see `QuantizedVariant.write`.

        A smoothed layer of the denoising engine also changes the conditioning engine, which computes its modulation.
        """
        by_engine = {
            engine: {layer: self.scales[f"{engine}/{layer}"] for layer in layers}
            for engine, layers in _by_engine(chosen).items()
        }
        divisors = self._modulation_divisors(by_engine.get(DENOISE, {}))
        if divisors is not None:
            by_engine.setdefault(CONDITIONING, {})
        graphs = ChangedGraphs()
        for engine, scales in by_engine.items():
            change = functools.partial(
                quantize_graph,
                precision=self.precision,
                scales=scales,
                modulation_divisors=divisors if engine == CONDITIONING else None,
            )
            graphs |= self._write_changed(engine, folder, change)
        return graphs

    def provenance(self, chosen: Collection[str]) -> dict[str, str]:
        """Return the share of the activations that saturate."""
        shares = {name: self.scales[name].saturated for name in chosen}
        if not shares:
            return {}
        worst = max(sorted(shares), key=shares.__getitem__)
        mean = sum(shares.values()) / len(shares)
        return {"saturated": f"{mean:.3%} of the activations, at most {shares[worst]:.3%}, in {worst}"}

    def _modulation_divisors(self, scales: Mapping[str, Scale]) -> np.ndarray | None:
        """What smoothing divides the modulation by, [M]; None if it changes nothing."""
        config = check_supported(self.artifact.manifest.model, "mar calibrate")
        divisors = np.ones(config.modulation_channels, np.float32)
        for layer, scale in scales.items():
            block = modulated_block(DENOISE, layer)
            if block is not None and scale.smoothing is not None:
                divide_modulation(divisors, config, block, scale.smoothing)
        return divisors if (divisors != 1).any() else None


class WeightOnlyVariant(QuantizedVariant):
    """Weights in blocks of 8 or 4 bits, activations in float32."""

    def write(self, folder: pathlib.Path, chosen: Collection[str]) -> ChangedGraphs:
        """Write the changed graphs; see `QuantizedVariant.write`."""
        graphs = ChangedGraphs()
        for engine, layers in _by_engine(chosen).items():
            change = functools.partial(quantize_weights, precision=self.precision, layers=layers)
            graphs |= self._write_changed(engine, folder, change)
        return graphs


def _by_engine(names: Collection[str]) -> dict[str, list[str]]:
    """Layers by engine, from names such as "engine/layer"."""
    by_engine: dict[str, list[str]] = {}
    for name in names:
        engine, _, layer = name.partition("/")
        by_engine.setdefault(engine, []).append(layer)
    return by_engine


def _layers_to_quantize(artifact: Artifact, engine: str) -> list[str]:
    graph = ir.load(artifact.engine_file(engine)).graph
    return [layer.name for layer in quantizable_layers(graph) if not stays_in_float32(layer.name)]
