"""Quantized graphs and artifacts: what they compute, what is told of them, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import platform
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from calibration.cli.calibrate import calibrate
from calibration.quantization.qdq_graph import quantize_graph
from calibration.quantization.quantizable_layers import layers
from calibration.quantization.quantize import Quantization, quantize
from calibration.quantization.scales import Scale, activation_scale, candidates, quantized, weight_scales
from calibration.quantization.sqnr import judging
from calibration.quantization.statistics import Statistics
from calibration.quantization.variants import QuantizedProducts
from calibration.quantization.weight_only import BITS, block_size, quantized_blocks
from mar_export.tensorrt.artifact_builds import build_engines, wanted_plans
from mar_export.tensorrt.engine_builder import BuilderFlags, TensorRTBuilder
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import MANIFEST, QUANTIZED_PRECISIONS
from runtime.cli.inspect import inspect
from runtime.errors import CalibrationError, MarError, RequestError
from runtime.generator import Generator
from runtime.model.engine_spec import BACKBONE, CONDITIONING, DENOISE, ENGINES
from tests.helpers.calibration_statistics import SAMPLING
from tests.helpers.distance import relative_l2

REQUEST: dict[str, Any] = {"iterations": 4, "diffusion_steps": 5, "cfg_scale": 2.0, "seed": 3}


_KEPT = {
    BACKBONE: ["model.z_proj"],
    CONDITIONING: ["time_embed.mlp.0", "time_embed.mlp.2"],
    DENOISE: ["input_proj", "final_layer.linear"],
}


def quantization(precision: str = "int8", **changes: Any) -> Quantization:
    plain: dict[str, Any] = {"engines": ENGINES, "sampling": vars(SAMPLING), "target_sqnr": 0.0}
    return Quantization(precision, **{**plain, **changes})


@pytest.fixture(scope="module")
def low(
    golden_artifacts: dict[str, pathlib.Path], statistics_file: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, pathlib.Path]:
    """The golden model in every precision there is. Read only."""
    folder = tmp_path_factory.mktemp("quantized")
    for precision in QUANTIZED_PRECISIONS:
        asked = quantization(precision, target_sqnr=0 if precision == "w4" else 10)
        small = Artifact(golden_artifacts["small"])
        quantize(small, Statistics.load(statistics_file), folder / precision, asked, lambda _: None)
    return {precision: folder / precision for precision in QUANTIZED_PRECISIONS}


@given(st.floats(1e-3, 1e3), st.integers(0, 2**32 - 1), st.sampled_from(["int8", "fp8"]))
def test_rounding_is_off_by_half_a_step_at_most_and_clips_at_the_largest(
    scale: float, seed: int, precision: str
) -> None:
    largest = {"int8": 127, "fp8": 448}[precision] * scale
    x = (np.random.default_rng(seed).uniform(-2, 2, 200) * largest).astype(np.float32)
    found = quantized(x, scale, precision)
    inside = np.abs(x) <= largest
    step = scale if precision == "int8" else np.maximum(np.abs(x[inside]) / 8, scale * 2**-9)  # 3 bits of mantissa
    assert (np.abs(found - x)[inside] <= step / 2 * 1.0001).all()
    assert found[~inside] == pytest.approx(np.sign(x[~inside]) * largest, rel=1e-6)


def test_the_scale_is_the_candidate_with_the_least_error_in_the_product(statistics: Statistics) -> None:
    layer = statistics.layers["denoise/res_blocks.0.mlp.2"]
    weights = np.random.default_rng(0).standard_normal((layer.channel_max.size, 9)).astype(np.float32)
    scale = activation_scale(layer, weights, "int8")
    low_weights = quantized(weights, weight_scales(weights, "int8"), "int8")
    for cut in candidates(layer).values():
        error = relative_l2(quantized(layer.sample, cut / 127, "int8") @ low_weights, layer.sample @ weights)
        assert scale.error <= error * (1 + 1e-6)
    assert scale.scale == pytest.approx(candidates(layer)[scale.method] / 127)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_a_quantized_graph_computes_what_rounded_factors_give(
    golden_artifacts: dict[str, pathlib.Path], tmp_path: pathlib.Path, precision: str
) -> None:
    """A graph of one layer: the head's first product in isolation, fed through the whole engine's own nodes."""
    random = np.random.default_rng(1)
    weights, bias = random.standard_normal((6, 4)).astype(np.float32), random.standard_normal(4).astype(np.float32)
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["N", 6]))
    parameters = [ir.Value(name=n, const_value=ir.tensor(a, name=n)) for n, a in (("w", weights.T.copy()), ("b", bias))]
    for value, array in zip(parameters, (weights.T, bias), strict=True):
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(array.shape)
    gemm = ir.node("Gemm", [x, *parameters], {"transB": 1}, name="layer.Gemm")
    y = gemm.outputs[0]
    y.name, y.type, y.shape = "y", ir.TensorType(ir.DataType.FLOAT), ir.Shape(["N", 4])
    graph = ir.Graph([x], [y], nodes=[gemm], initializers=parameters, opset_imports={"": 20}, name="one")
    ir.save(ir.Model(graph, ir_version=10), tmp_path / "one.onnx")
    quantize_graph(tmp_path / "one.onnx", tmp_path / "low.onnx", precision, {"layer": Scale(0.03, "told", 0.0)})
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", str(int(precision == "fp8")))
    session = onnxruntime.InferenceSession(
        tmp_path / "low.onnx", options, providers=["CPUExecutionProvider"], disabled_optimizers=["MatMulAddFusion"]
    )
    rows = random.standard_normal((5, 6)).astype(np.float32)
    low_weights = quantized(weights, weight_scales(weights, precision), precision)
    expected = quantized(rows, 0.03, precision) @ low_weights + bias
    assert relative_l2(session.run(["y"], {"x": rows})[0], expected) < 1e-6
    assert relative_l2(expected, rows @ weights + bias) > 1e-3


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_all_but_the_layers_that_are_kept_are_in_low_precision(low: dict[str, pathlib.Path], precision: str) -> None:
    wanted = {"int8": ir.DataType.INT8, "fp8": ir.DataType.FLOAT8E4M3FN}[precision]
    for engine in ENGINES:
        graph = ir.load(low[precision] / f"{engine}.onnx").graph
        assert [layer.name for layer in layers(graph)] == _KEPT[engine]
        quantized_weights = [value for name, value in graph.initializers.items() if name.endswith("weight_quantized")]
        assert quantized_weights
        assert {value.dtype for value in quantized_weights} == {wanted}
        assert all(value.uses() for value in graph.initializers.values())


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_images_are_nearly_those_of_float32_and_the_manifest_says_how_nearly(
    golden_artifacts: dict[str, pathlib.Path], low: dict[str, pathlib.Path], precision: str
) -> None:
    with (
        Generator.load(golden_artifacts["small"], threads=1) as exact,
        Generator.load(low[precision], threads=1) as found,
    ):
        expected = exact.generate([0, 1, 2, 3], **REQUEST).latents
        distance = relative_l2(found.generate([0, 1, 2, 3], **REQUEST).latents, expected)
    assert 1e-4 < distance < 0.2
    manifest = Artifact(low[precision]).manifest
    assert manifest.precision == precision
    assert manifest.provenance["calibration_images"] == 10
    told = manifest.parity["generation"]
    assert told["relative_l2"] == pytest.approx(distance, rel=1.0)
    assert told["relative_l2"] <= told["tolerance"]


@pytest.mark.parametrize("engines", [ENGINES, [BACKBONE]], ids=["all", "one"])
def test_inspect_says_of_what_a_distance_is_and_names_a_tolerance_only_where_one_was_met(
    golden_artifacts: dict[str, pathlib.Path],
    statistics: Statistics,
    tmp_path: pathlib.Path,
    engines: Sequence[str],
) -> None:
    def inspected() -> str:
        return CliRunner().invoke(inspect, str(path.parent), catch_exceptions=False).output

    asked = quantization(engines=engines, target_sqnr=10, images=2)
    quantize(Artifact(golden_artifacts["small"]), statistics, tmp_path / "out", asked, lambda _: None)
    path = tmp_path / "out" / MANIFEST
    told = inspected()
    manifest = json.loads(path.read_text())
    parity = manifest["parity"]
    assert {name for name, report in parity.items() if "tolerance" not in report} == set(engines)
    lines = [line.strip() for line in told.splitlines() if "relative L2" in line]
    assert lines == [
        f"relative L2 of latents from those in float32 {parity[name]['relative_l2']:.1e}"
        if name in engines
        else f"relative L2 from eager PyTorch {parity[name]['relative_l2']:.1e}, allowed 1e-05"
        for name in ENGINES
    ] + [
        f"whole generation: relative L2 of latents from those in float32 {parity['generation']['relative_l2']:.1e}, "
        "allowed 3e-01"
    ]
    for name in engines:  # as manifests were before
        parity[name]["tolerance"] = 1.0
    path.write_text(json.dumps(manifest))
    assert inspected() == told


@pytest.mark.parametrize(("precision", "most"), [("int8", 0.2), ("fp8", 0.2), ("w8", 0.05), ("w4", 0.5)])
def test_openvino_draws_every_low_precision_as_nearly(
    golden_artifacts: dict[str, pathlib.Path], low: dict[str, pathlib.Path], precision: str, most: float
) -> None:
    with (
        Generator.load(golden_artifacts["small"], threads=1) as exact,
        Generator.load(low[precision], backend="openvino", threads=1) as found,
    ):
        expected = exact.generate([0, 1, 2, 3], **REQUEST).latents
        distance = relative_l2(found.generate([0, 1, 2, 3], **REQUEST).latents, expected)
    assert 1e-4 < distance < most


def test_an_engine_that_is_not_asked_for_stays_as_it_is(
    golden_artifacts: dict[str, pathlib.Path], statistics: Statistics, tmp_path: pathlib.Path
) -> None:
    small = Artifact(golden_artifacts["small"])
    quantize(small, statistics, tmp_path / "out", quantization(engines=[BACKBONE]), lambda _: None)
    for engine in ENGINES:
        same = (tmp_path / "out" / f"{engine}.onnx").read_bytes() == small.engine_file(engine).read_bytes()
        assert same is (engine != BACKBONE)


def test_a_target_that_is_missed_leaves_nothing(
    golden_artifacts: dict[str, pathlib.Path], statistics: Statistics, tmp_path: pathlib.Path
) -> None:
    small = Artifact(golden_artifacts["small"])
    with pytest.raises(CalibrationError, match=r"the latents keep \d+\.\d dB, where --target-sqnr asks for 150\.0"):
        quantize(small, statistics, tmp_path / "out", quantization(target_sqnr=150, images=2), lambda _: None)
    assert list(tmp_path.iterdir()) == []


def refused(result: Result) -> MarError:
    assert isinstance(result.exception, MarError), result.output
    assert "\n" not in str(result.exception)
    return result.exception


def command(*arguments: object) -> Result:
    return CliRunner().invoke(calibrate, [*map(str, arguments)], standalone_mode=False)


def test_the_command_makes_an_artifact_and_tells_of_every_layer(
    golden_artifacts: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    plan = ["--iterations", 2, "--diffusion-steps", 2, "--count", 2, "--threads", 1, "--target-sqnr", 5]
    result = command(golden_artifacts["small"], "--out", tmp_path / "low", *plan)
    assert result.exception is None, result.output
    assert "denoise/res_blocks.0.mlp.0: " in result.output
    assert "all in int8: the latents keep " in result.output
    assert (tmp_path / "low.statistics.npz").exists()
    Artifact(tmp_path / "low").verify()


def test_what_cannot_be_calibrated_is_refused_in_one_line(
    golden_artifacts: dict[str, pathlib.Path],
    low: dict[str, pathlib.Path],
    statistics_file: pathlib.Path,
    tmp_path: pathlib.Path,
) -> None:
    small, out = golden_artifacts["small"], tmp_path / "out"
    assert "unknown nothing" in str(refused(command(small, "--out", out, "--engines", "denoise,nothing")))
    assert "--count must" in str(refused(command(small, "--out", out, "--count", 0)))
    plan = ["--iterations", 4, "--diffusion-steps", 5, "--cfg-scale", 2.0, "--count", 2, "--threads", 1]
    assert "is in int8; calibrate one in fp32" in str(refused(command(low["int8"], "--out", out, *plan)))
    other = command(golden_artifacts["patch2"], "--out", out, "--statistics", statistics_file, *plan)
    assert "another artifact" in str(refused(other))
    assert not out.exists()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="TensorRT-RTX has a package for x86-64 alone")
@pytest.mark.parametrize("architecture", ["sm_86", "sm_89", "sm_120"])
@pytest.mark.parametrize("precision", QUANTIZED_PRECISIONS)
def test_the_compiler_takes_every_graph_where_the_gpu_has_such_products(
    low: dict[str, pathlib.Path], tmp_path: pathlib.Path, precision: str, architecture: str
) -> None:
    import shutil

    path = pathlib.Path(shutil.copytree(low[precision], tmp_path / "artifact"))
    artifact = Artifact(path)
    builder = TensorRTBuilder("tensorrt-rtx", [architecture])
    plans = wanted_plans(artifact, {"iterations": 4, "diffusion_steps": 5, "cfg_scale": 2.0})

    def build() -> None:
        build_engines(artifact, builder, plans, (1, 1, 2), BuilderFlags(), None, False, lambda _: None, None)

    if (precision, architecture) == ("fp8", "sm_86"):
        with pytest.raises(
            RequestError, match=r"is in fp8, but sm_86 has products in fp32, fp16, int8, bf16, w8, w4 only"
        ):
            build()
        assert not (path / "engines").exists()
    else:
        build()
        assert {build.engine for build in Artifact(path).manifest.builds} == set(ENGINES)


def test_smoothing_changes_no_numbers_where_nothing_is_rounded(
    golden_artifacts: dict[str, pathlib.Path],
    statistics: Statistics,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Norms, weights and the modulation of another engine, all divided and multiplied, draw the same images."""
    small = Artifact(golden_artifacts["small"])
    form = QuantizedProducts(small, ENGINES, "int8", statistics)
    smoothed = [layer for layer, scale in form.scales.items() if scale.smoothing is not None]
    assert {layer.split("/")[0] for layer in smoothed} == {BACKBONE, DENOISE}
    random = np.random.default_rng(0)
    for layer in smoothed:
        channels = statistics.layers[layer].channel_max.size
        uneven = random.uniform(0.5, 2, channels).astype(np.float32)
        form.scales[layer] = dataclasses.replace(form.scales[layer], smoothing=uneven)
    monkeypatch.setattr("calibration.quantization.qdq_graph._dequantized", _identity)
    monkeypatch.setattr(
        "calibration.quantization.qdq_graph._rounded", lambda graph, product, activation, *_: ([], activation)
    )
    changed = form.write(tmp_path, smoothed)
    assert set(changed) == set(ENGINES)
    with judging(small, vars(SAMPLING), 2, 1) as judge:
        exact = {engine: (graph, "fp32") for engine, (graph, _) in changed.items()}
        assert judge.relative_l2(exact) < 1e-4
        assert judge.relative_l2({name: exact[name] for name in (DENOISE,)}) > 1e-2  # one without the other is wrong


