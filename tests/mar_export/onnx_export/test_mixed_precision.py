"""Lower precision: the products that are rounded, and everything that is not."""

from __future__ import annotations

import dataclasses
import pathlib
from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from mar_export.artifact.parity import ENGINE_TOLERANCES, GENERATION_TOLERANCES
from mar_export.graphs.engine_modules import graph_modules
from mar_export.onnx_export.example_inputs import example_inputs, parity_sizes
from mar_export.onnx_export.exporter import export_graph
from mar_export.onnx_export.mixed_precision import DTYPES, Product, products, to_precision
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import FLOAT_PRECISIONS
from runtime.errors import BackendError
from runtime.generator import Generator
from runtime.model.config import ModelConfig
from runtime.model.engine_spec import (
    DECODER,
    ENCODER,
    ENGINES,
    TOKENIZER_ENGINES,
    EngineSpec,
    tokenizer_specs,
)
from runtime.model.families import engine_specs
from runtime.model.low_precision import stays_in_float32
from tests.helpers.distance import relative_l2
from tests.helpers.golden_cases import golden_cases
from training.checkpoints.checkpoint import Checkpoint
from training.models.autoencoder import AutoencoderKL, VAEConfig
from training.models.himar import Himar
from training.models.mar import MAR
from training.models.model_sizes import MODEL_SIZES, model_config

Type = onnx.TensorProto.DataType
LOW: dict[str, int] = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
PRODUCTS = ("MatMul", "Gemm", "Conv")
# What only moves values, or makes low precision out of float32 and back.
MOVES = ("Cast", "Transpose", "Reshape", "Slice", "Unsqueeze", "Squeeze", "Split", "Identity")

BLOCKS = [f"model.{half}_blocks.{number}" for half in ("encoder", "decoder") for number in range(2)]
LINEARS = [
    f"{block}.{layer}"
    for block in BLOCKS
    for layer in ("attn.q", "attn.k", "attn.v", "attn.proj", "mlp.fc1", "mlp.fc2")
]
VAE_BLOCKS = ["vae.decoder.mid.block_1", "vae.decoder.mid.block_2"] + [
    f"vae.decoder.up.{level}.block.{number}" for level in range(4) for number in range(2)
]
# The layers of each engine: those in low precision, and those kept in float32.
LAYERS: dict[str, tuple[list[str], list[str]]] = {
    "backbone": ([*LINEARS, "model.decoder_embed"], ["model.z_proj"]),
    "conditioning": (["cond_embed", "projection"], ["time_embed.mlp.0", "time_embed.mlp.2"]),
    "denoise": (
        [f"res_blocks.{block}.mlp.{layer}" for block in range(2) for layer in (0, 2)],
        ["input_proj", "final_layer.linear"],
    ),
    "decoder": (
        [
            "vae.post_quant_conv",
            *(f"{block}.{convolution}" for block in VAE_BLOCKS for convolution in ("conv1", "conv2")),
            *(f"vae.decoder.mid.attn_1.{part}" for part in ("q", "k", "v", "proj_out")),
            *(f"vae.decoder.up.{level}.upsample.conv" for level in (1, 2, 3)),
        ],
        ["vae.decoder.conv_in", "vae.decoder.conv_out"],
    ),
}
ATTENTIONS: dict[str, list[str]] = {
    "backbone": [f"{block}.attn.attend" for block in BLOCKS],
    "conditioning": [],
    "denoise": [],
    "decoder": ["vae.decoder.mid.attn_1.attend"],
}


@pytest.fixture(scope="module")
def modules(small_checkpoint: Checkpoint, kl_checkpoint: Checkpoint) -> dict[str, nn.Module]:
    tokenizer = graph_modules(kl_checkpoint.model, kl_checkpoint.vae, encoder=True)
    return graph_modules(small_checkpoint.model, None, False) | {name: tokenizer[name] for name in (DECODER, ENCODER)}


@pytest.fixture(scope="module")
def specs(small_checkpoint: Checkpoint, kl_checkpoint: Checkpoint) -> dict[str, tuple[EngineSpec, ModelConfig]]:
    small, kl = small_checkpoint.model.config, kl_checkpoint.model.config
    return {name: (spec, small) for name, spec in engine_specs(small).items()} | {
        name: (spec, kl) for name, spec in tokenizer_specs(kl).items()
    }


