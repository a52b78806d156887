"""Tables and charts of the pages about numbers, from small reports."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
from PIL import Image

from benchmarks.numerics.charts import CHARTS
from benchmarks.numerics.tables import (
    convergence_table,
    determinism_table,
    estimators_table,
    growth_table,
    perfect_table,
    tokenizer_growth_table,
)
from benchmarks.uncertain_figures import FRECHET_RULE, accuracy_cell, frechet_cell
from runtime.model.engine_spec import ENGINES

ABOUT = dict.fromkeys(
    ("date", "processor", "commit", "python", "numpy", "onnxruntime", "openvino", "torch"), "of a test"
)
RANKING = {
    "count": 9,
    "layers": [{"layer": f"engine/layer{place}", "relative_l2": 0.1, "share": 0.5 - 0.1 * place} for place in range(5)],
}
ERRORS = {"latents": 3e-3, "accumulated": [1e-3, 3e-3], "own": [1e-3, 2e-3], "chain": [1e-4, 1e-3, 2e-3]}
GROWTH: dict[str, Any] = {
    "about": ABOUT,
    "images": 4,
    "preset": "balanced",
    "timesteps": [900.0, 400.0, 0.0],
    "example": {"fp16": {**dict.fromkeys((*ENGINES, "all"), ERRORS), "ranking": RANKING}},
    "tokenizer": {
        "bf16": {
            "pixels": 4e-3,
            "psnr": 50.0,
            "levels": 3.21,
            "depth": [{"layer": f"layer{place}", "relative_l2": 1e-3 * (place + 1)} for place in range(5)],
            "ranking": RANKING,
        }
    },
}
METRIC = {"choices": 20, "mean": 1.5, "spread": 0.25, "standard_error": 0.24, "bias": 0.4}
ESTIMATORS: dict[str, Any] = {
    "about": ABOUT,
    "sets": {
        "generated images": {
            "images": 1000,
            "real": 2000,
            "features": 64,
            "frechet": 1.2,
            "frechet_standard_error": 0.1,
            "frechet_bias": 0.1,
            "rows": [
                {"images": 100, "frechet": METRIC | {"bias": None, "standard_error": None}, "kernel_distance": METRIC},
                {"images": 500, "frechet": METRIC, "kernel_distance": None},
            ],
        }
    },
    "perfect": {"classifier": {"images": 10, "features": 64, "rows": [{"images": 100, "mean": 0.3}]}},
}
CONVERGENCE: dict[str, Any] = {
    "about": ABOUT,
    "start": 980,
    "guidance": 2.0,
    "rows": [
        {"family": "diffusion", "solver": "ddim", "guided": True, "strong": {"8": 0.4, "16": 0.1}},
        {
            "family": "noisy",
            "solver": "ddpm",
            "guided": False,
            "strong": {"8": 0.4, "16": 0.2},
            "weak": {"8": 0.1, "16": 0.0},
        },
    ],
}
SAME = {"random_numbers": True, "latents": True, "distance": 0.0, "differ": 0.0, "levels": 0}
SETTING = {"backend": "openvino", "precision": "int8", "kind": "threads", "name": "2 threads"}
DETERMINISM: dict[str, Any] = {
    "about": ABOUT,
    "rows": [
        {**SETTING, **SAME},
        {**SETTING, **SAME, "name": "old", "latents": False, "distance": 1.4e-6, "differ": 0.0123, "levels": 2},
        {**SETTING, "name": "older", "failed": "it ended"},
    ],
}
REPORTS = {
    "error-growth": GROWTH,
    "estimators": ESTIMATORS,
    "convergence": CONVERGENCE,
    "determinism": DETERMINISM,
}


def test_the_tables_of_growth() -> None:
    lines = growth_table(GROWTH).splitlines()
    assert "| fp16 | all | 3.0e-03 | 1.0e-03 | 3.0e-03 | 1.0e-03 | 2.0e-03 | 1.0e-03 | 2.0e-03 |" in lines
    assert "| fp16 | 9 | `engine/layer0` | 50% | `engine/layer1` 40%, `engine/layer2` 30% |" in lines
    expected = "| bf16 | 4.0e-03 | 50.0 dB | 3.21 levels | 1.0e-03 | 3.0e-03 | 5.0e-03 |"
    assert expected in tokenizer_growth_table(GROWTH).splitlines()


def test_the_tables_of_estimators() -> None:
    lines = estimators_table(ESTIMATORS).splitlines()
    assert "| 100 | 1.5 | 0.4 |  | 0.25 |  | 1.5 | 0.25 | 0.24 |" in lines  # the limit is 1.2 - 0.1
    assert "| 500 | 1.5 | 0.4 | 0.4 | 0.25 | 0.24 |  |  |  |" in lines
    assert perfect_table(ESTIMATORS).splitlines()[-1] == "| 100 | 0.3 |"


def test_the_table_of_convergence() -> None:
    lines = convergence_table(CONVERGENCE).splitlines()
    assert "| ddim | yes | 4.0e-01 | 1.0e-01 (2.0) |" in lines
    assert "| ddpm | no | 1.0e-01 | < chance |" in lines


def test_the_table_of_determinism() -> None:
    same, other, failed = determinism_table(DETERMINISM).splitlines()[-3:]
    assert same == "| openvino | int8 | threads | 2 threads | same bits | same bits |  |  |"
    assert other.endswith("| same bits | **other bits** | 1e-06 | 1.23%, by at most 2 |")
    assert failed.endswith("| older | | did not run | | |")


@pytest.mark.parametrize("name", list(CHARTS))
def test_every_report_has_a_chart(name: str, tmp_path: pathlib.Path) -> None:
    CHARTS[name](REPORTS[name], tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as image:
        assert image.width > 800


def test_a_figure_has_the_measured_error_or_that_of_the_rule() -> None:
    row = {"images": 400, "top1_accuracy": 0.9, "frechet": 4.0}
    assert accuracy_cell(row) == "90.0% ± 1.5%"
    assert accuracy_cell({**row, "top1_accuracy": None}) == ""
    assert frechet_cell(row) == f"4.000 ± {FRECHET_RULE / 10:.3f}"
    assert frechet_cell(row, "inception") == "4.000"
    assert frechet_cell({**row, "standard_error": {"frechet": 0.5}}, "inception") == "4.000 ± 0.500"
