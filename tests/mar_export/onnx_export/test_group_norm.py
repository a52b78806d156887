"""Group normalization in a graph: the values of float64, however many a group has."""

from __future__ import annotations

import pathlib

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mar_export.onnx_export.exporter import export_graph
from runtime.backends.onnxruntime import OnnxRuntime
from runtime.backends.openvino import OpenVino
from runtime.model.engine_spec import FLOAT, EngineSpec, TensorSpec
from tests.helpers.distance import relative_l2
from tests.helpers.tiny_runs import TINY

GROUPS, CHANNELS = 2, 6
SPEC = EngineSpec(
    "norm",
    inputs=(TensorSpec("latents", FLOAT, ("B", CHANNELS, "Y", "X")),),
    outputs=(TensorSpec("image", FLOAT, ("B", CHANNELS, "Y", "X")),),
)


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.GroupNorm(GROUPS, CHANNELS, eps=1e-3)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, latents: Tensor) -> Tensor:
        normalized: Tensor = self.norm(latents)
        return normalized


@pytest.fixture(scope="module")
def norm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Norm, pathlib.Path]:
    module, path = Norm().eval(), tmp_path_factory.mktemp("norm") / "norm.onnx"
    export_graph(module, SPEC, TINY, path)
    return module, path


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (3, 5, 7), (1, 590, 600)], ids=["one pixel", "small", "a million a group"]
)
@pytest.mark.parametrize(("kind", "name"), [(OnnxRuntime, "onnxruntime"), (OpenVino, "openvino")])
def test_a_normalization_is_that_of_float64(
    norm: tuple[Norm, pathlib.Path], kind: type[OnnxRuntime | OpenVino], name: str, shape: tuple[int, int, int]
) -> None:
    """InstanceNormalization is 1.7e-5 away for a million values in ONNX Runtime 1.31.1, 4.5e-6 in OpenVINO 2026.4.1."""
    module, path = norm
    batch, rows, columns = shape
    x = torch.randn(batch, CHANNELS, rows, columns, generator=torch.Generator().manual_seed(1)) + 3
    parts = (x, module.norm.weight, module.norm.bias)
    values, weight, bias = (part.detach().double() for part in parts)
    expected = F.group_norm(values, GROUPS, weight, bias, module.norm.eps).numpy()
    (found,) = kind(name, 1).load_graph(path, SPEC)(latents=x.numpy())
    assert relative_l2(found, expected) < 1e-6  # OpenVINO had 2.7e-6 with AVX2, where it joined two means into one


@pytest.mark.parametrize(("kind", "name"), [(OnnxRuntime, "onnxruntime"), (OpenVino, "openvino")])
def test_an_overflow_is_no_finite_image(
    norm: tuple[Norm, pathlib.Path], kind: type[OnnxRuntime | OpenVino], name: str
) -> None:
    x = torch.randn(1, CHANNELS, 8, 8, generator=torch.Generator().manual_seed(1)).numpy() * np.float32(1e25)
    (found,) = kind(name, 1).load_graph(norm[1], SPEC)(latents=x)
    assert np.isnan(found).all()


def test_the_graph_needs_no_normalization_of_the_library(norm: tuple[Norm, pathlib.Path]) -> None:
    kinds = {node.op_type for node in onnx.load(norm[1]).graph.node}
    assert kinds == {"ReduceMean", "Reshape", "Expand", "Sub", "Mul", "Add", "Sqrt", "Div"}
