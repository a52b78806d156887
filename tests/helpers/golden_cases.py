"""The golden cases: requests to this runtime, and the latents that the published code computed for them."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
GOLDEN_TOLERANCE = 1e-4  # relative L2; float32 round-off is 3e-7 to 3e-6 (docs/benchmarks/exports.md)


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
