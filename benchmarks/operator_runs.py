"""Every operator of exported graphs alone, on each backend of the processor, against ONNX's reference implementation.

An operator is cut out of a graph together with the values that it got there. It keeps its constants, and all other
inputs have dynamic sizes, as in the graph, except whole numbers, since these are often shapes. Values of low precision
enter and leave as float32, by a Cast.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from runtime.backends.openvino import open_openvino
from runtime.backends.telemetry import import_library
from runtime.distance import relative_l2

_LOW = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
_PAIR = "QuantizeLinear and DequantizeLinear"

Values = Mapping[str, NDArray[Any]]


@dataclasses.dataclass(frozen=True)
class Operator:
    """An operator of a graph as a graph of its own.

    Attributes:
        name: The type of the operator, or `QuantizeLinear and DequantizeLinear` for such a pair.
        dtypes: The dtypes of its inputs and of its first output, such as `float32, int64 -> float32`.
        model: The graph.
        inputs: Values for its inputs.
    """

    name: str
    dtypes: str
    model: onnx.ModelProto
    inputs: dict[str, NDArray[Any]]


def operators(file: pathlib.Path, inputs: Values) -> Iterator[Operator]:
    """Yield each kind of operator of a graph once, with the values that it has for these inputs of the graph."""
    model = onnx.load(file)
    values: Any = ReferenceEvaluator(model).run(None, dict(inputs), intermediate=True)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    known = {**{name: numpy_helper.to_array(tensor) for name, tensor in constants.items()}, **inputs, **values}
    makers = {output: node for node in model.graph.node for output in node.output}
    seen = set[tuple[str, str]]()
    for node in model.graph.node:
        nodes = [node]
        if node.op_type == "QuantizeLinear":
            continue  # it is half of a pair
        if node.op_type == "DequantizeLinear" and node.input[0] in makers:
            nodes = [makers[node.input[0]], node]
        name = _PAIR if len(nodes) > 1 else node.op_type
        dtypes = _dtypes(nodes, known)
        if (name, dtypes) not in seen:
            seen.add((name, dtypes))
            yield _cut_out(name, dtypes, nodes, known, constants, model)


def _dtypes(nodes: list[onnx.NodeProto], known: Values) -> str:
    read = [str(known[name].dtype) for name in nodes[0].input if name]
    if len(nodes) > 1:
        read = [read[0], str(known[nodes[0].input[2]].dtype)]
    return f"{', '.join(dict.fromkeys(read))} -> {known[nodes[-1].output[0]].dtype}"


def _cut_out(
    name: str,
    dtypes: str,
    nodes: list[onnx.NodeProto],
    known: Values,
    constants: Mapping[str, TensorProto],
    model: onnx.ModelProto,
) -> Operator:
    made = {output for node in nodes for output in node.output}
    read = list(dict.fromkeys(name for node in nodes for name in node.input if name and name not in made))
    before, after, ends, inputs = [], [], [], {}
    for place, value_name in enumerate(value for value in read if value not in constants):
        value = known[value_name]
        given, low = value, _LOW.get(str(value.dtype))
        outer = f"{value_name}.float32" if low else value_name
        if low:
            given = value.astype(np.float32)
            before.append(helper.make_node("Cast", [outer], [value_name], to=low))
        inputs[outer] = given
        ends.append(_end(outer, given, f"i{place}"))
    outputs = []
    for place, value_name in enumerate(nodes[-1].output):
        value, outer = known[value_name], value_name
        if str(value.dtype) in _LOW:
            outer, value = f"{value_name}.float32", value.astype(np.float32)
            after.append(helper.make_node("Cast", [value_name], [outer], to=TensorProto.FLOAT))
        outputs.append(_end(outer, value, f"o{place}"))
    kept = [constants[value] for value in read if value in constants]
    graph = helper.make_graph([*before, *nodes, *after], "operator", ends, outputs, kept)
    cut = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    return Operator(name, dtypes, cut, inputs)


def _end(name: str, value: NDArray[Any], prefix: str) -> onnx.ValueInfoProto:
    whole = np.issubdtype(value.dtype, np.integer)
    sizes = [size if whole else f"{prefix}_{axis}" for axis, size in enumerate(value.shape)]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), sizes)


def run_operator(operator: Operator) -> dict[str, dict[str, Any]]:
    """Run an operator on every backend.

    Returns:
        By backend `distance`, the largest relative L2 distance of an output from ONNX's reference implementation; or
        `refused`, the first line of the library's message.
    """
    expected = ReferenceEvaluator(operator.model).run(None, operator.inputs)
    results: dict[str, dict[str, Any]] = {}
    for backend, run in (("onnxruntime", _by_onnxruntime), ("openvino", _by_openvino)):
        try:
            found = run(operator)
        except Exception as error:  # whatever the library raises
            results[backend] = {"refused": _message(error)}
            continue
        pairs = zip(found, expected, strict=True)
        results[backend] = {"distance": max(relative_l2(np.asarray(one), np.asarray(other)) for one, other in pairs)}
    return results


def _by_onnxruntime(operator: Operator) -> list[NDArray[Any]]:
    library = import_library("onnxruntime")
    options = library.SessionOptions()
    options.log_severity_level = 4
    content = operator.model.SerializeToString()
    session = library.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    found: list[NDArray[Any]] = session.run(None, operator.inputs)
    return found


def _by_openvino(operator: Operator) -> list[NDArray[Any]]:
    _, core = open_openvino("openvino")
    compiled = core.compile_model(
        core.read_model(operator.model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    request = compiled.create_infer_request()
    request.infer({number: operator.inputs[end.name] for number, end in enumerate(operator.model.graph.input)})
    return [request.get_output_tensor(number).data.copy() for number in range(len(operator.model.graph.output))]


def _message(error: Exception) -> str:
    lines = [line.strip() for line in str(error).split("\n") if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200]
