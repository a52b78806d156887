"""Engines built with TensorRT-RTX itself, which needs no GPU for that; and what becomes of the artifact."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import pathlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mar_export.cli import build as build_cli
from mar_export.tensorrt.artifact_builds import BuildOptions, build_engines, plans_to_build
from mar_export.tensorrt.engine_builder import BuilderFlags, Progress, TensorRTBuilder
from mar_export.tensorrt.optimization_profiles import Range, axis_ranges, input_shapes
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.engine_builds import Build, Shapes
from runtime.artifact.manifest import FLOAT_PRECISIONS, MANIFEST, FileEntry, Manifest
from runtime.errors import ArtifactError, BackendError
from runtime.files import sha256, write_json
from runtime.generator import Generator
from runtime.loops import host_loop as loop
from runtime.loops.host_loop import Engines, run_plan
from runtime.model.config import ModelConfig
from runtime.model.engine_spec import (
    BACKBONE,
    CONDITIONING,
    DECODER,
    DENOISE,
    ENCODER,
    ENGINES,
    EngineSpec,
    engine_specs,
    tokenizer_specs,
)
from runtime.sampling.plan import CFG_SCHEDULES, MASK_SCHEDULES, STEP_SCHEDULES, Plan, build_plan
from runtime.sampling.presets import PRESETS, resolve_sampling
from runtime.sampling.rng import TOKEN_ORDERS
from runtime.sampling.samplers import DIFFUSION_SAMPLERS
from runtime.sampling.settings import Sampling
from tests.helpers.command_line import Ended, Mar
from tests.helpers.golden_cases import GOLDEN

if not (sys.platform == "linux" and platform.machine() == "x86_64"):
    pytest.importorskip("tensorrt_rtx")

Json = Any

RTX_GPUS = ("sm_86", "sm_89", "sm_120")
BATCH = (1, 1, 8)
TINY_KL = ModelConfig(
    img_size=8,
    vae_stride=2,
    vae_embed_dim=4,
    patch_size=1,
    class_num=2,
    buffer_size=2,
    encoder_embed_dim=16,
    encoder_depth=1,
    encoder_num_heads=2,
    decoder_embed_dim=16,
    decoder_depth=1,
    decoder_num_heads=2,
    diffloss_d=1,
    diffloss_w=32,
)


class QuickBuilder(TensorRTBuilder):
    """Stands for the library where what is built does not matter: notes what it is asked for, and every plan is longer
    than the one before.
    """

    def __init__(self, *architectures: str, version: str = "1.7.1.116", fails_at: str = "") -> None:
        self.target, self.version, self.architectures = "tensorrt-rtx", version, architectures or ("sm_89",)
        self.asked: dict[str, Mapping[str, Shapes]] = {}
        self._made_plans, self._fails_at = 0, fails_at

    def build(
        self,
        graph: pathlib.Path,
        profile: Mapping[str, Shapes],
        flags: BuilderFlags,
        timing_cache: pathlib.Path | None,
        progress: Progress | None,
    ) -> bytes:
        if graph.stem == self._fails_at:
            raise BackendError(f"{graph.name} was not built")
        self.asked[graph.stem] = profile
        self._made_plans += 1
        return b"plan " * self._made_plans


def build_with(
    builder: TensorRTBuilder,
    path: pathlib.Path,
    *,
    plans: Sequence[Plan] | None = None,
    batch: Range = BATCH,
    flags: BuilderFlags | None = None,
    force: bool = False,
) -> list[str]:
    """What was said while every engine of the artifact was built."""
    artifact, said = Artifact(path), list[str]()
    plans = plans_to_build(artifact, {}) if plans is None else plans
    build_engines(artifact, builder, plans, BuildOptions(batch, flags or BuilderFlags(), force=force), said.append)
    return said


def manifest_of(path: pathlib.Path) -> Manifest:
    return Artifact(path).manifest


def plan_files(path: pathlib.Path) -> set[str]:
    return {file.relative_to(path).as_posix() for file in (path / "engines").rglob("*") if file.is_file()}


def assembled(folder: pathlib.Path, config: ModelConfig, tokenizer: str, precision: str) -> pathlib.Path:
    """An artifact of the graphs that lie in `folder`, without the comparison that an export makes."""
    graphs = {path.stem: path.name for path in sorted(folder.glob("*.onnx"))}
    manifest = Manifest(
        model=config,
        tokenizer=tokenizer,
        class_names=(),
        sampling=Sampling(),
        precision=precision,
        files={name: FileEntry((folder / name).stat().st_size, sha256(folder / name)) for name in graphs.values()},
        engines=graphs,
        provenance={},
        parity={name: {"relative_l2": 1e-6, "tolerance": 1e-4} for name in (*graphs, "generation")},
    )
    write_json(folder / MANIFEST, manifest.to_dict())
    return folder


def hollow(folder: pathlib.Path, tokenizer: str = "kl", config: ModelConfig = TINY_KL) -> pathlib.Path:
    """A small artifact whose graphs are texts."""
    folder.mkdir(parents=True)
    for name in (*ENGINES, *([DECODER, ENCODER] if tokenizer == "kl" else [])):
        (folder / f"{name}.onnx").write_text(f"graph of {name}")
    return assembled(folder, config, tokenizer, "fp32")


@pytest.fixture
def artifact(golden_artifacts: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy without builds, to change."""
    return pathlib.Path(shutil.copytree(golden_artifacts["small"], tmp_path / "artifact"))


