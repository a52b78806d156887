"""The benchmark of growing cost: its rows and tables, runners that are left out, and a run with invented times."""

from __future__ import annotations

import itertools
import json
import math
import pathlib
import types
from collections.abc import Mapping
from typing import Any

import pytest

from benchmarks import scaling
from benchmarks.scaling import points_of, wanted_series
from benchmarks.scaling_chart import scaling_chart
from benchmarks.scaling_report import Report
from benchmarks.scaling_rows import Point, Series, first_of, growth, merged
from benchmarks.scaling_tables import TABLES
from benchmarks.table_parts import NOT_MEASURED
from runtime.artifact.artifact_folder import Artifact
from runtime.cost.operations import plan_costs
from runtime.errors import BackendError, MarError, RequestError
from runtime.sampling.constraints import plan_for
from tests.helpers.benchmarks import MACHINE, FakeRunner, colours

BASE = Point(batch=1, threads=2, iterations=14, tokens=256)
OURS, EAGER = Series("fp32", "runtime"), Series("fp32", "eager")
OF = {"model": "random weights, mar_base", "preset": "fast", "cfg_scale": 2.9}


def row(series: Series, batch: int, seconds: list[float], run: str = "first", **changes: int) -> dict[str, Any]:
    """A row whose backbone has 1,000 GFLOP an image and takes half of the time."""
    return {
        **BASE._replace(batch=batch, **changes)._asdict(),
        **series._asdict(),
        "run": run,
        "operations": {"backbone": 1e12 * batch, "denoise": 1e12 * batch},
        "seconds": seconds,
        "stage_seconds": {"backbone": [each / 2 for each in seconds], "rest": [each / 2 for each in seconds]},
    }


def about(skipped: Mapping[str, str] | None = None) -> dict[str, Any]:
    return {
        "machine": {"processor": "a processor"},
        "versions": {"mar": "1", "commit": "0123456789ab", "python": "3"},
        "load_average": 0.25,
        "machine_gflops": {"2": [180.0, 200.0, 190.0]},
        "skipped": skipped or {},
    }


