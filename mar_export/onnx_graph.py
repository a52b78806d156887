"""From an engine's module and its spec to an ONNX file."""

from __future__ import annotations

import logging
import pathlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir
import torch
from torch import nn

from mar_export.examples import EXPORT_SIZES, example_inputs
from runtime.config import ModelConfig
from runtime.spec import EngineSpec

# TensorRT 10.3, the oldest release supported (JetPack 6), reads opsets up to 20.
OPSET = 20
# Weights inside the graph are held twice while it loads; those beside it are mapped.
_EXTERNAL_DATA_BYTES = 16 * 2**20


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
            verbose=False,
        )
    assert program is not None
    model = program.model
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # the exporter notes where in this machine's files each node came from
    weights = [value.const_value for value in model.graph.initializers.values()]
    large = sum(weight.nbytes for weight in weights if weight is not None) > _EXTERNAL_DATA_BYTES
    onnx_ir.save(model, path, external_data=f"{path.name}.data" if large else None)


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
