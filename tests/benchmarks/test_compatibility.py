"""The facts about libraries that `mar doctor` and `docs/compatibility.md` show, and the cutting out of operators."""

from __future__ import annotations

import pathlib
import re
import shutil

import numpy as np
import pytest

from benchmarks.compatibility import BACKENDS, pins
from benchmarks.compatibility_tables import engines_table, operators_table, tensorrt_rtx_table
from benchmarks.operator_runs import operators, run_operator
from benchmarks.render_pages import render_page
from mar_export.onnx_export.example_inputs import example_inputs, parity_sizes
from runtime import compatibility
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import FLOAT_PRECISIONS, QUANTIZED_PRECISIONS
from runtime.backends.onnxruntime import OnnxRuntime
from runtime.backends.openvino import OpenVino
from runtime.compatibility import FACTS, facts, running_precisions, untested_version
from runtime.model.engine_spec import DENOISE, ENGINES

PAGE = pathlib.Path("docs/compatibility.md")


def test_the_page_shows_the_facts(tmp_path: pathlib.Path) -> None:
    """`make benchmark-pages` renders it."""
    rendered = pathlib.Path(shutil.copyfile(PAGE, tmp_path / PAGE.name))
    render_page(rendered, FACTS.parent)
    assert rendered.read_text() == PAGE.read_text()


def test_every_test_that_the_page_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)`", PAGE.read_text())
    assert len(named) >= 15
    assert [name for name in named if not pathlib.Path(name).is_file()] == []


def test_the_pins_are_those_of_the_project() -> None:
    """`python -m benchmarks.compatibility`, without a part, writes them."""
    assert facts()["pins"] == pins()


def test_every_precision_was_tried_on_every_backend() -> None:
    found = {(one["precision"], one["engine"], one["backend"]) for one in facts()["engines"]}
    precisions = (*FLOAT_PRECISIONS, *QUANTIZED_PRECISIONS)
    assert found == {(each, engine, backend) for each in precisions for engine in ENGINES for backend in BACKENDS}


def test_the_backends_run_what_they_were_seen_to_run() -> None:
    for backend, library in (("onnxruntime", OnnxRuntime), ("openvino", OpenVino)):
        assert set(running_precisions(backend)) == set(library.precisions)


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("1.24.4", "older than 1.25, the oldest that is supported; pip install --upgrade onnxruntime"),
        ("1.25.0", None),
        ("1.31.1", None),
        ("1.4.0", "older than 1.25, the oldest that is supported; pip install --upgrade onnxruntime"),
        ("1.31.2.dev3", "newer than 1.31.1, the newest that was tested"),
        ("2.0", "newer than 1.31.1, the newest that was tested"),
    ],
)
def test_an_untested_version_is_told(version: str, expected: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    pin = {"onnxruntime": {"oldest": "1.25", "newest": "1.31.1"}, "tensorrt": {"oldest": "10.3", "newest": None}}
    monkeypatch.setattr(compatibility, "facts", lambda: {"pins": pin})
    assert untested_version("onnxruntime", version) == expected
    assert untested_version("tensorrt", "11.0") is None
    assert untested_version("something", version) is None


def test_an_operator_alone_computes_what_it_does_in_the_graph(golden_artifacts: dict[str, pathlib.Path]) -> None:
    artifact = Artifact(golden_artifacts["small"])
    spec, config = artifact.manifest.specs[DENOISE], artifact.manifest.model
    inputs = example_inputs(spec, config, parity_sizes(spec, config)[-1], seed=0)
    cut_out = list(operators(artifact.engine_file(DENOISE), inputs))
    assert {"Gemm", "LayerNormalization", "Sigmoid"} <= {each.name for each in cut_out}
    assert len({(each.name, each.dtypes) for each in cut_out}) == len(cut_out)
    (product,) = [each for each in cut_out if each.name == "Gemm"]
    assert product.dtypes == "float32 -> float32"
    for result in run_operator(product).values():
        assert 0 <= result["distance"] <= 1e-5


def test_tables_tell_equal_other_numbers_and_refusals() -> None:
    about = {"date": "2026-11-29", "commit": "0" * 12, "processor": "a processor", "python": "3.11", "numpy": "2"}
    of = {"precision": "int8", "engine": "backbone"}
    measured = {
        "about": dict.fromkeys(("engines", "operators", "tensorrt-rtx"), about),
        "engines": [
            {**of, "backend": "onnxruntime", "distance": 1e-6, "empty": 2e-3},
            {**of, "backend": "openvino", "refused": "no a|b here"},
        ],
        "operators": [
            {
                "operator": "MatMul",
                "dtypes": "float16 -> float16",
                "precisions": ["fp16"],
                "onnxruntime": {"distance": 9e-4},
                "openvino": {"distance": float(np.float32(0.5))},
            }
        ],
        "tensorrt_rtx": [
            {"precision": "fp8", "architecture": "sm_86", "refused": "no fp8"},
            {"precision": "fp8", "architecture": "sm_89"},
        ],
    }
    engines = engines_table(measured)
    assert "| int8 | equal | differs by 2e-03 | refused (1) | refused (1) |\n\n1. `no a|b here`" in engines
    assert "| MatMul | float16 -> float16 | fp16 | equal | differs by 5e-01 |" in operators_table(measured)
    assert "| fp8 | refused (1) | compiles |\n\n1. `no fp8`" in tensorrt_rtx_table(measured)
