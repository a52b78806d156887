"""Exported artifacts for tests: in low precision, and with a KL tokenizer."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
import torch
from torch import nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from mar_export.artifact import export as export_module
from mar_export.artifact.export import export_artifact
from mar_export.cli.export import export as export_command
from mar_export.onnx_export.exporter import export_graph
from runtime.model.config import ModelConfig
from runtime.model.engine_spec import ENGINES, EngineSpec
from tests.helpers.artifacts import all_made_once, made_once
from tests.helpers.golden_cases import GOLDEN
from training.checkpoints.checkpoint import Checkpoint, load_checkpoint
from training.models.autoencoder import AutoencoderKL, VAEConfig

_EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "fashion-mnist"


@pytest.fixture(scope="session", autouse=True)
def one_table_of_operators() -> Iterator[None]:
    """PyTorch would make its table of operators anew in each export, which is a quarter of the time of a small one."""
    make_table = functools.cache(ONNXRegistry.from_torchlib)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ONNXRegistry, "from_torchlib", staticmethod(make_table))
        yield


@pytest.fixture(scope="session")
def small_checkpoint() -> Checkpoint:
    """The golden model of 16 tokens and 6 classes."""
    return load_checkpoint(GOLDEN / "small" / "checkpoint-last.pth", GOLDEN / "small" / "meta.json")


@pytest.fixture(scope="session")
def lowered_artifacts(
    small_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, pathlib.Path]:
    """That model, exported in each low precision. Read only."""

    def export(precision: str, folder: pathlib.Path) -> None:
        export_artifact(small_checkpoint, folder / precision, lambda text: None, precision=precision)

    makers = {precision: functools.partial(export, precision) for precision in ("fp16", "bf16")}
    folders = all_made_once(tmp_path_factory, makers)
    return {precision: folder / precision for precision, folder in folders.items()}


@pytest.fixture(scope="session")
def example_artifact(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The model of `examples/fashion-mnist`, exported with the options of docs/tasks/export.md. Read only."""

    def export(folder: pathlib.Path) -> None:
        line = [str(_EXAMPLE), "--cfg-scale", "2.0", "--diffusion-steps", "ddim100", "--out", str(folder / "artifact")]
        export_command.main(line, standalone_mode=False)

    return made_once(tmp_path_factory, "example-artifact", export) / "artifact"


@pytest.fixture(scope="session")
def kl_checkpoint() -> Checkpoint:
    """The golden model of 4x4 tokens of 2x2 latents of 4 values, with a KL tokenizer of random weights."""
    checkpoint = load_checkpoint(GOLDEN / "patch2" / "checkpoint-last.pth", GOLDEN / "patch2" / "meta.json")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKL(VAEConfig(4, width=32, multipliers=(1, 1, 1, 1), blocks=1, attention_levels=()))
        with torch.no_grad():
            vae.decoder.conv_out.weight.mul_(4)  # images that use most of the 256 values
    return dataclasses.replace(checkpoint, tokenizer="kl", vae=vae.eval())


@contextlib.contextmanager
def _tracing_no_graph_of(*artifacts: pathlib.Path) -> Iterator[None]:
    """While the block runs, an export copies those graphs that one of `artifacts` has: tracing takes seconds."""

    def copy_graph(module: nn.Module, spec: EngineSpec, config: ModelConfig, path: pathlib.Path) -> None:
        for artifact in artifacts:
            if (artifact / path.name).exists():
                shutil.copyfile(artifact / path.name, path)
                return
        assert spec.name not in ENGINES
        export_graph(module, spec, config, path)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(export_module, "export_graph", copy_graph)
        yield


@pytest.fixture(scope="session")
def tracing_no_graph_of() -> Callable[..., AbstractContextManager[None]]:
    return _tracing_no_graph_of


@pytest.fixture(scope="session")
def kl_artifact(
    kl_checkpoint: Checkpoint, golden_artifacts: dict[str, pathlib.Path], tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """That model with both engines of its tokenizer. Read only."""

    def export(folder: pathlib.Path) -> None:
        with _tracing_no_graph_of(golden_artifacts["patch2"]):
            export_artifact(kl_checkpoint, folder / "artifact", lambda text: None, optional=("encoder",))

    return made_once(tmp_path_factory, "kl-artifact", export) / "artifact"
