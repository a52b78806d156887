"""The tables of the benchmark pages: marked regions are replaced, and nothing else."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from benchmarks.render_pages import (
    bench_tables,
    evaluation_table,
    render_page,
    steps_table,
    study_table,
    tokenizer_table,
    training_table,
    variants_table,
)
from mar_export.benchmark.report import Workload, build_report
from mar_export.benchmark.timing import Case, Measurement, Timing
from runtime.cost.operations import Machine
from runtime.errors import RequestError
from runtime.sampling.plan import build_plan
from runtime.sampling.settings import Sampling
from training.models.model_sizes import model_config

PAGE = """# Numbers

Before, with `<!-- bench` in a sentence.

<!-- bench small -->
old figures
| a | b |
<!-- end -->
Between: 42 ms, \\1 and \\g<0> stay.
<!-- study presets -->
<!-- end -->
<!-- notes -->
Kept.
<!-- end -->
"""


def bench_value() -> dict[str, Any]:
    own, fast = Sampling(cfg_scale=2.0), Sampling(cfg_scale=2.0, sampler="ddim", diffusion_steps=14, iterations=16)
    config = model_config("pixel_small")
    workload = Workload(
        config, 2, {"own": own, "fast": fast}, {"own": build_plan(64, own), "fast": build_plan(64, fast)}
    )

    def timing(seconds: float) -> Timing:
        return Timing(mean=9.0, median=seconds, p10=0.5 * seconds, p90=3 * seconds)

    cases = [
        Measurement(Case("runtime", "own"), timing(8.0), {"backbone": timing(2.0), "rest": timing(6.0)}),
        Measurement(Case("runtime", "fast"), timing(2.0), {"backbone": timing(0.5), "rest": timing(1.5)}),
        Measurement(Case("eager", "own"), timing(20.0), {"head": timing(20.0)}),
    ]
    about = {
        "title": "a model, batch 2",
        "repeats": 3,
        "engine_bytes": 7 * 2**20,
        "startup_seconds": {"import_runtime": 0.25, "first_backbone_call": 1.5},
    }
    runners = {
        "runtime": {"runs_on": "onnxruntime 1, cpu", "peak_memory_bytes": 80 * 2**20},
        "eager": {"runs_on": "torch 2", "peak_memory_bytes": 2000 * 2**20},
    }
    return build_report(cases, Machine(operations=60e9, bytes=9e9), workload, runners, about)


def setting(name: str, frechet: float, **sampling: Any) -> dict[str, Any]:
    errors = {"top1_accuracy": 0.005, "frechet": 0.126}
    return {
        "name": name,
        "sampler": name.split(maxsplit=1)[0] if " " in name else None,
        "sampling": json.loads(json.dumps(Sampling(**sampling).__dict__)),
        "features": {"classifier": [{"top1_accuracy": 0.875, "frechet": frechet, "standard_error": errors}]},
        "head_evaluations": 160,
        "milliseconds": {"median": 123.4, "p10": 100.0, "p90": 200.0},
    }


def study_value() -> dict[str, Any]:
    return {
        "images": 5000,
        "seeds": 1,
        "real": {"classifier": {}},
        "settings": [
            setting("exact", 2.0, cfg_scale=2.0),
            setting("fast", 2.5, cfg_scale=2.0, sampler="ddim", cfg_interval=(0.1, 1.0)),
            setting("ddim 14", 3.0, sampler="ddim", diffusion_steps=14),
        ],
    }


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """A page, and what was measured."""
    (tmp_path / "page.md").write_text(PAGE)
    (tmp_path / "small.json").write_text(json.dumps(bench_value()))
    (tmp_path / "presets.json").write_text(json.dumps(study_value()))
    return tmp_path


def test_only_marked_regions_are_replaced(folder: pathlib.Path) -> None:
    render_page(folder / "page.md", folder)
    text = (folder / "page.md").read_text()
    expected = PAGE.replace("old figures\n| a | b |\n", f"{bench_tables(bench_value())}\n")
    marker = "<!-- study presets -->\n"
    assert text == expected.replace(marker, f"{marker}{study_table(study_value())}\n")
    assert sorted(path.name for path in folder.iterdir()) == ["page.md", "presets.json", "small.json"]


def test_rendering_twice_changes_nothing(folder: pathlib.Path) -> None:
    render_page(folder / "page.md", folder)
    once = (folder / "page.md").read_bytes()
    render_page(folder / "page.md", folder)
    assert (folder / "page.md").read_bytes() == once


def test_new_figures_replace_old_ones(folder: pathlib.Path) -> None:
    render_page(folder / "page.md", folder)
    (folder / "presets.json").write_text(json.dumps({**study_value(), "images": 1234567}))
    render_page(folder / "page.md", folder)
    text = (folder / "page.md").read_text()
    assert "1,234,567 images each." in text
    assert "5,000 images each." not in text


@pytest.mark.parametrize("content", [None, "{", "\x00"])
def test_a_missing_or_broken_json_is_one_line_and_leaves_the_page(folder: pathlib.Path, content: str | None) -> None:
    (folder / "presets.json").unlink()
    if content is not None:
        (folder / "presets.json").write_text(content)
    with pytest.raises(RequestError) as caught:
        render_page(folder / "page.md", folder)
    message = str(caught.value)
    assert message.isprintable()
    assert f"{folder / 'page.md'} names {folder / 'presets.json'}, which cannot be read" in message
    assert (folder / "page.md").read_text() == PAGE


def test_a_table_of_an_unknown_kind_is_one_line_and_leaves_the_page(folder: pathlib.Path) -> None:
    page = folder / "page.md"
    page.write_text(PAGE.replace("<!-- study presets -->", "<!-- studies presets -->"))
    before = page.read_text()
    with pytest.raises(RequestError, match="has a table of kind studies; known are bench, study,"):
        render_page(page, folder)
    assert page.read_text() == before


BENCHMARKS = pathlib.Path(__file__).parents[2] / "docs" / "benchmarks"


@pytest.mark.parametrize("page", sorted(BENCHMARKS.rglob("*.md")), ids=lambda page: str(page.relative_to(BENCHMARKS)))
def test_every_table_of_the_benchmark_pages_shows_the_measured_figures(
    page: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    rendered = tmp_path / "page.md"
    rendered.write_text(page.read_text())
    render_page(rendered, BENCHMARKS / "data")
    assert rendered.read_text() == page.read_text()


def test_benchmark_tables_have_every_case_stage_preset_and_runner() -> None:
    value = bench_value()
    text = bench_tables(value)
    lines = text.splitlines()
    assert lines[0].startswith("a model, batch 2, 3 times each in turn. Commit ")
    machine = f"the machine ({value['machine']['processor']})"
    assert f"{machine} reached 60 GFLOP/s in a large matrix product and read 9.0 GB/s." in lines[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    rows = {row[0]: row for row in cells}
    own = value["plans"]["own"]
    least, operations = own["roofline_seconds"], sum(own["operations"].values())
    assert rows["**runtime, own**"][1:] == [
        "**4.00 s**",
        "2.00 to 12.00",
        f"{sum(least.values()) / 2:.2f} s",
        f"{sum(least.values()) / 8:.0%}",
        f"{operations / 8e9:.0f}",
        "**2.50x**",
    ]
    assert rows["**runtime, fast**"][1] == "**1.00 s**"
    assert rows["**runtime, fast**"][6] == "**10.00x**, less work"
    assert rows["**eager, own**"][6] == "**1.00x**"
    backbone = next(row for row in cells if row[0] == "backbone")
    assert backbone[1:5] == [
        "1.00 s",
        "0.50 to 3.00",
        f"{least['backbone'] / 2:.2f} s",
        f"{least['backbone'] / 2.0:.0%}",
    ]
    assert rows["head"][3:5] == ["", ""]
    assert "speed against eager, own" in text
    assert rows["own"][1:] == ["64", "6400", f"{operations / 1e12:.2f}", "cfg scale 2.0"]
    assert rows["fast"][1:3] == ["16", str(16 * 14)]
    assert rows["fast"][4] == "iterations 16, cfg scale 2.0, sampler ddim, diffusion steps 14"
    assert rows["eager"][1:] == ["torch 2", "2,000 MiB"]
    assert "Engine files: 7 MiB. `import runtime`: 0.25 s." in text
    assert text.endswith("1.50 s.")


def test_every_row_of_a_table_has_as_many_cells_as_its_head() -> None:
    for text in (bench_tables(bench_value()), study_table(study_value()), variants_table(variants_value())):
        width = 0
        for line in text.splitlines():
            width = 0 if not line.startswith("|") else width or line.count("|")
            assert line.count("|") == width


def variants_value() -> dict[str, Any]:
    """Two settings for each head, as `benchmarks.variants` writes them."""
    settings = [("raster", "causal", 64), ("random", "bidirectional", 16)]
    rows = [
        {
            "head": head,
            "order": order,
            "attention": attention,
            "iterations": iterations,
            "top1_accuracy": 0.5,
            "frechet": far,
        }
        for head, distances in (("diffusion", (8.0, 4.0)), ("vq", (12.0, 10.0)))
        for (order, attention, iterations), far in zip(settings, distances, strict=True)
    ]
    judged = {"top1_accuracy": 0.9, "frechet": 0.1}
    about = {"steps": 1000, "images": 2000, "training": {"batch_size": 32}, "model": {"codebook_size": 512}}
    return {**about, "real": judged, "real_through_codebook": {**judged, "frechet": 2.0}, "rows": rows}


def test_variants_table_compares_vq_and_diffusion_heads() -> None:
    lines = variants_table(variants_value()).splitlines()
    assert lines[0] == "1,000 steps of 32 images each; 2,000 images of each evaluated, without guidance."
    assert lines[-4:-2] == [
        "| raster | causal | one | 50.0% ± 1.1% | 50.0% ± 1.1% | 12.000 ± 0.488 | 8.000 ± 0.398 | 1.50 |",
        "| random | bidirectional | several (16 iterations) | 50.0% ± 1.1% | 50.0% ± 1.1% | "
        "10.000 ± 0.445 | 4.000 ± 0.282 | 2.50 |",
    ]
    assert lines[-1].endswith("nearest of the 512 codes: 90.0%, 2.00.")


def test_study_table_compares_guided_settings_with_exact() -> None:
    lines = study_table(study_value()).splitlines()
    assert lines[0] == "5,000 images each."
    assert lines[-3:] == [
        "| exact | 87.5% ± 0.5% | 2.000 ± 0.126 | +0.0% | 160 | 123 | cfg scale 2.0 |",
        "| fast | 87.5% ± 0.5% | 2.500 ± 0.126 | +25.0% | 160 | 123 | "
        "cfg scale 2.0, cfg interval (0.1, 1.0), sampler ddim |",
        "| ddim 14 | 87.5% ± 0.5% | 3.000 ± 0.126 |  | 160 | 123 | sampler ddim, diffusion steps 14 |",
    ]


def test_a_study_without_exact_compares_nothing() -> None:
    value = study_value()
    value["settings"] = value["settings"][1:]
    assert "+" not in study_table(value)


def test_a_study_of_two_seeds_says_so_and_ends_with_real_images() -> None:
    value = study_value()
    for row in value["settings"]:
        row["features"]["classifier"] *= 2
    value |= {"seeds": 2, "real": {"classifier": {"real_training": {"top1_accuracy": 0.9, "frechet": 0.1}}}}
    lines = study_table(value).splitlines()
    assert lines[0] == "5,000 images each with each of 2 seeds: the mean, the least and the largest."
    assert lines[-1] == "| real training images | 90.0% | 0.100 |  |  |  |  |"


def test_evaluation_table_has_a_row_for_every_set_of_images() -> None:
    row = {"images": 1000, "frechet": 5.5, "precision": 0.25, "recall": 0.125, "top1_accuracy": 0.9}
    training = {**row, "frechet": 0.5, "top1_accuracy": None}
    figures = {"generated": row, "real_training": training, "real": {"images": 10_000}, "weights_sha256": "0"}
    sampling = Sampling(iterations=8).__dict__
    lines = evaluation_table({"ours": {"sampling": sampling, "features": {"classifier": figures}}}).splitlines()
    assert lines[2:] == [
        "| ours | 1,000 against 10,000 | classifier | 5.500 ± 0.467 | 0.250 | 0.125 | 90.0% ± 0.9% | iterations 8 |",
        "| real, training | 1,000 against 10,000 | classifier | 0.500 ± 0.141 | 0.250 | 0.125 |  |  |",
    ]


def test_tokenizer_table_has_the_quality_of_reconstructions() -> None:
    training = {"steps": 1500, "batch_size": 16, "adversarial_from": 1000, "eval_count": 2000}
    one = {
        "training": training,
        "latents": [4, 8, 8],
        "latent_scale": 0.5,
        "reconstruction": {"psnr": 24.126, "frechet": 7.1},
    }
    assert tokenizer_table({"small": one}).splitlines()[2:] == [
        "| small | 1,500 x 16 | 1,000 | 4 x 8 x 8 | 0.500 | 24.13 dB | 7.10, by 2,000 |"
    ]


def test_training_table_has_the_speedup_of_each_round() -> None:
    about = {"rounds": 3, "batch": 4, "model": "mar_base", "precision": "bf16", "threads": 1, "commit": "0123456789"}
    times = {"published": {"seconds": [9.0, 8.0, 7.0]}, "ours": {"seconds": [5.0, 3.0, 4.0]}}
    speedup = {"seconds": {"median": 1.8, "least": 1.75, "most": 2.6667}}
    measured = {"times": times, "speedup": speedup, "images_per_second": {"published": 0.5, "ours": 1.0}}
    lines = training_table({**about, **measured, "python": "3", "torch": "2"}).splitlines()
    assert lines[-3:] == [
        "| published | 8.00 | 7.00 to 9.00 | 0.5 |",
        "| ours | 4.00 | 3.00 to 5.00 | 1 |",
        "| speedup, round by round | 1.80x | 1.75 to 2.67 | |",
    ]


def test_steps_table_leaves_out_samplers_with_random_noise() -> None:
    found = {"name": "calibrated", "head_evaluations": 98, "milliseconds": 99.6, "relative_l2": 0.05, "worst": 0.1}
    noisy = {"name": "exact", "head_evaluations": 6400, "milliseconds": 999.9, "relative_l2": None, "worst": None}
    assert steps_table({"fast": {"evaluations": [found, noisy]}}).splitlines()[2:] == [
        "| fast | calibrated | 98 | 100 | 0.0500 | 0.1000 |"
    ]
