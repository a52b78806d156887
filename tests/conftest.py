"""What every room's tests share: the golden cases, and small artifacts exported once a session."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

if TYPE_CHECKING:
    from training.checkpoint import Checkpoint

# The models here are tiny: a second thread costs them more than it gives. Subprocesses inherit this.
os.environ["OMP_NUM_THREADS"] = "1"

GOLDEN = pathlib.Path(__file__).parent / "golden"
GOLDEN_TOLERANCE = 1e-4  # relative L2; float32 round-off is 3e-7 to 3e-6, see DESIGN.md


@dataclasses.dataclass(frozen=True)
class GoldenCase:
    """What the published code computed: its settings, its inputs, and `latents` from a float64 run."""

    model: str
    file: str
    settings: dict[str, Any]  # keyword arguments of Generator.generate
    labels: NDArray[np.int64]
    order: NDArray[np.int64]
    noise: NDArray[np.float32]
    tokens_per_step: list[int]
    latents: NDArray[np.float64]

    def __str__(self) -> str:
        return f"{self.model}-{self.file}"


def golden_cases() -> list[GoldenCase]:
    cases = []
    for model in ("small", "patch2"):
        meta = json.loads((GOLDEN / model / "meta.json").read_text())
        for case in meta["cases"]:
            with np.load(GOLDEN / model / case["file"]) as arrays:
                settings = {
                    "iterations": case["num_iter"],
                    "cfg_scale": case["cfg"],
                    "cfg_schedule": case["cfg_schedule"],
                    "temperature": case["temperature"],
                    "diffusion_steps": case["steps"],
                }
                if isinstance(case["steps"], int):  # the published code starts every such chain at the noisiest step
                    settings["start_timestep"] = 999
                cases.append(
                    GoldenCase(
                        model,
                        case["file"],
                        settings,
                        arrays["labels"].astype(np.int64),
                        arrays["generation_order"].astype(np.int64),
                        arrays["noise"],
                        arrays["tokens_per_step"].tolist(),
                        arrays["latents_float64"],
                    )
                )
    return cases


@pytest.fixture(params=golden_cases(), ids=str)
def golden_case(request: pytest.FixtureRequest) -> GoldenCase:
    case: GoldenCase = request.param
    return case


def relative_l2(found: NDArray[Any], expected: NDArray[Any]) -> float:
    difference = np.linalg.norm(found.astype(np.float64) - expected.astype(np.float64))
    return float(difference / np.linalg.norm(expected.astype(np.float64)))


@pytest.fixture(scope="session")
def golden_artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    """The golden models, exported: name -> artifact. Read only; copy one before changing it."""
    from mar_export.export import export_artifact
    from training.checkpoint import load_checkpoint

    folder = tmp_path_factory.mktemp("golden")
    for model in ("small", "patch2"):
        checkpoint = load_checkpoint(GOLDEN / model / "checkpoint-last.pth", GOLDEN / model / "meta.json")
        export_artifact(checkpoint, folder / model, say=lambda text: None)
    return {model: folder / model for model in ("small", "patch2")}


@pytest.fixture(scope="session")
def pixel_checkpoint() -> Checkpoint:
    """A model of 8x8 pictures with random weights."""
    import torch

    from training.checkpoint import Checkpoint
    from training.model import MAR
    from training.presets import preset

    small = {"embed_dim": 32, "depth": 1, "num_heads": 2}
    sizes = {f"{half}_{name}": size for half in ("encoder", "decoder") for name, size in small.items()}
    config = preset("pixel_small", img_size=8, class_num=2, diffloss_d=1, diffloss_w=32, **sizes)
    torch.manual_seed(0)
    model = MAR(**config.to_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # a new head answers zero to everything
    return Checkpoint(model.eval(), "pixel", ("cat", "dog"), "random weights", "0" * 64)


@pytest.fixture(scope="session")
def pixel_artifact(pixel_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """That model, exported with sampling settings of its own. Read only."""
    from mar_export.export import export_artifact
    from runtime.plan import Sampling

    artifact = tmp_path_factory.mktemp("pixel") / "artifact"
    export_artifact(pixel_checkpoint, artifact, lambda text: None, Sampling(cfg_scale=1.5, diffusion_steps="ddim5"))
    return artifact
