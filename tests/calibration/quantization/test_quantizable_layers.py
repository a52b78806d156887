"""The quantizable layers of a graph, and their weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from calibration.quantization.quantizable_layers import quantizable_layers
from runtime.artifact.artifact_folder import Artifact
from runtime.model.engine_spec import BACKBONE, CONDITIONING, DENOISE
from tests.helpers.golden_cases import GOLDEN
from training.checkpoints.checkpoint import Checkpoint, load_checkpoint


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load_checkpoint(GOLDEN / "small" / "checkpoint-last.pth", GOLDEN / "small" / "meta.json")


def test_every_linear_layer_of_the_model_is_found_with_its_weights(small: Artifact, checkpoint: Checkpoint) -> None:
    parameters = {
        name.removesuffix(".weight"): tensor.detach().numpy()
        for name, tensor in checkpoint.model.named_parameters()
        if tensor.ndim == 2 and name.endswith(".weight") and "class_emb" not in name
    }
    expected = {name for name in parameters if "adaLN" not in name}  # all of those are one layer, `projection`
    found = {}
    for engine in (BACKBONE, CONDITIONING, DENOISE):
        for layer in quantizable_layers(ir.load(small.engine_file(engine)).graph):
            found |= {linear.name: linear.weights for linear in layer.linears}
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


def test_nodes_that_share_an_activation_are_one_layer(small: Artifact) -> None:
    found = {layer.name: layer for layer in quantizable_layers(ir.load(small.engine_file(BACKBONE)).graph)}
    attention = found["model.encoder_blocks.0.attn.q+k+v"]
    assert attention.weights.shape == (
        attention.linears[0].weights.shape[0],
        3 * attention.linears[0].weights.shape[1],
    )
    assert {linear.node.inputs[0] for linear in attention.linears} == {attention.activation}
    last = max(name for name in found if "decoder_blocks" in name).split(".attn")[0].split(".mlp")[0]
    assert {f"{last}.attn.k+v", f"{last}.attn.q"} <= set(found)  # the last block computes q for fewer rows


def test_products_of_two_activations_are_not_quantizable(small: Artifact) -> None:
    graph = ir.load(small.engine_file(BACKBONE)).graph
    assert any("attend" in (node.name or "") and node.op_type == "MatMul" for node in graph)
    assert not any("attend" in layer.name for layer in quantizable_layers(graph))
