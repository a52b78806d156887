"""Export of a PyTorch module to an ONNX file with the inputs and outputs of an engine."""

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
from mar_export.onnx_export.group_norm import group_norm
from runtime.model.engine_spec import EngineSpec
from runtime.model.family_config import FamilyConfig

OPSET = 20
"""The ONNX opset: the newest that TensorRT 10.3, the oldest supported release (JetPack 6), reads."""

# While a graph loads, weights inside its file are in memory twice. External weights are mapped.
_EXTERNAL_DATA_BYTES = 16 * 2**20
_ANY = 2**62  # bytes
_SCOPES = "pkg.torch.onnx.name_scopes"  # the exporter's metadata key for the modules that contain a node
_NO_SCOPE = "_empty_nn_module_stack_from_metadata_hook"  # which stands there for sizes of inputs


def export_graph(module: nn.Module, spec: EngineSpec, config: FamilyConfig, path: pathlib.Path) -> None:
    """Write a module to an ONNX file, with large weights in `<path>.data` beside it.

    The module's weights are released from the exporter's caches, so that the caller decides how long they stay in
    memory.

    Args:
        module: The module, in evaluation mode.
        spec: The engine, whose inputs and outputs the module has.
        config: The model, for example inputs.
        path: The file to write.
    """
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
            custom_translation_table={torch.ops.aten.group_norm.default: group_norm},
            optimize=False,
            verbose=False,
        )
        assert program is not None
        model = program.model
        weights = [*model.graph.initializers.values()]
        program.optimize()
    # The last block of the decoder uses slices of its weights: they are computed here, not at every call.
    optimizer.fold_constants(model, onnx_shape_inference=False, input_size_limit=_ANY, output_size_limit=_ANY)
    _gather_rows(model.graph)
    optimizer.remove_unused_nodes(model)
    _name_nodes(model.graph, spec.name)
    _forget_shapes(model.graph)
    folded = [*model.graph.initializers.values()]
    large = sum(value.const_value.nbytes for value in folded if value.const_value is not None) > _EXTERNAL_DATA_BYTES
    onnx_ir.save(model, path, external_data=f"{path.name}.data" if large else None)
    # Each rule of the optimizer keeps a reference to the last graph; without this, it would keep the weights too.
    for value in (*weights, *folded):
        value.const_value = None


def _gather_rows(graph: onnx_ir.Graph) -> None:
    """Look up rows of tables with Gather, which more libraries run than the exporter's GatherND."""
    for node in graph.all_nodes():
        places = node.inputs[1].producer() if node.op_type == "GatherND" and node.inputs[1] is not None else None
        if places is not None and places.op_type == "Unsqueeze" and not node.attributes.get_int("batch_dims", 0):
            node.op_type = "Gather"
            node.attributes.clear()
            node.replace_input_with(1, places.inputs[0])  # [..., 1], indices of the first axis


def _forget_shapes(graph: onnx_ir.Graph) -> None:
    """Leave out the shapes between nodes, a third of a large graph's file: libraries infer them."""
    computed = (value for node in graph.all_nodes() for value in node.outputs)
    for value in (*computed, *graph.initializers.values()):
        if not value.is_graph_output():
            value.shape = value.type = None
            value.metadata_props.clear()


def _name_nodes(graph: onnx_ir.Graph, engine: str) -> None:
    """Name every node after its module and operator, so that errors and profiles of the graph are readable."""
    counts: Counter[str] = Counter()
    for node in graph.all_nodes():
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))[:-1]
        modules = [scope for scope in scopes if scope not in ("", _NO_SCOPE)]
        layer = modules[-1].removesuffix(".product") if modules else engine
        name = f"{layer}.{node.op_type}"
        node.name = f"{name}_{counts[name]}" if counts[name] else name
        counts[name] += 1
        node.metadata_props.clear()  # the rest names source files of this machine


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporter's messages about libraries that this project does not use."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
