"""Wrong uses of `mar bench`."""

from __future__ import annotations

import pathlib

import pytest
from click.testing import CliRunner

from mar_export.benchmark import naive_graphs
from mar_export.cli import bench as bench_cli
from runtime.errors import MarError
from tests.helpers.benchmarks import (
    FakeRunner,
    without_machine,
)
from tests.helpers.command_line import Mar
from tests.helpers.golden_cases import GOLDEN

pytestmark = pytest.mark.usefixtures("no_leftover_processes")


def run(line: str) -> str:
    result = CliRunner().invoke(bench_cli.bench, line, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


NOT_BOTH = "give an ARTIFACT, or --model SIZE with --random-weights, or all three"

WRONG = [
    ("", NOT_BOTH, 2),
    ("--model pixel_small", NOT_BOTH, 2),
    ("--random-weights", NOT_BOTH, 2),
    ("{artifact} --model pixel_small", NOT_BOTH, 2),
    ("{artifact} --random-weights", NOT_BOTH, 2),
    ("--model nope --random-weights", "unknown model 'nope'", 2),
    ("{artifact} --runner eager", "give --checkpoint, the weights for eager", 2),
    ("{artifact} --runner naive-onnx --runner compile", "give --checkpoint, the weights for compile, naive-onnx", 2),
    ("{artifact} --runner nope", "'nope'", 2),
    ("{artifact} --preset nope", "--preset must be one of own, exact, balanced, fast, turbo, instant, found 'nope'", 2),
    ("{artifact} --preset mar_base", "mar_base is the size of a model, not a sampling preset: use --model mar_base", 2),
    ("{artifact} --plan fast", "--plan of mar bench is now --preset", 2),
    ("{artifact} --contestant eager", "--contestant of mar bench is now --runner", 2),
    ("{artifact} --class tabby", "class 'tabby' is unknown", 2),
    ("{artifact} --repeats 0", "--repeats must lie in 1..1000, found 0", 2),
    ("{artifact} --class 6", "class 6 is out of range; this model has classes 0..5", 2),
    ("{artifact} --iterations 17", "iterations must lie in 1..16", 2),
    (
        "{artifact} --batch-size 5000",
        "the batch size at 100 diffusion steps must be a whole number in 1..4096, found 5000",
        2,
    ),
    ("{artifact} --report {folder}", "it is a folder", 1),
    ("{artifact} --chart {folder}", "it is a folder", 1),
    ("{folder}/nothing", "nothing: not an artifact", 1),
    ("{artifact} --runner naive-onnx --checkpoint {folder}/none.pth", "no checkpoint at", 1),
]


@pytest.mark.parametrize(("line", "message", "code"), WRONG, ids=[line.split("} ")[-1][:40] for line, _, _ in WRONG])
def test_wrong_use_is_one_line_before_anything_starts(
    mar: Mar,
    small_artifact: pathlib.Path,
    tmp_path: pathlib.Path,
    fake_runners: type[FakeRunner],
    line: str,
    message: str,
    code: int,
) -> None:
    ended = mar("bench " + line.format(artifact=small_artifact, folder=tmp_path))
    assert ended.code == code
    assert ended.err.startswith("mar: ")
    assert ended.err.count("\n") == 1
    assert message in ended.err
    assert ended.out.strip() in ("", "naive-onnx: exporting")
    assert fake_runners.instances == []
    assert list(tmp_path.iterdir()) == []


def test_checkpoint_of_another_model_is_one_line(
    mar: Mar, small_artifact: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_machine(monkeypatch)
    other = GOLDEN / "patch2"
    ended = mar(
        f"bench {small_artifact} --checkpoint {other / 'checkpoint-last.pth'} --model-config {other / 'meta.json'}"
    )
    assert ended.code in (1, 2)
    assert ended.err.startswith("mar: eager: ")
    assert ended.err.count("\n") == 1
    assert f"not the checkpoint that {small_artifact} was exported from" in ended.err


def test_naive_export_needs_the_checkpoint_of_the_artifact(
    fake_runners: type[FakeRunner], small_artifact: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = GOLDEN / "patch2"
    monkeypatch.setattr(naive_graphs, "export_naive", lambda model, folder: pytest.fail("exported another model"))
    with pytest.raises(MarError, match="not the checkpoint"):
        run(
            f"{small_artifact} --runner naive-onnx --checkpoint {other / 'checkpoint-last.pth'} "
            f"--model-config {other / 'meta.json'}"
        )