def _identity(graph: ir.Graph, name: str, weights: Any, precision: str) -> ir.Node:
    from calibration.quantization.graph_surgery import constant

    return ir.node("Identity", [constant(graph, f"{name}.same", weights)], name=f"{name}.same")


def test_smoothing_is_chosen_only_where_it_makes_less_error(statistics: Statistics) -> None:
    layer = statistics.layers["backbone/model.encoder_blocks.0.mlp.fc1"]
    weights = np.random.default_rng(0).standard_normal((layer.channel_max.size, 9)).astype(np.float32)
    plain, smooth = (activation_scale(layer, weights, "int8", smooth=smooth) for smooth in (False, True))
    assert smooth.error <= plain.error
    uneven = np.geomspace(1, 300, layer.channel_max.size, dtype=np.float32)
    spread = layer.divided(1 / uneven)
    plain, smooth = (activation_scale(spread, weights, "int8", smooth=smooth) for smooth in (False, True))
    assert smooth.smoothing is not None
    assert smooth.error < 0.7 * plain.error


def test_the_most_sensitive_layers_stay_in_float32_until_the_target_is_met(
    golden_artifacts: dict[str, pathlib.Path], statistics: Statistics, tmp_path: pathlib.Path
) -> None:
    small = Artifact(golden_artifacts["small"])
    told: list[str] = []
    asked = quantization(engines=[CONDITIONING, DENOISE], images=2, rank=True)
    everything = quantize(small, statistics, tmp_path / "all", asked, told.append)
    distances = [each.relative_l2 for each in everything.ranking]
    assert distances == sorted(distances, reverse=True)
    assert {each.layer for each in everything.ranking} == {
        f"{engine}/{layer.name}"
        for engine in (CONDITIONING, DENOISE)
        for layer in layers(ir.load(small.engine_file(engine)).graph)
        if layer.name not in _KEPT[engine]
    }
    reached = everything.manifest.parity["generation"]["sqnr_db"]
    target = reached + 3
    asked = quantization(engines=[CONDITIONING, DENOISE], images=2, target_sqnr=target)
    better = quantize(small, statistics, tmp_path / "better", asked, told.append)
    kept = better.manifest.provenance["kept_in_float32"].split(", ")
    assert kept[0] in {each.layer for each in everything.ranking}
    assert everything.ranking[0].layer in kept
    assert len(kept) < len(everything.ranking)
    assert better.manifest.parity["generation"]["sqnr_db"] >= target
    for layer in kept:
        engine, _, name = layer.partition("/")
        assert name in {each.name for each in layers(ir.load(tmp_path / "better" / f"{engine}.onnx").graph)}