def answers(module: nn.Module, spec: EngineSpec, config: ModelConfig) -> list[np.ndarray[Any, Any]]:
    inputs = example_inputs(spec, config, parity_sizes(spec, config)[-1], seed=0)
    with torch.inference_mode():
        made = module(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    return [output.numpy() for output in (made if isinstance(made, tuple) else (made,))]


MAR_SIZES = [name for name, fields in MODEL_SIZES.items() if "family" not in fields]


@pytest.mark.parametrize("name", [*MAR_SIZES, "flow", "causal", "codes"])
def test_every_model_keeps_the_same_layers_in_float32(name: str) -> None:
    """Of its codes, a head of codes keeps none."""
    forms = {"flow": {"head": "flow"}, "causal": {"attention": "causal"}, "codes": {"head": "vq", "codebook_size": 40}}
    config = model_config(name) if name in MODEL_SIZES else model_config("pixel_small", **forms[name])
    with torch.device("meta"):
        modules = graph_modules(MAR(**config.to_dict()).eval(), AutoencoderKL(VAEConfig()).eval(), encoder=True)
    convolutions = [f"vae.{half}.{end}" for half in ("encoder", "decoder") for end in ("conv_in", "conv_out")]
    expected = {engine: kept for engine, (_, kept) in LAYERS.items()} | dict.fromkeys(TOKENIZER_ENGINES, convolutions)
    if name == "codes":
        expected |= {"conditioning": [], "denoise": []}
    for engine, module in modules.items():
        kept = [
            layer
            for layer, part in to_precision(module, torch.bfloat16).named_modules()
            if isinstance(part, (nn.Linear, nn.Conv2d))
        ]
        assert kept == expected[engine]
        assert kept == [
            layer
            for layer, part in module.named_modules()
            if isinstance(part, (nn.Linear, nn.Conv2d)) and stays_in_float32(layer)
        ]


def test_a_himar_keeps_what_reads_and_what_writes_tokens_in_float32() -> None:
    with torch.device("meta"):
        modules = graph_modules(Himar(**model_config("himar_base").to_dict()).eval(), None, encoder=False)
    kept = {
        engine: sorted(
            layer for layer, part in module.named_modules() if isinstance(part, nn.Linear) and stays_in_float32(layer)
        )
        for engine, module in modules.items()
    }
    times, ends = ["time_embed.mlp.0", "time_embed.mlp.2"], ["final_layer.linear", "input_proj"]
    assert kept == {
        "backbone": ["z_proj"],
        "conditioning": times,
        "denoise": ends,
        "backbone2": ["z_proj"],
        "conditioning2": times,
        "denoise2": ends,
    }


def test_every_precision_of_an_artifact_has_a_type_and_tolerances() -> None:
    assert set(DTYPES) == set(ENGINE_TOLERANCES) == set(GENERATION_TOLERANCES) == set(FLOAT_PRECISIONS)


@pytest.mark.parametrize("engine", [*ENGINES, DECODER, ENCODER])
def test_lowered_to_float32_an_engine_computes_what_it_did(
    modules: dict[str, nn.Module], specs: dict[str, tuple[EngineSpec, ModelConfig]], engine: str
) -> None:
    expected = answers(modules[engine], *specs[engine])
    found = answers(to_precision(modules[engine], torch.float32), *specs[engine])
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == np.float32
        assert relative_l2(one, other) <= 2e-6


@pytest.mark.parametrize("engine", [*ENGINES, DECODER, ENCODER])
def test_lower_precision_is_another_answer_within_its_tolerance(
    modules: dict[str, nn.Module], specs: dict[str, tuple[EngineSpec, ModelConfig]], engine: str
) -> None:
    expected = answers(modules[engine], *specs[engine])
    distances = []
    for precision in ("fp16", "bf16"):
        found = answers(to_precision(modules[engine], DTYPES[precision]), *specs[engine])
        assert all(output.dtype == np.float32 for output in found)
        distance = max(relative_l2(one, other) for one, other in zip(found, expected, strict=True))
        assert 1e-6 < distance <= ENGINE_TOLERANCES[precision]
        distances.append(distance)
    assert distances[1] > 3 * distances[0]  # three bits less


@pytest.mark.parametrize("engine", [*ENGINES, DECODER, ENCODER])
def test_the_module_that_is_lowered_is_left_as_it_was(
    modules: dict[str, nn.Module], specs: dict[str, tuple[EngineSpec, ModelConfig]], engine: str
) -> None:
    module = modules[engine]
    before = {name: (tensor, tensor.clone()) for name, tensor in module.state_dict().items()}
    parts = [(name, part, type(part)) for name, part in module.named_modules()]
    answered = answers(module, *specs[engine])
    low = to_precision(module, torch.float16)
    assert [(name, part, type(part)) for name, part in module.named_modules()] == parts
    assert not list(products(module))
    after = module.state_dict()
    assert after.keys() == before.keys()
    for name, (tensor, value) in before.items():
        assert after[name].data_ptr() == tensor.data_ptr()
        assert torch.equal(after[name], value)
    for found, expected in zip(answers(module, *specs[engine]), answered, strict=True):
        assert found.tobytes() == expected.tobytes()
    with torch.no_grad():
        for _, product in products(low):
            product.dtype = torch.float64
    assert not list(products(module))


def test_weights_in_float32_are_not_held_twice(modules: dict[str, nn.Module]) -> None:
    for module in modules.values():
        own = {tensor.data_ptr() for tensor in module.state_dict().values()}
        assert {tensor.data_ptr() for tensor in to_precision(module, torch.float32).state_dict().values()} <= own


@pytest.mark.parametrize("engine", [*ENGINES, DECODER])
def test_products_are_told_by_the_name_of_their_layer(
    modules: dict[str, nn.Module], specs: dict[str, tuple[EngineSpec, ModelConfig]], engine: str
) -> None:
    low = to_precision(modules[engine], torch.float16)
    ran: list[str] = []
    for name, product in products(low):
        product.register_forward_hook(lambda *arguments, name=name: ran.append(name))
    answers(low, *specs[engine])
    attention = [f"{name}.{product}" for name in ATTENTIONS[engine] for product in ("scores", "mixture")]
    assert Counter(ran) == Counter([*LAYERS[engine][0], *attention])


def test_a_product_is_from_and_to_float32() -> None:
    seen: list[torch.dtype] = []

    def multiply(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        seen.extend((a.dtype, b.dtype))
        return a @ b

    third = torch.full((1, 1), 1 / 3)
    result = Product(multiply, torch.bfloat16)(third, third)
    assert seen == [torch.bfloat16] * 2
    assert result.dtype == torch.float32
    assert result.item() == (third.bfloat16().float() ** 2).bfloat16().float().item()


# The graphs.


@pytest.fixture(scope="module")
def low_decoder(
    modules: dict[str, nn.Module],
    specs: dict[str, tuple[EngineSpec, ModelConfig]],
    tmp_path_factory: pytest.TempPathFactory,
) -> pathlib.Path:
    file = tmp_path_factory.mktemp("low") / "decoder.onnx"
    export_graph(to_precision(modules[DECODER], torch.float16), *specs[DECODER], file)
    return file


@pytest.fixture(params=[*((p, engine) for p in LOW for engine in ENGINES), ("fp16", DECODER)], ids="-".join)
def graph(
    request: pytest.FixtureRequest,
    lowered_artifacts: dict[str, pathlib.Path],
    low_decoder: pathlib.Path,
    modules: dict[str, nn.Module],
) -> Graph:
    precision, engine = request.param
    file = low_decoder if engine == DECODER else lowered_artifacts[precision] / f"{engine}.onnx"
    return Graph(onnx.shape_inference.infer_shapes(onnx.load(file), strict_mode=True), precision, modules[engine])


class Graph:
    """A graph whose every value has a type, and the module that it was made from."""

    def __init__(self, model: onnx.ModelProto, precision: str, module: nn.Module) -> None:
        self.nodes, self.low, self.module = list(model.graph.node), LOW[precision], module
        self.inputs, self.outputs = list(model.graph.input), list(model.graph.output)
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        values = (*model.graph.value_info, *self.inputs, *self.outputs)
        self.types = {value.name: value.type.tensor_type.elem_type for value in values}
        self.types |= {name: tensor.data_type for name, tensor in self.weights.items()}
        self.maker = {output: node for node in self.nodes for output in node.output}

    def layer(self, node: onnx.NodeProto) -> str | None:
        """The name of the layer whose weight a product has, or None for one of two values."""
        for name in node.input[:2]:
            while name not in self.weights and name in self.maker and self.maker[name].op_type in MOVES:
                name = self.maker[name].input[0]  # noqa: PLW2901
            if name in self.weights:
                return self._named(numpy_helper.to_array(self.weights[name]).astype(np.float32))
        return None

    def _named(self, weight: np.ndarray[Any, Any]) -> str:
        dtype = torch.float16 if self.low == onnx.TensorProto.FLOAT16 else torch.bfloat16
        for name, tensor in self.module.state_dict().items():
            if not name.endswith("weight") or tensor.dim() < 2:
                continue
            for turned in (tensor, tensor.T) if tensor.dim() == 2 else (tensor,):
                if any(same(weight, turned.to(kind).float().numpy()) for kind in (torch.float32, dtype)):
                    return name.removesuffix(".weight")
        raise AssertionError(f"a weight of shape {weight.shape} that is no layer's")


def same(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    return one.shape == other.shape and bool((one == other).all())


def test_every_product_of_a_graph_is_in_low_precision_but_those_that_are_kept(
    graph: Graph, request: pytest.FixtureRequest
) -> None:
    engine = request.node.callspec.params["graph"][1]
    found: dict[int, list[str | None]] = {graph.low: [], onnx.TensorProto.FLOAT: []}
    for node in graph.nodes:
        if node.op_type in PRODUCTS:
            kinds = {graph.types[name] for name in (*node.input, *node.output)}
            assert len(kinds) == 1
            found[kinds.pop()].append(graph.layer(node))
    low, kept = LAYERS[engine]
    assert Counter(found[graph.low]) == Counter([*low, *[None] * (2 * len(ATTENTIONS[engine]))])
    assert Counter(found[onnx.TensorProto.FLOAT]) == Counter(kept)


def test_nothing_but_products_is_computed_in_low_precision(graph: Graph) -> None:
    """Normalisation, softmax, activations, biases and residuals are in float32, and so is all that comes in or out."""
    for node in graph.nodes:
        if node.op_type not in (*PRODUCTS, *MOVES):
            for name in (*node.input, *node.output):
                assert not name or graph.types[name] != graph.low, f"{node.op_type}: {name}"
    for value in (*graph.inputs, *graph.outputs):
        assert graph.types[value.name] in (onnx.TensorProto.FLOAT, onnx.TensorProto.INT64)
    norms = [node for node in graph.nodes if "Normalization" in node.op_type or node.op_type == "Softmax"]
    for node in norms:
        assert {graph.types[name] for name in (*node.input, *node.output) if name} == {onnx.TensorProto.FLOAT}


def test_normalisation_and_softmax_are_there_to_be_judged(lowered_artifacts: dict[str, pathlib.Path]) -> None:
    count = Counter(node.op_type for node in onnx.load(lowered_artifacts["fp16"] / "backbone.onnx").graph.node)
    assert count["Softmax"] == 4
    assert count["LayerNormalization"] >= 8


# The artifacts.


@pytest.mark.parametrize("precision", LOW)
def test_an_artifact_in_low_precision_says_so_and_how_far_off_it_is(
    lowered_artifacts: dict[str, pathlib.Path], golden_artifacts: dict[str, pathlib.Path], precision: str
) -> None:
    manifest = Artifact(lowered_artifacts[precision]).manifest
    assert manifest.precision == precision
    for name, report in manifest.parity.items():
        tolerance = (GENERATION_TOLERANCES if name == "generation" else ENGINE_TOLERANCES)[precision]
        assert report["tolerance"] == tolerance
        assert 1e-6 < report["relative_l2"] <= tolerance  # it is the low precision that was compared
    whole = Artifact(golden_artifacts["small"]).manifest
    half = sum(entry.bytes for entry in manifest.files.values()) / sum(entry.bytes for entry in whole.files.values())
    assert half < 0.75


@pytest.mark.parametrize(
    ("precision", "backend"), [("fp16", "onnxruntime"), ("fp16", "openvino"), ("bf16", "openvino")]
)
def test_artifacts_in_low_precision_draw_the_same_images_within_the_tolerance(
    lowered_artifacts: dict[str, pathlib.Path],
    golden_artifacts: dict[str, pathlib.Path],
    precision: str,
    backend: str,
) -> None:
    case = golden_cases()[0]
    assert case.model == "small"
    asked: dict[str, Any] = {"order": case.order, "noise": case.noise, **case.settings}
    latents = []
    for artifact, runner in ((lowered_artifacts[precision], backend), (golden_artifacts["small"], "onnxruntime")):
        with Generator.load(artifact, backend=runner, threads=1) as generator:
            latents.append(generator.generate(case.labels.tolist(), **asked).latents)
    assert latents[0].dtype == np.float32
    assert 1e-6 < relative_l2(*latents) <= GENERATION_TOLERANCES[precision]


def test_an_artifact_in_bf16_is_refused_by_onnx_runtime_in_one_line(lowered_artifacts: dict[str, pathlib.Path]) -> None:
    with pytest.raises(BackendError) as refusal:
        Generator.load(lowered_artifacts["bf16"], threads=1)
    assert str(refusal.value) == (
        f"{lowered_artifacts['bf16']} is in bf16, but onnxruntime {onnxruntime.__version__}, cpu, 1 thread "
        "has fp32, fp16, int8, fp8, w8, w4; export it in one of these, or use another backend"
    )


def test_the_weights_of_a_bf16_artifact_are_in_bf16_themselves(lowered_artifacts: dict[str, pathlib.Path]) -> None:
    """And not those of the float32 graph that it was judged by."""
    for engine in ENGINES:
        weights = onnx.load(lowered_artifacts["bf16"] / f"{engine}.onnx").graph.initializer
        kinds = Counter(dict.fromkeys(LOW.values(), 0))
        for weight in weights:
            kinds[weight.data_type] += int(np.prod(weight.dims))
        assert kinds[onnx.TensorProto.BFLOAT16] > 0
        assert kinds[onnx.TensorProto.FLOAT16] == 0
    assert sorted(dataclasses.asdict(Artifact(lowered_artifacts["bf16"]).manifest)["files"]) == sorted(
        f"{engine}.onnx" for engine in ENGINES
    )
