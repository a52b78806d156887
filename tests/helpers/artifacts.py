"""Small artifacts for tests, exported once a session."""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock, Timeout

from tests.helpers.golden_cases import GOLDEN, GoldenCase, golden_cases

if TYPE_CHECKING:
    from training.checkpoints.checkpoint import Checkpoint


@pytest.fixture(params=golden_cases(), ids=str)
def golden_case(request: pytest.FixtureRequest) -> GoldenCase:
    case: GoldenCase = request.param
    return case


Make = Callable[[pathlib.Path], object]
"""Fills an empty folder."""


def folder_of_all_workers(factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder that pytest's processes have in common during a session."""
    root = factory.getbasetemp()
    return root.parent if "PYTEST_XDIST_WORKER" in os.environ else root


def made_once(factory: pytest.TempPathFactory, name: str, make: Make) -> pathlib.Path:
    """The folder `name`, filled by `make` in the first of pytest's processes that needs it. Read only."""
    return all_made_once(factory, {name: make})[name]


def all_made_once(factory: pytest.TempPathFactory, makers: Mapping[str, Make]) -> dict[str, pathlib.Path]:
    """Several such folders. While another process makes one of them, this one makes the others."""
    root = folder_of_all_workers(factory)
    held_elsewhere = [name for name in makers if not _made(root, name, makers[name], wait=False)]
    for name in held_elsewhere:
        _made(root, name, makers[name], wait=True)
    return {name: root / name for name in makers}


def _made(root: pathlib.Path, name: str, make: Make, *, wait: bool) -> bool:
    """Make sure that the folder is there; False if another process makes it, and this one does not wait."""
    folder, unfinished = root / name, root / f"{name}-unfinished"
    try:
        with FileLock(root / f"{name}.lock", blocking=wait):
            if not folder.exists():
                unfinished.mkdir()
                make(unfinished)
                unfinished.rename(folder)
    except Timeout:
        return False
    return True


@pytest.fixture(scope="session")
def golden_artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    """The golden models, exported: name -> artifact. Read only; copy one before changing it."""
    from mar_export.artifact.export import export_artifact
    from training.checkpoints.checkpoint import load_checkpoint

    def export(model: str, folder: pathlib.Path) -> None:
        checkpoint = load_checkpoint(GOLDEN / model / "checkpoint-last.pth", GOLDEN / model / "meta.json")
        export_artifact(checkpoint, folder / model, lambda text: None)

    makers = {f"golden-{model}": functools.partial(export, model) for model in ("small", "patch2")}
    folders = all_made_once(tmp_path_factory, makers)
    return {model: folders[f"golden-{model}"] / model for model in ("small", "patch2")}


@pytest.fixture(scope="session")
def pixel_checkpoint() -> Checkpoint:
    """A model of 8x8 images with random weights."""
    import torch

    from training.checkpoints.checkpoint import Checkpoint
    from training.models.mar import MAR
    from training.models.model_sizes import model_config

    small = {"embed_dim": 32, "depth": 1, "num_heads": 2}
    sizes = {f"{half}_{name}": size for half in ("encoder", "decoder") for name, size in small.items()}
    config = model_config("pixel_small", img_size=8, class_num=2, diffloss_d=1, diffloss_w=32, **sizes)
    torch.manual_seed(0)
    model = MAR(**config.to_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # a new head answers zero to everything
    return Checkpoint(model.eval(), "pixel", ("cat", "dog"), "random weights", "0" * 64)


@pytest.fixture(scope="session")
def pixel_artifact(pixel_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The model of `pixel_checkpoint`, exported with sampling settings of its own. Read only."""
    from mar_export.artifact.export import export_artifact
    from runtime.sampling.settings import Sampling

    def export(folder: pathlib.Path) -> None:
        sampling = Sampling(cfg_scale=1.5, diffusion_steps="ddim5")
        export_artifact(pixel_checkpoint, folder / "artifact", lambda text: None, sampling)

    return made_once(tmp_path_factory, "pixel-artifact", export) / "artifact"
