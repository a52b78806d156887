"""The report of a benchmark, as JSON, as a table and as a chart."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from mar_export.benchmark.bench_chart import save_chart
from mar_export.benchmark.report import format_report
from mar_export.benchmark.timing import Case, Measurement
from runtime.cost.operations import plan_costs, roofline_seconds
from runtime.model.engine_spec import DEVICE
from tests.helpers.benchmarks import (
    BACKBONE_COLOUR,
    DENOISE_COLOUR,
    MACHINE,
    REST_COLOUR,
    WORKLOAD,
    assert_table_agrees,
    colours,
    measurement,
    report_of,
    timing_of,
)


def test_report_has_every_case_with_its_plan_and_its_share_of_the_roofline() -> None:
    value = report_of(measurement("runtime", "own", 40.0), measurement("runtime", "turbo", 5.0))
    assert (value["title"], value["repeats"], value["threads"], value["batch"]) == ("a model", 3, 7, 2)
    assert value["machine"]["gflops"] == 5
    assert value["machine"]["read_gb_per_second"] == 2
    assert value["runners"] == {"runtime": {"runs_on": "runtime on nothing", "peak_memory_bytes": 1000}}
    assert list(value["plans"]) == ["own", "turbo"]
    for case, seconds in zip(value["cases"], (40.0, 5.0), strict=True):
        plan, reported = WORKLOAD.plans[case["preset"]], value["plans"][case["preset"]]
        costs = plan_costs(WORKLOAD.config, plan, 2)
        least = roofline_seconds(WORKLOAD.config, plan, MACHINE, 2)
        assert reported["operations"] == {name: cost.operations for name, cost in costs.items()}
        assert reported["bytes"] == {name: cost.bytes for name, cost in costs.items()}
        assert reported["roofline_seconds"] == least
        assert (reported["tokens"], reported["iterations"]) == (64, len(plan.iterations))
        assert reported["head_evaluations"] == plan.head_evaluations
        assert reported["largest_guidance_scale"] == plan.guidance_scale
        assert reported["sampling"]["sampler"] == WORKLOAD.samplings[case["preset"]].sampler
        assert case["seconds"]["median"] == seconds
        assert case["seconds_an_image"] == seconds / 2
        assert case["share_of_roofline"] == pytest.approx(sum(least.values()) / seconds)
        assert case["useful_gflops"] == pytest.approx(sum(reported["operations"].values()) / seconds / 1e9)
        assert case["useful_gb_per_second"] == pytest.approx(sum(reported["bytes"].values()) / seconds / 1e9)
        assert case["stage_seconds"]["denoise"]["median"] == seconds / 2
    json.dumps(value, allow_nan=False)


def test_baseline_is_eager_pytorch_if_it_is_timed() -> None:
    cases = [
        measurement("runtime", "own", 4.0),
        measurement("eager", "own", 12.0),
        measurement("naive-onnx", "own", 20),
    ]
    value = report_of(*cases)
    assert value["baseline"] == {"runner": "eager", "preset": "own", "wait_policy": None}
    assert [case["times_the_baseline"] for case in value["cases"]] == pytest.approx([3.0, 1.0, 0.6])


def test_baseline_is_the_slowest_case_without_eager_pytorch() -> None:
    cases = [
        measurement("runtime", "turbo", 2.0),
        measurement("runtime", "own", 8.0),
        measurement("naive-onnx", "own", 5),
    ]
    value = report_of(*cases)
    assert value["baseline"] == {"runner": "runtime", "preset": "own", "wait_policy": None}
    assert [case["times_the_baseline"] for case in value["cases"]] == pytest.approx([4.0, 1.0, 1.6])


def test_table_agrees_with_the_report() -> None:
    cases = [measurement(name, "own", seconds) for name, seconds in (("runtime", 40.0), ("eager", 90.0))]
    value = report_of(*cases, measurement("runtime", "turbo", 5.0))
    assert_table_agrees(format_report(value), value)
    assert "   20000.0   10000.0   40000.0" in format_report(value)  # 40 s for two images


def test_chart_has_one_bar_for_each_case_as_long_as_its_stages(tmp_path: pathlib.Path) -> None:
    save_chart(report_of(measurement("runtime", "own", 40.0), measurement("eager", "own", 80.0)), tmp_path / "c.png")
    area = colours(tmp_path / "c.png")
    assert min(area[colour] for colour in (BACKBONE_COLOUR, DENOISE_COLOUR, REST_COLOUR)) > 1000
    with Image.open(tmp_path / "c.png") as image:
        beside_the_legend = np.asarray(image.convert("RGB"))[:, : int(0.85 * image.width)]
    backbone = (beside_the_legend == BACKBONE_COLOUR).all(axis=-1).sum(axis=1)
    bars = backbone[backbone > 0]  # lines of pixels that cross a bar
    assert bars[-1] == pytest.approx(2 * bars[0], rel=0.1)  # the first case is on top


def test_chart_has_other_colours_for_engines_that_only_some_models_have(tmp_path: pathlib.Path) -> None:
    engines = ("backbone", "backbone2", "denoise2", "rest")
    stages = {name: timing_of(20.0) for name in engines}
    value = report_of(Measurement(Case("runtime", "own"), timing_of(80.0), stages))
    save_chart(value, tmp_path / "c.png")
    large = [colour for colour, area in colours(tmp_path / "c.png").items() if area > 1000 and len({*colour}) > 1]
    assert len(large) == len(engines) - 1  # the rest is gray


def test_device_has_no_share_of_the_roofline_of_the_processor(tmp_path: pathlib.Path) -> None:
    whole = {DEVICE: timing_of(0.09), "rest": timing_of(0.01)}
    on_device = Measurement(Case("runtime-tensorrt-cuda", "own"), timing_of(0.1), whole)
    value = report_of(on_device, measurement("eager", "own", 80.0))
    case, eager = value["cases"]
    assert case["share_of_roofline"] is None
    assert eager["share_of_roofline"] > 0
    line = next(line for line in format_report(value).splitlines() if line.startswith("runtime-tensorrt-cuda, own"))
    assert "%" not in line
    assert line.endswith("800.00x")
    save_chart(value, tmp_path / "c.png")
