"""An export is whole, checked and anonymous, or it is not there."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import numpy_helper
from torch import nn

from mar_export.artifact import export as export_module
from mar_export.artifact.export import export_artifact
from mar_export.artifact.parity import ENGINE_TOLERANCES, GENERATION_TOLERANCES
from mar_export.cli.export import export as export_command
from mar_export.onnx_export import exporter
from mar_export.onnx_export.exporter import OPSET
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import MANIFEST, Manifest
from runtime.errors import IntegrityError, MarError, ParityError, RequestError
from runtime.generator import Generator
from runtime.loops import host_loop
from runtime.loops.host_loop import Engines, run_plan
from runtime.model.config import ModelConfig
from runtime.model.engine_spec import ENGINES, EngineSpec, TensorSpec
from runtime.model.families import engine_specs
from runtime.sampling.plan import Float
from runtime.sampling.rng import seeded_noise, seeded_order
from runtime.sampling.samplers import DIFFUSION_SAMPLERS
from runtime.sampling.settings import Sampling
from runtime.storage.files import sha256
from tests.helpers.distance import relative_l2
from tests.helpers.golden_cases import GOLDEN, GOLDEN_TOLERANCE, golden_cases
from training.checkpoints.checkpoint import Checkpoint, load_checkpoint
from training.models.reference_loop import sample

ExportGraph = Callable[[nn.Module, EngineSpec, ModelConfig, pathlib.Path], None]

MODELS = ("small", "patch2")
CHECKPOINT, CONFIG = GOLDEN / "small" / "checkpoint-last.pth", GOLDEN / "small" / "meta.json"
CHECKOUT = pathlib.Path(__file__).parents[3]
ELEMENT_TYPES: dict[int, str] = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.INT64: "int64"}


@pytest.fixture(params=MODELS)
def exported(request: pytest.FixtureRequest, golden_artifacts: dict[str, pathlib.Path]) -> pathlib.Path:
    """An artifact as `export_artifact` left it, graphs traced and all."""
    return golden_artifacts[request.param]


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load_checkpoint(CHECKPOINT, CONFIG)


def manifest_of(artifact: pathlib.Path) -> Manifest:
    return Artifact(artifact).manifest


def names(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# What an export leaves.


def test_every_parity_in_the_manifest_is_within_its_tolerance(exported: pathlib.Path) -> None:
    manifest = manifest_of(exported)
    assert list(manifest.parity) == [*ENGINES, "generation"]
    assert manifest.precision == "fp32"
    tolerances = {**dict.fromkeys(ENGINES, ENGINE_TOLERANCES["fp32"]), "generation": GENERATION_TOLERANCES["fp32"]}
    assert max(tolerances.values()) == 1e-4
    for name, tolerance in tolerances.items():
        report = manifest.parity[name]
        assert report["tolerance"] == tolerance
        assert 0 < report["relative_l2"] <= tolerance
        assert report["sqnr_db"] == pytest.approx(-20 * math.log10(report["relative_l2"]))


def test_every_file_but_the_manifest_is_listed_as_it_is(exported: pathlib.Path) -> None:
    found = {path.relative_to(exported).as_posix(): path for path in exported.rglob("*") if path.name != MANIFEST}
    listed = manifest_of(exported).files
    assert listed.keys() == found.keys()
    for name, path in found.items():
        assert listed[name].bytes == path.stat().st_size
        assert listed[name].sha256 == sha256(path)


def test_no_file_tells_where_it_was_made(exported: pathlib.Path) -> None:
    """Exporters record the stack of the trace, with the paths of this machine."""
    places = [str(path).encode() for path in (CHECKOUT, exported.parent, torch.__path__[0])]
    for path in exported.iterdir():
        content = path.read_bytes()
        assert [place for place in places if place in content] == []


def test_the_manifest_names_the_checkpoint_and_the_versions(exported: pathlib.Path) -> None:
    provenance = manifest_of(exported).provenance
    assert provenance["checkpoint"] == CHECKPOINT.name
    assert provenance["checkpoint_sha256"] == sha256(GOLDEN / exported.name / "checkpoint-last.pth")
    assert provenance["opset"] == OPSET
    assert provenance["torch"] == torch.__version__
    assert provenance["onnx"] == onnx.__version__
    assert provenance["numpy"] == np.__version__


@pytest.mark.parametrize("engine", ENGINES)
def test_every_graph_is_of_the_one_opset_and_valid(exported: pathlib.Path, engine: str) -> None:
    model = onnx.load(exported / f"{engine}.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {domain.domain: domain.version for domain in model.opset_import} == {"": 20}
    assert not model.functions


@pytest.mark.parametrize("engine", ENGINES)
def test_every_graph_has_the_inputs_and_outputs_of_its_spec(exported: pathlib.Path, engine: str) -> None:
    """Names, types, fixed sizes, and the letters of the axes that are not."""
    graph = onnx.load(exported / f"{engine}.onnx").graph
    spec = engine_specs(manifest_of(exported).model)[engine]
    assert tuple(map(described, graph.input)) == spec.inputs
    assert tuple(map(described, graph.output)) == spec.outputs


@pytest.mark.parametrize("mask_schedule", ["cosine", "exponential"])
@pytest.mark.parametrize(("sampler", "eta"), [*((sampler, 0.0) for sampler in DIFFUSION_SAMPLERS), ("ddim", 0.7)])
def test_every_sampler_draws_what_the_eager_loop_draws(
    exported: pathlib.Path, sampler: str, eta: float, mask_schedule: str
) -> None:
    """With everything at once: guidance in some iterations, chains that shrink, an order that is not random."""
    settings: dict[str, Any] = {
        "iterations": 5,
        "mask_schedule": mask_schedule,
        "token_order": "checkerboard",
        "cfg_scale": 2.0,
        "cfg_interval": (0.05, 0.5),
        "sampler": sampler,
        "eta": eta,
        "diffusion_steps": 12,
        "last_diffusion_steps": 4,
        "start_timestep": 900,
    }
    model = load_checkpoint(GOLDEN / exported.name / "checkpoint-last.pth", GOLDEN / exported.name / "meta.json").model
    labels, indices = [1, 4, 0], [0, 1, 2]
    with Generator.load(exported, threads=1) as generator:
        plan = generator.plan(**settings)
        found = generator.generate(labels, seed=3, **settings).latents
    order = seeded_order(3, indices, model.config, "checkerboard")
    noise = seeded_noise(3, indices, 12, model.config)
    expected = sample(model.double(), np.array(labels), plan, order, noise)
    assert {iteration.guided for iteration in plan.iterations} == {True, False}
    assert [iteration.table.steps for iteration in plan.iterations] == [12, 10, 8, 6, 4]
    assert relative_l2(found, expected) <= GOLDEN_TOLERANCE


def described(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    shape = tuple(axis.dim_param or axis.dim_value for axis in tensor.shape.dim)
    return TensorSpec(value.name, ELEMENT_TYPES[tensor.elem_type], shape)


# What becomes of the folder. Tracing takes many seconds, so these exports copy graphs that were traced before;
# everything after the tracing is the real thing.


@pytest.fixture
def traced_before(golden_artifacts: dict[str, pathlib.Path], monkeypatch: pytest.MonkeyPatch) -> ExportGraph:
    def copy_graph(module: nn.Module, spec: EngineSpec, config: ModelConfig, path: pathlib.Path) -> None:
        shutil.copyfile(golden_artifacts["small"] / path.name, path)

    monkeypatch.setattr(export_module, "export_graph", copy_graph)
    return copy_graph


def silently(checkpoint: Checkpoint, out: pathlib.Path, force: bool = False) -> Manifest:
    return export_artifact(checkpoint, out, report=lambda text: None, force=force)


@pytest.mark.usefixtures("traced_before")
def test_the_command_exports_a_published_checkpoint(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "new" / "artifact"
    own = ["--iterations=5", "--cfg-scale=2.5", "--diffusion-steps=ddim20"]
    ended = CliRunner().invoke(export_command, [str(CHECKPOINT), f"--model-config={CONFIG}", f"--out={out}", *own])
    assert ended.exit_code == 0, ended.output
    assert f"artifact written to {out}" in ended.output
    for engine in ENGINES:
        assert f"{engine}: relative L2 from eager" in ended.output
    assert names(out.parent) == ["artifact"]
    assert manifest_of(out).sampling == Sampling(iterations=5, cfg_scale=2.5, diffusion_steps="ddim20")
    case = golden_cases()[0]
    with Generator.load(out, threads=1) as generator:
        found = generator.generate(case.labels.tolist(), order=case.order, noise=case.noise, **case.settings).latents
    assert relative_l2(found, case.latents) <= GOLDEN_TOLERANCE


@pytest.mark.parametrize(
    "own", [Sampling(iterations=17), Sampling(cfg_scale=-1.0), Sampling(diffusion_steps=1)], ids=str
)
def test_settings_that_cannot_be_drawn_with_are_refused_before_the_work(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, own: Sampling
) -> None:
    traced: list[str] = []
    monkeypatch.setattr(export_module, "export_graph", lambda module, spec, config, path: traced.append(spec.name))
    with pytest.raises(RequestError):
        export_artifact(checkpoint, tmp_path / "artifact", lambda text: None, own)
    assert traced == []
    assert names(tmp_path) == []


@pytest.mark.usefixtures("traced_before")
def test_an_export_replaces_another_artifact_only_by_force(
    checkpoint: Checkpoint, golden_artifacts: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "artifact"
    shutil.copytree(golden_artifacts["patch2"], out)
    (out / "left over.onnx").write_text("from before")
    with pytest.raises(
        RequestError, match=r"artifact holds another artifact \(it differs in checkpoint sha256, model\);"
    ):
        silently(checkpoint, out)
    assert manifest_of(out) == manifest_of(golden_artifacts["patch2"])
    manifest = silently(checkpoint, out, force=True)
    assert manifest.model == checkpoint.model.config
    assert manifest_of(out) == manifest
    assert names(out) == sorted([*manifest.files, MANIFEST])
    assert names(tmp_path) == ["artifact"]
    before, lines = (out / MANIFEST).read_bytes(), list[str]()
    assert export_artifact(checkpoint, out, lines.append) == manifest
    assert lines == [f"{out} holds this export already; --force exports it again"]
    assert (out / MANIFEST).read_bytes() == before


@pytest.mark.usefixtures("traced_before")
@pytest.mark.parametrize("inside", ["holiday.jpg", "backbone.onnx", MANIFEST])
def test_a_folder_that_is_no_artifact_is_not_replaced(
    checkpoint: Checkpoint, tmp_path: pathlib.Path, inside: str
) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / inside).write_text("mine")
    with pytest.raises(RequestError) as refusal:
        silently(checkpoint, out)
    assert str(out) in str(refusal.value)
    assert names(out) == [inside]
    assert names(tmp_path) == ["mine"]


@pytest.mark.usefixtures("traced_before")
def test_an_empty_folder_becomes_the_artifact(checkpoint: Checkpoint, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    silently(checkpoint, out)
    assert MANIFEST in names(out)


@pytest.mark.usefixtures("traced_before")
def test_a_file_is_not_replaced_either(checkpoint: Checkpoint, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "mine"
    out.write_text("mine")
    with pytest.raises(RequestError):
        silently(checkpoint, out)
    assert out.read_text() == "mine"
    assert names(tmp_path) == ["mine"]


# An engine that computes something else.


def off_by_a_little(path: pathlib.Path) -> None:
    """Scale the largest weight of a graph by a thousandth."""
    model = onnx.load(path)
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    changed = numpy_helper.to_array(weight) * np.float32(1.001)
    weight.CopyFrom(numpy_helper.from_array(changed, weight.name))
    onnx.save(model, path)


@pytest.mark.parametrize(
    ("engine", "before"),
    [("backbone", "nothing"), ("conditioning", "artifact"), ("denoise", "nothing")],
)
def test_an_engine_that_differs_from_eager_is_refused_and_leaves_nothing(
    checkpoint: Checkpoint,
    golden_artifacts: dict[str, pathlib.Path],
    traced_before: ExportGraph,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
    engine: str,
    before: str,
) -> None:
    def broken(module: nn.Module, spec: EngineSpec, config: ModelConfig, path: pathlib.Path) -> None:
        traced_before(module, spec, config, path)
        if spec.name == engine:
            off_by_a_little(path)

    monkeypatch.setattr(export_module, "export_graph", broken)
    out = tmp_path / "artifact"
    if before == "artifact":
        shutil.copytree(golden_artifacts["patch2"], out)
    with pytest.raises(ParityError, match=f"engine {engine}: relative L2 distance"):
        silently(checkpoint, out, force=True)
    assert names(tmp_path) == (["artifact"] if before == "artifact" else [])
    if before == "artifact":
        assert manifest_of(out) == manifest_of(golden_artifacts["patch2"])
        Artifact(out).verify()


@pytest.mark.usefixtures("traced_before")
def test_a_loop_that_differs_from_the_published_one_is_refused_though_every_engine_is_right(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """As someone would write it who forgot which rows of the batch are whose: the half without a class comes first."""

    def crossed(engines: Engines, *rest: Any) -> Float:
        def backbone(**inputs: Any) -> tuple[Any, ...]:
            return engines.backbone(**{**inputs, "labels": inputs["labels"][::-1]})

        return run_plan(dataclasses.replace(engines, backbone=backbone), *rest)

    monkeypatch.setattr(host_loop, "run_plan", crossed)
    with pytest.raises(ParityError, match=r"complete generation on onnxruntime .*: relative L2 distance"):
        silently(checkpoint, tmp_path / "artifact")
    assert names(tmp_path) == []


@pytest.mark.usefixtures("traced_before")
def test_a_failure_of_the_exporter_leaves_nothing(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    def failing(module: nn.Module, spec: EngineSpec, config: ModelConfig, path: pathlib.Path) -> None:
        path.write_text("half a graph")
        raise RuntimeError("the exporter gave up")

    monkeypatch.setattr(export_module, "export_graph", failing)
    with pytest.raises(RuntimeError, match="the exporter gave up"):
        silently(checkpoint, tmp_path / "artifact")
    assert names(tmp_path) == []


def test_a_graph_that_onnx_runtime_cannot_load_is_told(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    def garbled(module: nn.Module, spec: EngineSpec, config: ModelConfig, path: pathlib.Path) -> None:
        path.write_text("no graph")

    monkeypatch.setattr(export_module, "export_graph", garbled)
    with pytest.raises(MarError, match=r"backbone\.onnx"):
        silently(checkpoint, tmp_path / "artifact")
    assert names(tmp_path) == []


def test_large_weights_stand_beside_their_graph_and_are_guarded_as_well(
    pixel_checkpoint: Checkpoint, pixel_artifact: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "_EXTERNAL_DATA_BYTES", 0)
    artifact = tmp_path / "artifact"
    manifest = export_artifact(
        pixel_checkpoint, artifact, lambda text: None, Artifact(pixel_artifact).manifest.sampling
    )
    assert set(manifest.files) == {f"{name}.onnx{suffix}" for name in ENGINES for suffix in ("", ".data")}
    with Generator.load(artifact, threads=1) as outside, Generator.load(pixel_artifact, threads=1) as inside:
        assert (outside.generate([0, 1]).latents == inside.generate([0, 1]).latents).all()
    weights = artifact / "denoise.onnx.data"
    swapped = bytearray(weights.read_bytes())
    swapped[100] ^= 1
    weights.write_bytes(swapped)
    with pytest.raises(IntegrityError, match=r"denoise\.onnx\.data"):
        Generator.load(artifact)
