"""Which products of a graph are found, and what is known of them."""

from __future__ import annotations

import pathlib

import numpy as np
import onnx_ir as ir
import pytest

from calibration.quantization.quantizable_layers import layers
from runtime.model.engine_spec import BACKBONE, CONDITIONING, DENOISE
from tests.helpers.golden_cases import GOLDEN
from training.checkpoints.checkpoint import Checkpoint, load_checkpoint


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
        for layer in layers(ir.load(golden_artifacts["small"] / f"{engine}.onnx").graph):
            found |= {product.name: product.weights for product in layer.products}
    named = {name.removeprefix("model."): array for name, array in found.items()}
    assert "projection" in named
    for name in expected:
        if name.endswith(".qkv"):
            attention = name.removesuffix(".qkv")
            weights = np.concatenate([named.pop(f"{attention}.{part}") for part in "qkv"], axis=1)
        else:
            weights = named.pop(name.removeprefix("diffloss.net."))
        assert weights.tobytes() == np.ascontiguousarray(parameters[name].T).tobytes(), name
    assert set(named) == {"projection"}


def test_products_that_share_an_activation_are_one_layer(golden_artifacts: dict[str, pathlib.Path]) -> None:
    found = {layer.name: layer for layer in layers(ir.load(golden_artifacts["small"] / "backbone.onnx").graph)}
    attention = found["model.encoder_blocks.0.attn.q+k+v"]
    assert attention.weights.shape == (
        attention.products[0].weights.shape[0],
        3 * attention.products[0].weights.shape[1],
    )
    assert {product.node.inputs[0] for product in attention.products} == {attention.activation}
    last = max(name for name in found if "decoder_blocks" in name).split(".attn")[0].split(".mlp")[0]
    assert {f"{last}.attn.k+v", f"{last}.attn.q"} <= set(found)  # the last block computes q for fewer rows


def test_products_of_two_activations_are_none_of_them(golden_artifacts: dict[str, pathlib.Path]) -> None:
    graph = ir.load(golden_artifacts["small"] / "backbone.onnx").graph
    assert any("attend" in (node.name or "") and node.op_type == "MatMul" for node in graph)
    assert not any("attend" in layer.name for layer in layers(graph))
