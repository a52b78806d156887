"""The benchmark: who is timed when, what is reported, and that it measures the same work."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from mar_export import bench
from mar_export.bench_cli import bench as bench_command
from runtime import Generator
from runtime.errors import MarError, RequestError
from tests.conftest import GOLDEN
from training import published


def test_contestants_take_turns_and_the_first_round_is_not_counted() -> None:
    turns: list[str] = []

    def contestant(name: str) -> bench.Contestant:
        def draw() -> bench.Stages:
            turns.append(name)
            return {"work": float(len(turns))}

        return bench.Contestant(name, draw)

    measured = bench.measure([contestant("a"), contestant("b")], repeats=3, progress=lambda: None)
    assert turns == ["a", "b"] * 4
    assert [one.name for one in measured] == ["a", "b"]
    assert measured[0].stages["work"].median == 5.0  # of turns 3, 5 and 7
    assert measured[1].stages["work"].median == 6.0


def test_a_timing_is_mean_median_and_percentiles() -> None:
    timing = bench.Timing.of([float(number) for number in range(1, 12)])
    assert timing == bench.Timing(mean=6.0, median=6.0, p10=2.0, p90=10.0)


@pytest.mark.parametrize("against_eager", [False, True])
def test_the_command_writes_what_it_prints(
    golden_artifacts: dict[str, pathlib.Path], tmp_path: pathlib.Path, against_eager: bool
) -> None:
    eager = (
        f"--checkpoint {GOLDEN}/small/checkpoint-last.pth --config {GOLDEN}/small/meta.json" if against_eager else ""
    )
    line = f"{golden_artifacts['small']} {eager} --iterations 3 --cfg-scale 2 --diffusion-steps ddim4 --repeats 2"
    result = CliRunner().invoke(
        bench_command, f"{line} --threads 1 --json {tmp_path / 'b.json'}", catch_exceptions=False
    )
    assert result.exit_code == 0
    written = json.loads((tmp_path / "b.json").read_text())
    names = ["runtime", "eager PyTorch"] if against_eager else ["runtime"]
    assert list(written["contestants"]) == names
    for name in names:
        of_image = written["contestants"][name]["image_seconds"]
        assert 0 < of_image["p10"] <= of_image["median"] <= of_image["p90"]
        stages = [timing["mean"] for timing in written["contestants"][name]["stage_seconds"].values()]
        assert np.sum(stages) == pytest.approx(of_image["mean"])
        assert name in result.output
    assert ("ratio" in written) is against_eager
    assert written["plan"] == {"tokens": 16, "iterations": 3, "head_evaluations": 12, "largest_guidance_scale": 1.9375}
    assert written["threads"] == 1
    assert written["versions"]["onnxruntime"] in result.output


def test_both_contestants_draw_the_same_picture(golden_artifacts: dict[str, pathlib.Path]) -> None:
    """The eager loop is timed on the orders and noises of the runtime's own picture."""
    seen: dict[str, object] = {}

    def spy(model: object, labels: object, plan: object, order: object, noise: object, **rest: object) -> None:
        seen.update(order=order, noise=noise)

    with Generator.load(golden_artifacts["small"], threads=1) as generator, pytest.MonkeyPatch.context() as patch:
        patch.setattr(published, "sample", spy)
        settings = {"iterations": 3, "diffusion_steps": "ddim4"}
        checkpoint, config = GOLDEN / "small" / "checkpoint-last.pth", GOLDEN / "small" / "meta.json"
        bench.eager_contestant(checkpoint, config, generator.manifest, 1, generator.plan(**settings)).draw()
        seeded = generator.generate([1], **settings).latents
        given = generator.generate([1], order=seen["order"], noise=seen["noise"], **settings).latents  # type: ignore[arg-type]
    assert (seeded == given).all()


def test_another_checkpoint_than_the_artifacts_is_refused(golden_artifacts: dict[str, pathlib.Path]) -> None:
    with Generator.load(golden_artifacts["small"], threads=1) as generator:
        other = GOLDEN / "patch2"
        with pytest.raises(RequestError, match="not the checkpoint that the artifact was exported from"):
            bench.eager_contestant(
                other / "checkpoint-last.pth", other / "meta.json", generator.manifest, 0, generator.plan()
            )


def test_a_report_that_cannot_be_written_is_told_before_the_work(
    golden_artifacts: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    with pytest.raises(MarError, match="it is a folder"):
        CliRunner().invoke(bench_command, f"{golden_artifacts['small']} --json {tmp_path}", catch_exceptions=False)


def test_timing_the_runtime_alone_needs_no_torch(golden_artifacts: dict[str, pathlib.Path]) -> None:
    line = ["bench", str(golden_artifacts["small"]), "--iterations=2", "--diffusion-steps=ddim2", "--repeats=1"]
    command = [sys.executable, "-X", "importtime", "-m", "runtime.cli", *line]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rooms = {words.split("|")[-1].strip().split(".")[0] for words in done.stderr.splitlines() if "|" in words}
    assert "onnxruntime" in rooms
    assert not rooms & {"torch", "onnx", "training"}
