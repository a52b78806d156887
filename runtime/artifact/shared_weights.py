"""Graphs with the same weights: the second refers to the file of the first, so that they are stored once.

Exports and calibration need it, which have onnx-ir; a device does not.
"""

from __future__ import annotations

import hashlib
import pathlib

import onnx_ir as ir


def share_weights(path: pathlib.Path, other: pathlib.Path) -> None:
    """Let a graph refer to those of its weights that another graph has in a file of its own.

    What only the first graph has is stored inside its file, and its file of weights is deleted. If the other graph has
    no such file, because its weights are small, nothing changes.

    Args:
        path: The ONNX file to change.
        other: The ONNX file of the other graph, in the same folder.
    """
    stored = {
        _content(tensor): tensor
        for tensor in (value.const_value for value in ir.load(other).graph.initializers.values())
        if isinstance(tensor, ir.ExternalTensor)
    }
    if not stored:
        return
    model = ir.load(path)
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        if (found := stored.get(_content(value.const_value))) is None:
            value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)
        else:
            value.const_value = ir.ExternalTensor(
                found.location,
                found.offset,
                found.length,
                found.dtype,
                shape=found.shape,
                name=value.name or "",
                base_dir=found.base_dir,
            )
    ir.save(model, path)
    path.with_name(f"{path.name}.data").unlink(missing_ok=True)


def _content(tensor: ir.TensorProtocol) -> tuple[object, ...]:
    """Return what two tensors have in common only if they are equal."""
    return tensor.dtype, tuple(tensor.shape.numpy()), hashlib.sha256(tensor.tobytes()).digest()