def value(*rows: Mapping[str, Any], runs: Mapping[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    return {**OF, "batch": {"runs": runs or {"first": about()}, "rows": list(rows)}, **changes}


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]


def test_a_row_has_its_time_its_rate_and_its_growth_beyond_the_operations() -> None:
    rows = [
        row(EAGER, 1, [40.0, 39.0, 42.0]),
        row(OURS, 8, [64.0, 62.0, 80.0]),
        row(OURS, 1, [10.0, 9.0, 11.0]),
        row(EAGER, 8, [400.0, 400.0, 400.0]),
    ]
    table = TABLES["batch"](value(*rows))
    assert table.splitlines()[0] == (
        "random weights, mar_base, preset `fast`, guidance 2.9; 2 threads, 14 iterations, 256 tokens."
    )
    head, _, *body = cells(table)[:6]
    assert head[-3:] == ["growth", "GFLOP/s", "backbone"]
    assert body == [
        ["1", "fp32", "eager", "40.0 (39.0 to 42.0)", "0.0250", "2,000.0", "", "50", "50"],
        ["8", "fp32", "eager", "50.0 (50.0 to 50.0)", "0.0200", "2,000.0", "**1.25**", "40", "40"],
        ["1", "fp32", "runtime", "10.0 (9.0 to 11.0)", "0.100", "2,000.0", "", "200", "200"],
        ["8", "fp32", "runtime", "8.00 (7.75 to 10.00)", "0.125", "2,000.0", "0.80", "250", "250"],
    ]


def test_growth_compares_with_the_least_value_of_the_same_series_and_threads() -> None:
    two, one = row(OURS, 1, [10.0]), row(OURS, 1, [18.0], threads=1)
    others = [two, one, row(OURS, 4, [30.0]), row(EAGER, 1, [1.0])]
    assert first_of(others, others[2], "batch") is two
    assert first_of(others, two, "threads") is one
    assert growth(others[2], two) == pytest.approx(0.75)
    assert growth(two, one) == pytest.approx(10 / 18)


@pytest.mark.parametrize(
    ("seconds", "ending"),
    [([69.0, 70.0, 60.0], "1.16x (1.14 to 1.33) | met |"), ([71.0, 70.0, 69.0], "1.14x (1.13 to 1.16) | **missed** |")],
)
def test_the_bar_compares_round_by_round(seconds: list[float], ending: str) -> None:
    rows = [row(OURS, 1, [10.0, 10.0, 10.0]), row(OURS, 8, seconds), row(EAGER, 1, [9.0]), row(EAGER, 8, [9.0])]
    bars = [line for line in TABLES["batch"](value(*rows)).splitlines() if "at least" in line]
    assert len(bars) == 1
    assert bars[0].startswith("| fp32, 2 threads: batch 8 at least 1.15 times the images a second of batch 1 | ")
    assert bars[0].endswith(ending)


def test_there_is_no_bar_between_runs_or_for_another_preset() -> None:
    runs = {"first": about(), "second": about({"eager in fp32": "not enough memory?"})}
    apart = TABLES["batch"](value(row(OURS, 1, [10.0]), row(OURS, 8, [60.0], run="second"), runs=runs))
    assert "at least" not in apart
    assert [line[:3] for line in cells(apart)[2:]] == [["1", "fp32", "runtime"], ["8", "fp32", "runtime"]]
    assert [line[3] for line in cells(apart)[2:]] == ["A", "B"]
    assert "- A: a processor, which reached 190 (180 to 200) GFLOP/s in a large product with 2 threads" in apart
    assert "Without eager in fp32 (not enough memory?)." in apart
    assert "at least" not in TABLES["batch"](value(row(OURS, 1, [10.0]), row(OURS, 8, [60.0]), preset="exact"))


def test_an_axis_that_was_not_measured_says_so() -> None:
    assert TABLES["tokens"](value(row(OURS, 1, [1.0]))) == NOT_MEASURED


def test_rows_that_are_measured_again_replace_the_old_ones() -> None:
    part = merged({}, "first", about(), [row(OURS, 1, [1.0]), row(EAGER, 1, [2.0])])
    part = merged(part, "second", about(), [row(OURS, 1, [3.0], run="second"), row(OURS, 2, [4.0], run="second")])
    assert [(each["runner"], each["batch"], each["seconds"]) for each in part["rows"]] == [
        ("eager", 1, [2.0]),
        ("runtime", 1, [3.0]),
        ("runtime", 2, [4.0]),
    ]
    assert list(part["runs"]) == ["first", "second"]
    part = merged(part, "third", about(), [row(EAGER, 1, [5.0], run="third")])
    assert list(part["runs"]) == ["second", "third"]


def test_points_differ_along_their_axis_alone() -> None:
    assert points_of("batch", (1, 8), BASE) == [BASE, BASE._replace(batch=8)]
    with pytest.raises(RequestError, match=r"--values: the tokens must be a square such as 64, found 50"):
        points_of("tokens", (64, 50), BASE)
    with pytest.raises(RequestError, match=r"--values: 16 tokens have at most 16 iterations, found 32"):
        points_of("iterations", (4, 32), BASE._replace(tokens=16))


def test_int8_is_run_by_this_runtime_alone() -> None:
    assert wanted_series(["int8", "fp32"], ["runtime", "eager", "runtime"]) == [Series("int8", "runtime"), OURS, EAGER]
    with pytest.raises(RequestError, match="--runner: int8 has runtime, runtime-openvino-cpu, found eager"):
        wanted_series(["int8"], ["eager"])


def test_a_file_with_figures_of_another_model_is_one_line(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "scaling.json"
    file.write_text(json.dumps(value(row(OURS, 1, [1.0]))))
    with pytest.raises(RequestError, match="the preset of its figures must be turbo, found fast; give another file"):
        Report(file, "batch", {**OF, "preset": "turbo"})


class BrokenRunner(FakeRunner):
    """Has no OpenVINO, and too little memory for PyTorch with batches of more than two."""

    def __init__(self, name: str, inputs: Any) -> None:
        if name == "runtime-openvino-cpu":
            raise BackendError(f"{name}: openvino is not installed")
        super().__init__(name, inputs, None)

    def generate(self, settings: Mapping[str, Any]) -> tuple[float, dict[str, float]]:
        if self.name == "eager" and len(settings["labels"]) > 2:
            raise BackendError("the process of eager ended; not enough memory?")
        return super().generate(settings)


@pytest.fixture
def runners(small_artifact: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> type[BrokenRunner]:
    """Measurements are those of `BrokenRunner` with the golden model."""
    fields: dict[str, Any] = {"instances": [], "seconds": staticmethod(lambda name, _: 1.0)}
    for_this_test = type("BrokenRunner", (BrokenRunner,), fields)
    monkeypatch.setattr(scaling, "Runner", for_this_test)
    monkeypatch.setattr(scaling.Engines, "artifact", lambda self, precision, tokens: small_artifact)
    monkeypatch.setattr(scaling, "Probe", lambda threads: types.SimpleNamespace(measure=lambda: MACHINE))
    monkeypatch.setattr(scaling, "RUNNERS", ("runtime", "runtime-openvino-cpu", "eager", "compile"))
    return for_this_test


def run(report: pathlib.Path, line: str) -> dict[str, Any]:
    checkpoint = pathlib.Path(__file__).parents[2] / "examples" / "fashion-mnist"
    scaling.main(scaling.parser().parse_args([str(report), *line.split(), "--checkpoint", str(checkpoint)]))
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def test_runners_take_turns_and_those_that_fail_are_left_out(
    runners: type[BrokenRunner],
    small_artifact: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    part = run(tmp_path / "report.json", "batch --values 1,4 --threads 2 --rounds 2 --cfg-scale 2")["batch"]
    (about_run,) = part["runs"].values()
    assert about_run["skipped"] == {
        "runtime-openvino-cpu in fp32": "runtime-openvino-cpu: openvino is not installed",
        "aot-inductor in fp32": "there is no such runner",
        "runtime-openvino-cpu in int8": "runtime-openvino-cpu: openvino is not installed",
        "eager in fp32": "the process of eager ended; not enough memory?",
    }
    measured = {(each["precision"], each["runner"], each["batch"]): each["seconds"] for each in part["rows"]}
    twice = itertools.product([("fp32", "runtime"), ("fp32", "compile"), ("int8", "runtime")], (1, 4))
    assert measured == {(*series, batch): [1.0, 1.0] for series, batch in twice}
    requests = [(len(one["labels"]), one["iterations"]) for one in runners.instances[0].requests]
    assert requests == [(1, 2), (4, 2), (1, 14), (4, 14), (1, 14), (4, 14)]
    assert all(runner.stopped for runner in runners.instances)
    manifest = Artifact(small_artifact).manifest
    plan = plan_for(manifest.model, manifest.resolve_sampling({"preset": "fast", "cfg_scale": 2.0, "iterations": 14}))
    costs = plan_costs(manifest.model, plan, 4)
    assert part["rows"][-1]["operations"] == {engine: cost.operations for engine, cost in costs.items()}
    assert about_run["machine_gflops"] == {"2": [5.0, 5.0]}
    assert "without aot-inductor in fp32: there is no such runner" in capsys.readouterr().out
    assert len(colours(tmp_path / "report.png")) > 5


def test_other_rows_are_kept_and_time_ends_the_rounds(runners: type[BrokenRunner], tmp_path: pathlib.Path) -> None:
    report = tmp_path / "report.json"
    run(report, "threads --values 1,2 --rounds 1 --runner runtime --precision fp32")
    found = run(report, "iterations --values 4,16 --rounds 9 --minutes 0 --runner runtime --precision fp32 --threads 1")
    assert [(each["threads"], each["seconds"]) for each in found["threads"]["rows"]] == [(1, [1.0]), (2, [1.0])]
    assert [(each["iterations"], each["seconds"]) for each in found["iterations"]["rows"]] == [(4, [1.0]), (16, [1.0])]
    assert [runner.inputs.threads for runner in runners.instances] == [1, 2, 1]


def test_a_run_without_any_runner_is_one_line(runners: type[BrokenRunner], tmp_path: pathlib.Path) -> None:
    with pytest.raises(MarError, match="no runner is left to measure"):
        run(tmp_path / "report.json", "batch --values 1 --runner runtime-openvino-cpu")
    assert not (tmp_path / "report.json").exists()


def test_charts_have_a_column_for_each_axis(tmp_path: pathlib.Path) -> None:
    rows = [row(OURS, 1, [10.0]), row(Series("int8", "runtime"), 1, [4.0]), row(EAGER, 8, [90.0])]
    runs = {"first": about()}
    axes = {axis: {"runs": runs, "rows": rows} for axis in ("batch", "threads", "iterations", "tokens")}
    for name, report in {"one": value(*rows), "all": {**OF, **axes}}.items():
        scaling_chart(report, tmp_path / f"{name}.png")
    sizes = [sum(colours(tmp_path / f"{name}.png").values()) for name in ("one", "all")]
    assert math.isclose(sizes[1] / sizes[0], 17.8 / 5.2, rel_tol=0.01)
