"""The golden cases of ReCAP: what its released sampler computed for a tiny MAR."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.model.recap_engines import RECAP_ENGINES
from runtime.sampling.constraints import default_sampling, plan_for
from runtime.sampling.plan import Plan
from tests.helpers.artifacts import made_once
from tests.helpers.golden_cases import GOLDEN
from training.checkpoints.checkpoint import Checkpoint, load_checkpoint

RECAP_GOLDEN = GOLDEN / "recap"
CASES = ("case0.npz", "case1.npz")

EDGES: dict[str, dict[str, Any]] = {
    "nothing is known and nothing is kept": {"iterations": 2, "recap_cache_buffer": False},
    "nothing is known": {"iterations": 2},
    "the first pass is local to nothing": {"iterations": 6, "recap_local_iterations": 5, "recap_cache_buffer": False},
    "the last group is cut": {"iterations": 7, "recap_local_iterations": 2, "recap_plain_iterations": 2},
    "guidance begins in a group": {"iterations": 8, "recap_local_iterations": 3, "cfg_interval": (0.2, 1.0)},
    "guidance ends in a group": {"iterations": 8, "recap_local_iterations": 3, "cfg_interval": (0.0, 0.3)},
}
"""Settings beside `SHORT`: caches of no row, groups of all tokens, groups in which guidance begins or ends."""

SHORT: dict[str, Any] = {"cfg_scale": 2.0, "diffusion_steps": 4, "recap_local_iterations": 1, "start_timestep": 900}
"""Settings of quick requests with groups."""


@dataclasses.dataclass(frozen=True)
class RecapCase:
    """One case: what a request gives, and what the released sampler made of it.

    Attributes:
        settings: Keyword arguments of `Generator.generate`.
        plan: The plan of these settings.
        kinds: F for each full and L for each local iteration.
        arrays: The arrays of the case.
    """

    settings: dict[str, Any]
    plan: Plan
    kinds: str
    arrays: dict[str, NDArray[Any]]

    @property
    def unsorted_order(self) -> NDArray[np.int64]:
        """The generation order [B, L] before unions are sorted. The sampler masks a prefix, so it ends at its start."""
        return self.arrays["official_order"][:, ::-1].astype(np.int64)

    def request(self) -> dict[str, Any]:
        """Keyword arguments of `Generator.generate` for the images of the case; unions are not sorted yet."""
        arrays = self.arrays
        return {
            "labels": arrays["labels"].tolist(),
            "order": self.unsorted_order,
            "noise": arrays["noise"],
            **self.settings,
        }


@functools.cache
def recap_checkpoint() -> Checkpoint:
    return load_checkpoint(RECAP_GOLDEN / "checkpoint-last.pth", RECAP_GOLDEN / "meta.json")


@functools.cache
def recap_case(file: str) -> RecapCase:
    meta = next(case for case in json.loads((RECAP_GOLDEN / "meta.json").read_text())["cases"] if case["file"] == file)
    by_stride = meta["steps"].startswith("ddim")
    settings = {
        "iterations": meta["num_iter"],
        "cfg_scale": meta["cfg"],
        "cfg_schedule": meta["cfg_schedule"],
        "temperature": meta["temperature"],
        "diffusion_steps": meta["steps"] if by_stride else int(meta["steps"]),
        # The released sampler starts every chain that is no ddimN at the noisiest step.
        **({} if by_stride else {"start_timestep": 999}),
        "recap_plain_iterations": meta["pre_full_iters"],
        "recap_local_iterations": meta["num_cache_iters"],
        "recap_cache_buffer": meta["cache_buffer"],
        "recap_diffusion_share": 0.5,
    }
    config = recap_checkpoint().model.config
    plan = plan_for(config, dataclasses.replace(default_sampling(config), **settings))
    with np.load(RECAP_GOLDEN / file) as stored:
        return RecapCase(settings, plan, meta["kinds"], {name: stored[name] for name in stored.files})


@pytest.fixture(scope="session")
def recap_artifact(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The model of the golden cases, exported with the engines of ReCAP and its weights outside. Read only."""
    from mar_export.artifact.export import export_artifact
    from mar_export.onnx_export import exporter

    def export(folder: pathlib.Path) -> None:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(exporter, "_EXTERNAL_DATA_BYTES", 0)
            export_artifact(recap_checkpoint(), folder / "artifact", lambda text: None, optional=RECAP_ENGINES)

    return made_once(tmp_path_factory, "recap-artifact", export) / "artifact"