def test_a_share_of_the_layers_can_be_kept(
    golden_artifacts: dict[str, pathlib.Path], statistics: Statistics, tmp_path: pathlib.Path
) -> None:
    asked = quantization(engines=[DENOISE], images=1, keep_share=0.3)
    small = Artifact(golden_artifacts["small"])
    made = quantize(small, statistics, tmp_path / "out", asked, lambda _: None)
    count = -(-len(made.ranking) * 3 // 10)
    assert made.manifest.provenance["kept_in_float32"].split(", ") == sorted(
        each.layer for each in made.ranking[:count]
    )


def test_the_drift_is_the_distance_of_the_tokens_of_each_iteration(
    golden_artifacts: dict[str, pathlib.Path], statistics: Statistics, tmp_path: pathlib.Path
) -> None:
    """A token never changes once it is there, so the squares of all iterations are those of the image."""
    small = Artifact(golden_artifacts["small"])
    form = QuantizedProducts(small, [BACKBONE], "int8", statistics)
    with judging(small, vars(SAMPLING), 3, 1) as judge:
        told = judge.report(form.write(tmp_path, form.layers))
        assert told["relative_l2"] == pytest.approx(judge.relative_l2(form.write(tmp_path, form.layers)))
    assert [each["iteration"] for each in told["drift"]] == [1, 2, 3, 4]
    distances = [each["relative_l2"] for each in told["drift"]]
    assert min(distances) <= told["relative_l2"] <= max(distances)
    assert len(set(distances)) == len(distances)


@pytest.mark.parametrize(("precision", "most"), [("w8", 0.05), ("w4", 0.5)])
def test_weights_alone_are_in_blocks_of_few_bits(
    golden_artifacts: dict[str, pathlib.Path], low: dict[str, pathlib.Path], precision: str, most: float
) -> None:
    """ONNX Runtime rounds activations of such products to 8 bits too, row by row, and the head amplifies it."""
    assert 0 < Artifact(low[precision]).manifest.parity["generation"]["relative_l2"] < most
    stored = {"w8": ir.DataType.INT8, "w4": ir.DataType.INT4}[precision]
    for engine in ENGINES:
        graph = ir.load(low[precision] / f"{engine}.onnx").graph
        assert [layer.name for layer in layers(graph)] == _KEPT[engine]
        weights = [value for name, value in graph.initializers.items() if name.endswith("weight_quantized")]
        assert weights
        assert {value.dtype for value in weights} == {stored}
        assert not any(node.op_type == "QuantizeLinear" for node in graph)
    with (
        Generator.load(low[precision], threads=1) as found,
        Generator.load(golden_artifacts["small"], threads=1) as exact,
    ):
        distance = relative_l2(found.generate([0, 1], **REQUEST).latents, exact.generate([0, 1], **REQUEST).latents)
    assert 0 < distance < most


@given(st.integers(0, 2**32 - 1), st.sampled_from(["w8", "w4"]), st.sampled_from([16, 32]))
def test_a_weight_in_a_block_is_off_by_half_a_step_at_most(seed: int, precision: str, size: int) -> None:
    weights = np.random.default_rng(seed).standard_normal((64, 3)).astype(np.float32)
    low, scales = quantized_blocks(weights, precision, size)
    steps = np.repeat(scales, size, axis=0)
    assert (np.abs(low * steps - weights) <= steps / 2 * 1.0001).all()
    assert np.abs(low).max() == 2 ** (BITS[precision] - 1) - 1


def test_layers_whose_width_no_block_divides_stay_as_they_are() -> None:
    assert [block_size(channels) for channels in (768, 160, 224, 48, 20)] == [128, 32, 32, 16, None]


def test_ranges_are_drawn_to_a_image(statistics: Statistics, tmp_path: pathlib.Path) -> None:
    from PIL import Image

    from calibration.quantization.range_chart import save_report

    save_report(statistics, tmp_path / "report.png")
    with Image.open(tmp_path / "report.png") as image:
        assert min(image.size) > 400
        assert len(image.convert("RGB").getcolors(2**24) or []) > 50


def test_the_command_ranks_draws_and_refuses_in_one_line(
    golden_artifacts: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    small, out = golden_artifacts["small"], tmp_path / "out"
    plan = ["--iterations", 2, "--diffusion-steps", 2, "--count", 2, "--threads", 1, "--target-sqnr", 0]
    ranked, report = tmp_path / "ranked.json", tmp_path / "report.png"
    some = ["--engines", "denoise", "--eval-count", 1, "--sensitivity", ranked, "--report", report, "--keep-fp", "20%"]
    result = command(small, "--out", out, *plan, *some)
    assert result.exception is None, result.output
    assert "most sensitive alone" in result.output
    assert report.exists()
    assert [each["layer"].split("/")[0] for each in json.loads(ranked.read_text())["layers"]] == ["denoise"] * 4
    refusals = {
        "give --out, the quantized artifact to make, or --report": [],
        "int4 is for weights alone": ["--out", out, "--precision", "int4"],
        "--weights-only is for": ["--out", out, "--precision", "fp8", "--weights-only"],
        "--keep-fp must be a share": ["--out", out, "--keep-fp", "much"],
        "--eval-count must": ["--out", out, "--eval-count", 0],
        "is the artifact that is quantized, whose float32 engines stay": ["--out", small],
        "--target-sqnr must be a number in 0..200, found nan": ["--out", out, "--target-sqnr", "nan"],
    }
    for told, arguments in refusals.items():
        assert told in str(refused(command(small, *arguments)))
