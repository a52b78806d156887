"""From an engine's module and its spec to an ONNX file."""

from __future__ import annotations

import ast
import logging
import pathlib
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir
import torch
from onnxscript import optimizer
from torch import nn

from mar_export.onnx_export.example_inputs import EXPORT_SIZES, example_inputs
from runtime.model.config import ModelConfig
from runtime.model.engine_spec import EngineSpec

# TensorRT 10.3, the oldest release supported (JetPack 6), reads opsets up to 20.
OPSET = 20
# Weights inside the graph are held twice while it loads; those beside it are mapped.
_EXTERNAL_DATA_BYTES = 16 * 2**20
_ANY = 2**62  # bytes
_SCOPES = "pkg.torch.onnx.name_scopes"  # where the exporter notes the modules that a node lies in


def export_graph(module: nn.Module, spec: EngineSpec, config: ModelConfig, path: pathlib.Path) -> None:
    """Write `module` to `path`, its weights beside it in `<path>.data` where they are large."""
    inputs = {
        name: torch.from_numpy(array) for name, array in example_inputs(spec, config, EXPORT_SIZES, seed=0).items()
    }
    axes = {
        tensor.name: {number: axis for number, axis in enumerate(tensor.shape) if isinstance(axis, str)}
        for tensor in spec.inputs
    }
    with _quiet():
        program = torch.onnx.export(
            module,
            kwargs=inputs,
            dynamo=True,
            dynamic_shapes=axes,
            input_names=[tensor.name for tensor in spec.inputs],
            output_names=[tensor.name for tensor in spec.outputs],
            opset_version=OPSET,
            optimize=False,
            verbose=False,
        )
        assert program is not None
        model = program.model
        weights = [*model.graph.initializers.values()]
        program.optimize()
    # What the last block of the decoder takes of its weights is made of them here, not at every call.
    optimizer.fold_constants(model, onnx_shape_inference=False, input_size_limit=_ANY, output_size_limit=_ANY)
    optimizer.remove_unused_nodes(model)
    _name_nodes(model.graph, spec.name)
    written = [*model.graph.initializers.values()]
    large = sum(value.const_value.nbytes for value in written if value.const_value is not None) > _EXTERNAL_DATA_BYTES
    onnx_ir.save(model, path, external_data=f"{path.name}.data" if large else None)
    # Each rule of the optimizer keeps the last graph that it saw; it need not keep the weights.
    for value in (*weights, *written):
        value.const_value = None


def _name_nodes(graph: onnx_ir.Graph, engine: str) -> None:
    """Name every node for its module and operator: it is what people read of a graph when it fails, or is too slow."""
    taken: Counter[str] = Counter()
    for node in graph.all_nodes():
        modules = [scope for scope in ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))[:-1] if scope]
        layer = modules[-1].removesuffix(".product") if modules else engine
        name = f"{layer}.{node.op_type}"
        node.name = f"{name}_{taken[name]}" if taken[name] else name
        taken[name] += 1
        node.metadata_props.clear()  # the rest is where in this machine's files it came from


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what the exporter says of libraries that this project does not use."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