@pytest.fixture(scope="module")
def all_built(
    golden_artifacts: dict[str, pathlib.Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, pathlib.Path]:
    """Both golden models with engines of TensorRT-RTX. Read only."""
    folder = tmp_path_factory.mktemp("built")
    for name, path in golden_artifacts.items():
        shutil.copytree(path, folder / name)
        build_with(TensorRTBuilder("tensorrt-rtx", RTX_GPUS), folder / name)
    return {name: folder / name for name in golden_artifacts}


@pytest.fixture
def built(all_built: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of the small model with its engines, to change."""
    return pathlib.Path(shutil.copytree(all_built["small"], tmp_path / "built"))


# Every graph, with the real library.


@pytest.mark.parametrize("model", ["small", "patch2"])
def test_every_graph_of_a_golden_model_builds_and_is_listed_with_file_hash_and_profile(
    all_built: dict[str, pathlib.Path], model: str
) -> None:
    path = all_built[model]
    artifact = Artifact(path)
    artifact.verify(builds=True)
    manifest = artifact.manifest
    assert [build.engine for build in manifest.builds] == list(ENGINES)
    ranges = axis_ranges(plans_to_build(artifact, {}), BATCH)
    for build in manifest.builds:
        assert (build.target, build.architectures, build.precision) == ("tensorrt-rtx", RTX_GPUS, "fp32")
        assert build.library == sys.modules["tensorrt_rtx"].__version__
        assert build.flags == {}
        assert build.graph_sha256 == manifest.graph_sha256(build.engine)
        assert build.profile == input_shapes(manifest.specs[build.engine], ranges, BATCH)
        content = path / build.file
        assert manifest.files[build.file] == FileEntry(content.stat().st_size, sha256(content))
        assert content.stat().st_size > 100_000
    assert {build.file for build in manifest.builds} == plan_files(path)
    assert len(plan_files(path)) == len(ENGINES)


# Tracing takes seconds, so here is each engine once in one lower precision, and behind `slow` are all.
LOWERED = ((BACKBONE, "fp16"), (CONDITIONING, "fp16"), (DENOISE, "bf16"), (DECODER, "bf16"))


@pytest.mark.parametrize(("engine", "precision"), LOWERED)
def test_a_graph_in_lower_precision_builds(engine: str, precision: str, tmp_path: pathlib.Path) -> None:
    export_tiny_kl(tmp_path, precision, [engine])
    spec = {**engine_specs(TINY_KL), **tokenizer_specs(TINY_KL)}[engine]
    ranges = axis_ranges([build_plan(TINY_KL.tokens, Sampling(cfg_scale=2.0))], BATCH)
    builder = TensorRTBuilder("tensorrt-rtx", RTX_GPUS)
    plan = builder.build(
        tmp_path / f"{engine}.onnx", input_shapes(spec, ranges, BATCH), BuilderFlags(), timing_cache=None, progress=None
    )
    assert len(bytes(plan)) > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("precision", FLOAT_PRECISIONS)
@pytest.mark.parametrize("model", ["small", "patch2", "kl"])
def test_every_graph_of_every_model_in_every_precision_builds(
    model: str, precision: str, tmp_path: pathlib.Path
) -> None:
    if model == "kl":
        config = TINY_KL
        export_tiny_kl(tmp_path, precision, [*ENGINES, DECODER, ENCODER])
    else:
        config = export_golden(tmp_path, model, precision)
    path = assembled(tmp_path, config, "kl" if model == "kl" else "none", precision)
    build_with(TensorRTBuilder("tensorrt-rtx", RTX_GPUS), path)
    Artifact(path).verify(builds=True)
    builds = manifest_of(path).builds
    assert [build.engine for build in builds] == [*ENGINES, *([DECODER, ENCODER] if model == "kl" else [])]
    assert {build.precision for build in builds} == {precision}


def export_tiny_kl(folder: pathlib.Path, precision: str, engines: Sequence[str]) -> None:
    import torch

    from mar_export.graphs.engine_modules import graph_modules
    from training.models.autoencoder import AutoencoderKL, VAEConfig
    from training.models.mar import MAR

    torch.manual_seed(0)
    autoencoder = VAEConfig(width=32, multipliers=(1, 1), latent_channels=4, attention_levels=())
    modules = graph_modules(MAR(**TINY_KL.to_dict()), AutoencoderKL(autoencoder), encoder=True)
    export_modules(folder, TINY_KL, precision, {name: modules[name] for name in engines})


def export_golden(folder: pathlib.Path, model: str, precision: str) -> ModelConfig:
    from mar_export.graphs.engine_modules import graph_modules
    from training.checkpoints.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(GOLDEN / model / "checkpoint-last.pth", GOLDEN / model / "meta.json")
    export_modules(folder, checkpoint.model.config, precision, graph_modules(checkpoint.model, None, encoder=False))
    return checkpoint.model.config


def export_modules(folder: pathlib.Path, config: ModelConfig, precision: str, modules: Mapping[str, Any]) -> None:
    from mar_export.onnx_export.exporter import export_graph
    from mar_export.onnx_export.mixed_precision import DTYPES, to_precision

    specs = {**engine_specs(config), **tokenizer_specs(config)}
    for name, module in modules.items():
        part = module if precision == "fp32" else to_precision(module, DTYPES[precision])
        export_graph(part, specs[name], config, folder / f"{name}.onnx")


# The command, again and again.


def test_the_command_builds_what_is_missing_and_only_that(built: pathlib.Path, mar: Mar) -> None:
    before = (built / MANIFEST).read_bytes()
    gpus = " ".join(f"--architecture {name}" for name in reversed(RTX_GPUS))
    ended = mar(f"build {built} --target tensorrt-rtx {gpus}")
    assert ended == Ended(0, "backbone: built already\nconditioning: built already\ndenoise: built already\n", "")
    assert (built / MANIFEST).read_bytes() == before


def test_what_is_forced_is_built_again(built: pathlib.Path, mar: Mar) -> None:
    before = manifest_of(built)
    first = built / before.builds[0].file
    first.write_bytes(b"x" * first.stat().st_size)
    gpus = " ".join(f"--architecture {name}" for name in RTX_GPUS)
    ended = mar(f"build {built} --target tensorrt-rtx {gpus} --force")
    assert (ended.code, ended.err) == (0, "")
    assert [line.split(":")[0] for line in ended.out.splitlines()] == list(ENGINES)
    assert f"MiB in {before.builds[0].file}\n" in ended.out
    assert manifest_of(built).builds == before.builds
    assert plan_files(built) == {build.file for build in before.builds}
    Artifact(built).verify(builds=True)


def test_a_build_takes_the_place_of_the_older_one_and_others_stay(built: pathlib.Path, mar: Mar) -> None:
    """The older one of the same engine, library and GPUs, that is, whatever its profile and flags."""
    older = manifest_of(built).builds
    assert mar(f"build {built} --target tensorrt-rtx --architecture sm_89").code == 0
    assert manifest_of(built).builds[:3] == older
    single = manifest_of(built).builds[3:]
    assert [(build.engine, build.architectures) for build in single] == [(name, ("sm_89",)) for name in ENGINES]
    assert mar(f"build {built} --target tensorrt-rtx --architecture sm_89 --tf32 --batch 2:2:2").code == 0
    manifest = manifest_of(built)
    assert manifest.builds[:3] == older
    assert [build.engine for build in manifest.builds[3:]] == list(ENGINES)
    assert {build.flags["tf32"] for build in manifest.builds[3:]} == {True}
    assert plan_files(built) == {build.file for build in manifest.builds}
    assert not plan_files(built) & {build.file for build in single}
    assert manifest.files.keys() == plan_files(built) | {f"{name}.onnx" for name in ENGINES}
    Artifact(built).verify(builds=True)


@pytest.mark.parametrize(
    "other",
    [
        {"engine": "denoise"},
        {"target": "tensorrt"},
        {"library": "1.7.1"},
        {"architectures": ("sm_86", "sm_89")},
        {"precision": "fp16"},
    ],
    ids=str,
)
def test_a_build_for_something_else_is_not_replaced(other: dict[str, Any]) -> None:
    build = Build("backbone", "tensorrt-rtx", "0" * 64, "1.8", ("sm_86",), "fp32", {"x": ((1,), (2,), (3,))}, {})
    assert not build.replaced_by(dataclasses.replace(build, **other))
    assert dataclasses.replace(build, **other).file != build.file


@pytest.mark.parametrize(
    "other", [{"graph_sha256": "1" * 64}, {"profile": {"x": ((1,), (2,), (4,))}}, {"flags": {"tf32": True}}], ids=str
)
def test_a_build_of_another_graph_profile_or_flag_is_another_file_but_replaces(other: dict[str, Any]) -> None:
    build = Build("backbone", "tensorrt-rtx", "0" * 64, "1.8", ("sm_86",), "fp32", {"x": ((1,), (2,), (3,))}, {})
    assert build.replaced_by(dataclasses.replace(build, **other))
    assert dataclasses.replace(build, **other).file != build.file


def test_the_real_library_tells_its_progress(golden_artifacts: dict[str, pathlib.Path]) -> None:
    seen: list[tuple[str, int, int]] = []
    artifact = Artifact(golden_artifacts["small"])
    sizes = input_shapes(artifact.manifest.specs[DENOISE], axis_ranges(plans_to_build(artifact, {}), BATCH), BATCH)
    TensorRTBuilder("tensorrt-rtx", ["sm_89"]).build(
        artifact.engine_file(DENOISE), sizes, BuilderFlags(), None, lambda *step: seen.append(step)
    )
    assert seen
    assert all(0 <= done <= of for _, done, of in seen)
    for phase in {phase for phase, _, _ in seen}:
        assert next(done for name, done, _ in seen if name == phase) == 0


def test_what_the_real_library_cannot_build_is_one_line_with_what_it_logged(artifact: pathlib.Path, mar: Mar) -> None:
    """Its lean runtime, which a version-compatible engine carries, is not in its package."""
    before = (artifact / MANIFEST).read_bytes()
    ended = mar(f"build {artifact} --target tensorrt-rtx --architecture sm_89 --version-compatible")
    assert (ended.code, ended.out) == (1, "")
    told = ended.err.splitlines()[-1]
    assert told.startswith("mar: tensorrt-rtx 1.")
    assert "backbone.onnx was not built | " in told
    assert "libnvinfer_lean" in told
    assert (artifact / MANIFEST).read_bytes() == before
    Artifact(artifact).verify(builds=True)


def test_an_architecture_that_is_refused_is_one_line(artifact: pathlib.Path, mar: Mar) -> None:
    ended = mar(f"build {artifact} --target tensorrt-rtx --architecture sm_87")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.count("\n") == 1
    assert "cannot build for sm_87; it knows sm_75, " in ended.err


def test_building_imports_neither_torch_nor_onnx(artifact: pathlib.Path) -> None:
    code = (
        "import sys\n"
        "from runtime.cli.main import main\n"
        "try:\n    main()\n"
        "except SystemExit as ended:\n    assert not ended.code, ended.code\n"
        "assert 'tensorrt_rtx' in sys.modules\n"
        "print(sorted({name.split('.')[0] for name in sys.modules}))\n"
    )
    line = ["build", str(artifact), "--target", "tensorrt-rtx", "--architecture", "sm_89"]
    ended = subprocess.run([sys.executable, "-c", code, *line], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    imported = set(json.loads(ended.stdout.splitlines()[-1].replace("'", '"')))
    assert "mar_export" in imported
    assert not imported & {"torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "training"}
    assert len(manifest_of(artifact).builds) == 3


# Damage.


def flip(file: pathlib.Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_damaged_plan_is_told_by_inspect_and_no_business_of_onnxruntime(built: pathlib.Path, mar: Mar) -> None:
    damaged = manifest_of(built).builds[1].file
    flip(built / damaged)
    assert mar(f"inspect {built}").code == 0
    ended = mar(f"inspect {built} --verify")
    assert ended.code == 1
    assert ended.err.startswith(f"mar: {built / damaged}: altered since export")
    with Generator.load(built, threads=1) as generator:
        assert np.isfinite(generator.generate([1], iterations=2, diffusion_steps="ddim2").latents).all()


def test_a_graph_that_was_altered_is_refused_before_the_parser_sees_it(
    artifact: pathlib.Path, mar: Mar, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[pathlib.Path] = []
    monkeypatch.setattr(TensorRTBuilder, "_parse", lambda self, network, graph: parsed.append(graph))
    flip(artifact / "denoise.onnx")
    ended = mar(f"build {artifact} --target tensorrt-rtx --architecture sm_89")
    assert ended.code == 1
    assert ended.err.startswith(f"mar: {artifact / 'denoise.onnx'}: altered since export")
    assert parsed == []
    assert not (artifact / "engines").exists()


def test_the_weights_beside_a_graph_belong_to_its_hash_and_nothing_else_does(tmp_path: pathlib.Path) -> None:
    manifest = manifest_of(hollow(tmp_path / "artifact"))
    weights = dataclasses.replace(manifest, files={**manifest.files, "backbone.onnx.data": FileEntry(1, "1" * 64)})
    first = weights.graph_sha256(BACKBONE)
    assert first != manifest.graph_sha256(BACKBONE)
    assert weights.graph_sha256(DENOISE) == manifest.graph_sha256(DENOISE)
    for name in ("backbone.onnx", "backbone.onnx.data"):
        changed = dataclasses.replace(weights, files={**weights.files, name: FileEntry(1, "2" * 64)})
        assert changed.graph_sha256(BACKBONE) != first
    for name in ("denoise.onnx", "backbone.onnx.data.old"):
        changed = dataclasses.replace(weights, files={**weights.files, name: FileEntry(1, "2" * 64)})
        assert changed.graph_sha256(BACKBONE) == first
    backwards = dataclasses.replace(weights, files=dict(reversed(list(weights.files.items()))))
    assert backwards.graph_sha256(BACKBONE) == first


# A failure in the middle.


def test_after_a_failure_in_the_middle_the_artifact_loads_and_building_goes_on(artifact: pathlib.Path) -> None:
    with pytest.raises(BackendError, match=r"conditioning\.onnx was not built"):
        build_with(QuickBuilder(fails_at=CONDITIONING), artifact)
    assert [build.engine for build in manifest_of(artifact).builds] == [BACKBONE]
    Artifact(artifact).verify(builds=True)
    Generator.load(artifact, threads=1).close()
    said = build_with(QuickBuilder(), artifact)
    assert said[0] == "backbone: built already"
    assert [build.engine for build in manifest_of(artifact).builds] == list(ENGINES)


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("again", ["first", "forced", "replaced"])
def test_wherever_building_is_cut_off_the_artifact_is_whole(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, again: str, moment: str
) -> None:
    """At every change of a name in the folder, which is all that a kill could fall between."""
    replace, unlink = pathlib.Path.replace, pathlib.Path.unlink
    whole = hollow(tmp_path / "whole", "none")
    if again != "first":
        build_with(QuickBuilder(), whole)
    for last in itertools.count():
        path = pathlib.Path(shutil.copytree(whole, tmp_path / f"cut-{last}"))
        steps = iter(range(last, -1, -1))

        def step(change: Callable[..., Any], *arguments: Any, steps: Iterator[int] = steps, **options: Any) -> Any:
            left = next(steps, -1)
            if left == 0 and moment == "before":
                raise _Killed
            result = change(*arguments, **options)
            if left == 0:
                raise _Killed
            return result

        builder = QuickBuilder()
        builder._made_plans = 10  # so that no plan has the size of the one before
        with monkeypatch.context() as patched:
            patched.setattr(pathlib.Path, "replace", lambda *told: step(replace, *told))
            patched.setattr(pathlib.Path, "unlink", lambda *told, **options: step(unlink, *told, **options))
            try:
                build_with(builder, path, force=again == "forced", flags=BuilderFlags(tf32=again == "replaced"))
                finished = True
            except _Killed:
                finished = False
        Artifact(path).verify(builds=True)
        build_with(QuickBuilder(), path, flags=BuilderFlags(tf32=again == "replaced"))
        assert len(manifest_of(path).builds) == len(ENGINES)
        if finished:
            break
    assert last >= 4 * len(ENGINES)  # two files an engine, each a name given and a name gone


# What a manifest says of builds is believed as it was written, or not at all.


def record_edits() -> Iterator[tuple[str, Any]]:
    yield from {
        "engine": "denoise",
        "target": "tensorrt",
        "graph_sha256": "0" * 64,
        "library": "1.7.2",
        "architectures": ["sm_86"],
        "architectures/0": "sm_87",
        "precision": "fp16",
        "profile": {},
        "profile/tokens": [],
        "profile/tokens/2/0": 17,
        "flags": {"tf32": True},
        "file": "backbone.onnx",
    }.items()
    everywhere: list[Json] = [None, 1, 1.5, [], {}, "", [["sm_86"]], 1e999, "sm_86"]
    for key in ("engine", "target", "graph_sha256", "library", "architectures", "precision", "profile", "file"):
        yield from ((key, wrong) for wrong in everywhere)
    flags: list[Json] = [None, 1, [["tf32", True]], {"tf32": 1.0}, {"deep": {}}, {"deep": [[[]]]}]
    yield from (("flags", wrong) for wrong in flags)
    sizes: list[Json] = ["8", 8.0, 8.25, 1e999, -1e999, [], None, True]
    yield from (("profile/tokens/0/2", wrong) for wrong in sizes)
    yield "profile/tokens/0/0", True  # where 1 is


@pytest.fixture(scope="module")
def manifest_json(tmp_path_factory: pytest.TempPathFactory, golden_artifacts: dict[str, pathlib.Path]) -> Json:
    path = shutil.copytree(golden_artifacts["small"], tmp_path_factory.mktemp("json") / "artifact")
    build_with(QuickBuilder(), path)
    return json.loads((path / MANIFEST).read_bytes())


@pytest.mark.parametrize(("where", "value"), list(record_edits()), ids=str)
def test_a_build_whose_record_was_edited_is_refused(manifest_json: Json, where: str, value: Any) -> None:
    manifest = copy.deepcopy(manifest_json)
    inner: Json = manifest["builds"][0]
    *parents, last = where.split("/")
    for key in parents:
        inner = inner[int(key) if isinstance(inner, list) else key]
    position: Any = int(last) if isinstance(inner, list) else last
    assert json.dumps(inner[position]) != json.dumps(value)
    inner[position] = value
    with pytest.raises(ArtifactError, match=r"^manifest\.json: "):
        Manifest.from_dict(manifest, "manifest.json")


@pytest.mark.parametrize("key", [*(field.name for field in dataclasses.fields(Build)), "file"])
def test_a_build_whose_record_has_a_key_less_or_more_is_refused(manifest_json: Json, key: str) -> None:
    less, more = copy.deepcopy(manifest_json), copy.deepcopy(manifest_json)
    del less["builds"][0][key]
    more["builds"][0][f"{key}s"] = more["builds"][0][key]
    for manifest in (less, more):
        with pytest.raises(ArtifactError, match="a build must have exactly the keys"):
            Manifest.from_dict(manifest, "manifest.json")


@pytest.mark.parametrize("builds", [None, {}, "none", [None], [[]], ["backbone"]], ids=str)
def test_builds_that_are_no_list_of_records_are_refused(manifest_json: Json, builds: Any) -> None:
    with pytest.raises(ArtifactError, match="build"):
        Manifest.from_dict({**manifest_json, "builds": builds}, "manifest.json")


def test_flags_without_end_are_refused(manifest_json: Json) -> None:
    deep: Json = []
    for _ in range(600):
        deep = [deep]
    manifest = copy.deepcopy(manifest_json)
    manifest["builds"][0]["flags"] = {"tf32": deep}
    with pytest.raises(ArtifactError, match="a flag is list"):
        Manifest.from_dict(manifest, "manifest.json")


@pytest.mark.parametrize(("key", "value"), [("engine", "decoder"), ("engine", "x"), ("target", "x")])
def test_a_build_of_what_is_unknown_is_refused_even_with_the_file_name_it_would_have(
    manifest_json: Json, key: str, value: str
) -> None:
    manifest = copy.deepcopy(manifest_json)
    changes: dict[str, Any] = {key: value}
    build = dataclasses.replace(Build.from_dict(manifest["builds"][0], ""), **changes)
    manifest["builds"][0] = build.to_dict()
    manifest["files"][build.file] = {"bytes": 1, "sha256": "0" * 64}
    with pytest.raises(ArtifactError, match=f"'{value}'"):
        Manifest.from_dict(json.loads(json.dumps(manifest)), "manifest.json")


def test_a_build_without_its_file_in_the_list_is_refused(manifest_json: Json) -> None:
    manifest = copy.deepcopy(manifest_json)
    del manifest["files"][manifest["builds"][0]["file"]]
    with pytest.raises(ArtifactError, match="is not listed under files"):
        Manifest.from_dict(manifest, "manifest.json")


def test_a_manifest_with_builds_is_read_as_it_was_written(manifest_json: Json) -> None:
    manifest = Manifest.from_dict(manifest_json, "manifest.json")
    assert len(manifest.builds) == 3
    assert json.loads(json.dumps(manifest.to_dict())) == manifest_json


# The sizes that engines are built for.

WRONG_BATCHES = (
    *("''", "1", "1:2", "1:2:3:4", "a:b:c", "1.0:1:1", "1:1:", "1-1-8", "1:1:0x8"),
    *("0:1:2", "2:1:3", "1:3:2", "-1:1:1", "1:1:4097", f"1:1:{'9' * 30}", f"1:1:{'9' * 5000}"),
)


@pytest.mark.parametrize("batch", WRONG_BATCHES, ids=lambda batch: batch[:12])
def test_a_wrong_batch_is_one_clear_line(artifact: pathlib.Path, mar: Mar, batch: str) -> None:
    ended = mar(f"build {artifact} --target tensorrt-rtx --architecture sm_89 --batch={batch}")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("mar: --batch must ")
    assert ended.err.count("\n") == 1
    assert len(ended.err) < 200
    assert not (artifact / "engines").exists()


def test_the_command_builds_for_the_plan_that_is_asked_for(
    tmp_path: pathlib.Path, mar: Mar, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen tokens, one an iteration, always guided; the tokenizer is never guided, and images come singly too."""
    builder = QuickBuilder()
    monkeypatch.setattr(build_cli, "TensorRTBuilder", lambda target, architectures: builder)
    path = hollow(tmp_path / "artifact")
    plan = "--iterations 16 --cfg-scale 3 --diffusion-steps 25"
    ended = mar(f"build {path} --target tensorrt-rtx {plan} --batch 2:3:4")
    assert (ended.code, ended.err) == (0, "")
    backbone, rows = builder.asked[BACKBONE], builder.asked[DENOISE]
    assert backbone["tokens"] == ((0, 2, 4), (7, 3, 4), (15, 4, 4))
    assert backbone["predict"] == ((1, 2), (1, 3), (1, 4))
    assert backbone["rest"] == ((0, 2), (7, 3), (15, 4))
    assert backbone["labels"] == ((4,), (6,), (8,))
    assert rows["x"] == ((2, 4), (3, 4), (4, 4))
    assert [shape[0] for shape in rows["modulation"]] == [4, 6, 8]
    assert rows["coefficients"] == ((8,),) * 3
    assert builder.asked[CONDITIONING]["timesteps"] == ((1,), (25,), (25,))
    assert builder.asked[DECODER] == {"latents": ((1, 4, 4, 4), (3, 4, 4, 4), (4, 4, 4, 4))}
    assert builder.asked[ENCODER] == {"image": ((1, 3, 8, 8), (3, 3, 8, 8), (4, 3, 8, 8))}


def whole(plans: Sequence[Plan]) -> list[Plan]:
    """Those of whole images, where nothing is known before the first iteration."""
    return [plan for plan in plans if not plan.iterations[0].known]


@pytest.mark.parametrize("preset", ["exact", "fast"])
def test_what_is_built_for_a_preset_draws_every_edit_with_it(preset: str, tmp_path: pathlib.Path) -> None:
    """Of 256 tokens, where a whole image has few of the numbers of known tokens that an edit can have."""
    artifact = Artifact(hollow(tmp_path / "artifact", config=dataclasses.replace(TINY_KL, img_size=32)))
    manifest = artifact.manifest
    assert manifest.model.tokens == 256
    ranges = axis_ranges(plans_to_build(artifact, {"preset": preset}), BATCH)
    sampling = manifest.resolve_sampling({"preset": preset})
    for known in range(1, 256):
        for iteration in build_plan(256, sampling, known).iterations:
            rest = 256 - iteration.known - iteration.count
            for axis, size in {"V": iteration.known, "K": iteration.count, "R": rest}.items():
                assert ranges[axis][0] <= size <= ranges[axis][2], (known, axis, size)
    of_whole = axis_ranges([build_plan(256, sampling)], BATCH)
    assert {axis: usual for axis, (_, usual, _) in ranges.items()} == {
        axis: usual for axis, (_, usual, _) in of_whole.items()
    }


def test_no_engine_is_built_for_many_rows_and_many_steps_at_once() -> None:
    """Their product, the modulation, would pass 2**31 values, which TensorRT does not count beyond."""
    wide = dataclasses.replace(TINY_KL, img_size=32, diffloss_d=12, diffloss_w=1536)  # the head of MAR-H
    plans = [build_plan(256, resolve_sampling(Sampling(cfg_scale=2.9), wide, {"preset": name})) for name in PRESETS]
    ranges = axis_ranges(plans, (1, 1, 8))
    assert ranges["T"][2] * ranges["GN"][2] * wide.modulation_channels < 2**31


def test_where_no_plan_is_asked_for_the_artifacts_own_and_every_preset_are_built_for(tmp_path: pathlib.Path) -> None:
    path = hollow(tmp_path / "artifact")
    write_json(
        path / MANIFEST,
        dataclasses.replace(manifest_of(path), sampling=Sampling(iterations=3, diffusion_steps=7)).to_dict(),
    )
    artifact = Artifact(path)
    nothing = {"preset": None, "iterations": None, "cfg_scale": None}
    plans = whole(plans_to_build(artifact, nothing))
    assert [len(plan.iterations) for plan in plans] == [3, 16, 16, 14, 10]
    assert [plan.diffusion_steps for plan in plans] == [7, 7, 25, 14, 10]
    assert len(plans) == 1 + len(PRESETS)
    own = dataclasses.replace(manifest_of(path), presets={"mine": Sampling(iterations=2, diffusion_steps=(5, 4))})
    write_json(path / MANIFEST, own.to_dict())
    assert [len(plan.iterations) for plan in whole(plans_to_build(Artifact(path), nothing))] == [3, 16, 16, 14, 10, 2]
    (named,) = whole(plans_to_build(artifact, {**nothing, "preset": "fast"}))
    assert (len(named.iterations), named.diffusion_steps) == (14, 14)
    (changed,) = whole(plans_to_build(artifact, {**nothing, "iterations": 2}))
    assert (len(changed.iterations), changed.diffusion_steps) == (2, 7)


class RecordingEngine:
    """An engine that returns zeros, and notes the shapes it is called with."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.calls: list[dict[str, tuple[int, ...]]] = []

    def __call__(self, **inputs: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        self.calls.append({name: array.shape for name, array in inputs.items()})
        axes = {
            axis: size
            for tensor in self.spec.inputs
            for axis, size in zip(tensor.shape, inputs[tensor.name].shape, strict=True)
            if isinstance(axis, str)
        }
        return tuple(np.zeros(tensor.sized(axes), tensor.dtype) for tensor in self.spec.outputs)


def shapes_of(plans: Sequence[Plan], images: int) -> dict[str, list[dict[str, tuple[int, ...]]]]:
    """The shapes that the loop calls each engine with."""
    config = TINY_KL
    engines = {name: RecordingEngine(spec) for name, spec in engine_specs(config).items()}
    for plan in plans:
        run_plan(
            Engines(**engines),
            config,
            plan,
            labels=np.zeros(images, np.int64),
            order=np.tile(np.arange(config.tokens)[:, None], images),
            noise=np.zeros((plan.diffusion_steps + 1, config.tokens, images, config.token_channels), np.float32),
            known=np.zeros((plan.iterations[0].known, images, config.token_channels), np.float32),
            progress=None,
        )
    return {name: engine.calls for name, engine in engines.items()}


@st.composite
def samplings(draw: st.DrawFn) -> Sampling:
    """Any settings that there is a plan of, with chains short enough to run many."""
    sampler = draw(st.sampled_from(DIFFUSION_SAMPLERS))
    steps: int | str = draw(st.integers(2, 9))
    last = start = None
    if sampler in ("ddpm", "ddim") and draw(st.booleans()):
        steps = draw(st.sampled_from(["ddim2", "ddim5", "ddim8"]))
    else:
        last = draw(st.none() | st.integers(2, int(steps)))
        start = draw(st.none() | st.integers(int(steps) - 1, 998))
    low, high = sorted(draw(st.tuples(st.floats(0, 1), st.floats(0, 1))))
    return Sampling(
        iterations=draw(st.none() | st.integers(1, TINY_KL.tokens)),
        mask_schedule=draw(st.sampled_from(MASK_SCHEDULES)),
        token_order=draw(st.sampled_from(TOKEN_ORDERS)),
        cfg_scale=draw(st.sampled_from([0.0, 1.0, 2.5])),
        cfg_schedule=draw(st.sampled_from(CFG_SCHEDULES)),
        cfg_interval=(low, high),
        sampler=sampler,
        diffusion_steps=steps,
        last_diffusion_steps=last,
        step_schedule=draw(st.sampled_from(STEP_SCHEDULES)),
        start_timestep=start,
        temperature=draw(st.sampled_from([0.5, 1.0])),
        eta=draw(st.sampled_from([0.0, 1.0])) if sampler == "ddim" else 0.0,
    )


def drawn_plans(drawn: Sequence[Sampling], known: int) -> list[Plan]:
    """Those of whole images, and of an edit that begins with `known` tokens."""
    return [build_plan(TINY_KL.tokens, sampling, start) for sampling in drawn for start in {0, known}]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(samplings(), min_size=1, max_size=3),
    st.tuples(*[st.integers(1, 5)] * 3).map(sorted),
    st.data(),
    st.sampled_from([1, 20_000, 16 * 2**20]),
)
def test_an_engine_is_built_for_every_size_that_the_loop_calls_it_with(
    drawn: list[Sampling], batch: list[int], data: st.DataObject, modulation_bytes: int
) -> None:
    plans = drawn_plans(drawn, data.draw(st.integers(0, TINY_KL.tokens - 1)))
    least, usual, most = batch
    ranges = axis_ranges(plans, (least, usual, most))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "_MODULATION_BYTES", modulation_bytes)
        for images in {least, data.draw(st.integers(least, most)), most}:
            for name, calls in shapes_of(plans, images).items():
                built_for = input_shapes(engine_specs(TINY_KL)[name], ranges, (least, usual, most))
                assert calls
                for call in calls:
                    assert call.keys() == built_for.keys()
                    for tensor, shape in call.items():
                        low, middle, high = (np.array(size) for size in built_for[tensor])
                        assert len(shape) == len(low)
                        assert (low <= shape).all(), (name, tensor, shape)
                        assert (high >= shape).all(), (name, tensor, shape)
                        assert (low <= middle).all()
                        assert (middle <= high).all()


@settings(max_examples=30, deadline=None)
@given(
    st.lists(samplings(), min_size=1, max_size=3),
    st.tuples(*[st.integers(1, 5)] * 3).map(sorted),
    st.integers(0, TINY_KL.tokens - 1),
)
def test_an_engine_is_built_for_no_size_that_the_loop_never_calls_it_with(
    drawn: list[Sampling], batch: list[int], known: int
) -> None:
    """The ends of every range are reached; but a chain may always be cut into runs of any length.

    And the rows of all halves are a whole multiple of those of one, as the compiler tries at all three sizes.
    """
    plans = drawn_plans(drawn, known)
    least, usual, most = batch
    ranges = axis_ranges(plans, (least, usual, most))
    seen: dict[str, set[int]] = {axis: set() for axis in ranges}
    for images in (least, most):
        for name, calls in shapes_of(plans, images).items():
            for call, tensor in itertools.product(calls, engine_specs(TINY_KL)[name].inputs):
                for axis, size in zip(tensor.shape, call[tensor.name], strict=True):
                    if isinstance(axis, str):
                        seen[axis].add(size)
    seen["T"].add(1)
    all_rows, called = ranges.pop("GN"), seen.pop("GN")
    assert all(every in (one, 2 * one) for one, every in zip(ranges["N"], all_rows, strict=True))
    assert all_rows[0] <= min(called)
    assert max(called) <= all_rows[2]
    assert {axis: (low, high) for axis, (low, _, high) in ranges.items()} == {
        axis: (min(sizes), max(sizes)) for axis, sizes in seen.items()
    }
