"""Artifacts with TensorRT builds, and a builder without TensorRT, for the tests of builds."""

from __future__ import annotations

import functools
import pathlib
import shutil
from collections.abc import Mapping, Sequence

import pytest
from torch import nn

from mar_export.onnx_export.exporter import export_graph
from mar_export.tensorrt.artifact_builds import BuildOptions, build_engines, plans_to_build
from mar_export.tensorrt.engine_builder import BuilderFlags, Progress, TensorRTBuilder
from mar_export.tensorrt.optimization_profiles import Range, input_shapes
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.engine_builds import Shapes
from runtime.artifact.manifest import MANIFEST, FileEntry, Manifest
from runtime.errors import BackendError
from runtime.model.config import ModelConfig
from runtime.model.engine_spec import (
    DECODER,
    ENCODER,
    ENGINES,
    EngineSpec,
)
from runtime.model.family_config import FamilyConfig
from runtime.sampling.plan import Plan
from runtime.sampling.settings import Sampling
from runtime.storage.files import sha256, write_json
from tests.helpers.artifacts import all_made_once

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


class InstantBuilder(TensorRTBuilder):
    """Stands for the library where what is built does not matter: notes what it is asked for, and every plan is longer
    than the one before.
    """

    def __init__(self, *architectures: str, version: str = "1.7.1.116", fails_at: str = "") -> None:
        self.target, self.version, self.architectures = "tensorrt-rtx", version, architectures or ("sm_89",)
        self.profiles: dict[str, Mapping[str, Shapes]] = {}
        self._count, self._fails_at = 0, fails_at

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
        self.profiles[graph.stem] = profile
        self._count += 1
        return b"plan " * self._count


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


def build_graph(
    module: nn.Module,
    spec: EngineSpec,
    config: FamilyConfig,
    graph: pathlib.Path,
    ranges: Mapping[str, Range],
    batch: Range = BATCH,
    architectures: Sequence[str] = ("sm_89",),
) -> int:
    """The bytes of the plan that TensorRT-RTX makes of a module, which is exported to `graph` first."""
    export_graph(module, spec, config, graph)
    builder = TensorRTBuilder("tensorrt-rtx", architectures)
    plan = builder.build(graph, input_shapes(spec, ranges, batch), BuilderFlags(), timing_cache=None, progress=None)
    return len(bytes(plan))


def manifest_of(path: pathlib.Path) -> Manifest:
    return Artifact(path).manifest


def plan_files(path: pathlib.Path) -> set[str]:
    return {file.relative_to(path).as_posix() for file in (path / "engines").rglob("*") if file.is_file()}


def write_artifact(folder: pathlib.Path, config: ModelConfig, tokenizer: str, precision: str) -> pathlib.Path:
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


def textual_artifact(folder: pathlib.Path, tokenizer: str = "kl", config: ModelConfig = TINY_KL) -> pathlib.Path:
    """A small artifact whose graphs are texts."""
    folder.mkdir(parents=True)
    for name in (*ENGINES, *([DECODER, ENCODER] if tokenizer == "kl" else [])):
        (folder / f"{name}.onnx").write_text(f"graph of {name}")
    return write_artifact(folder, config, tokenizer, "fp32")


@pytest.fixture
def unbuilt_artifact(golden_artifacts: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of the small golden artifact, which has no builds. It may be changed."""
    return pathlib.Path(shutil.copytree(golden_artifacts["small"], tmp_path / "artifact"))


@pytest.fixture(scope="session")
def rtx_artifacts(
    golden_artifacts: dict[str, pathlib.Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, pathlib.Path]:
    """Both golden models with engines of TensorRT-RTX. Read only."""

    def build(model: str, folder: pathlib.Path) -> None:
        shutil.copytree(golden_artifacts[model], folder / "artifact")
        build_with(TensorRTBuilder("tensorrt-rtx", RTX_GPUS), folder / "artifact")

    makers = {f"built-{model}": functools.partial(build, model) for model in golden_artifacts}
    folders = all_made_once(tmp_path_factory, makers)
    return {model: folders[f"built-{model}"] / "artifact" for model in golden_artifacts}


@pytest.fixture
def rtx_artifact(rtx_artifacts: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of the small golden artifact with engines of TensorRT-RTX. It may be changed."""
    return pathlib.Path(shutil.copytree(rtx_artifacts["small"], tmp_path / "built"))
