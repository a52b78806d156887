"""Which products of a graph are found, and what is known of them."""

from __future__ import annotations

import pathlib

import numpy as np
import onnx_ir as ir
import pytest

from calibration.products import products
from runtime.spec import BACKBONE, CONDITIONING, DENOISE
from tests.golden_cases import GOLDEN
from training.checkpoint import Checkpoint, load_checkpoint


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load_checkpoint(GOLDEN / "small" / "checkpoint-last.pth", GOLDEN / "small" / "meta.json")


def test_every_linear_layer_is_a_product_with_its_own_weights(
    golden_artifacts: dict[str, pathlib.Path], checkpoint: Checkpoint
) -> None:
    parameters = {
        name.removesuffix(".weight"): tensor.detach().numpy()
        for name, tensor in checkpoint.model.named_parameters()
        if tensor.ndim == 2 and name.endswith(".weight") and "class_emb" not in name
    }
    expected = {name for name in parameters if "adaLN" not in name}  # all of those are one product, `projection`
    found = {}
    for engine in (BACKBONE, CONDITIONING, DENOISE):
        for product in products(ir.load(golden_artifacts["small"] / f"{engine}.onnx").graph):
            found[product.name] = product.weights
    named = {name.removeprefix("model.").removeprefix("diffloss.net."): array for name, array in found.items()}
    plain = {name.removeprefix("diffloss.net.") for name in expected}
    last = f"decoder_blocks.{checkpoint.model.config.decoder_depth - 1}.attn.qkv"
    assert set(named) - plain == {"projection", "backbone", "backbone_1"}  # the last block computes q for fewer rows
    assert plain - set(named) == {last}
    for name in plain & set(named):
        weights = parameters.get(name, parameters.get(f"diffloss.net.{name}"))
        assert weights is not None
        assert named[name].tobytes() == np.ascontiguousarray(weights.T).tobytes(), name
    both = np.concatenate([named["backbone"], named["backbone_1"]], axis=1)
    assert both.tobytes() == np.ascontiguousarray(parameters[last].T).tobytes()


def test_products_of_two_activations_are_none_of_them(golden_artifacts: dict[str, pathlib.Path]) -> None:
    graph = ir.load(golden_artifacts["small"] / "backbone.onnx").graph
    assert any("attend" in (node.name or "") and node.op_type == "MatMul" for node in graph)
    assert not any("attend" in product.name for product in products(graph))
