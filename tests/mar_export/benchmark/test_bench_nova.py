"""The command `mar bench` for a model that draws from text."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from mar_export.benchmark.runners import RUNNERS, RunnerInputs
from mar_export.benchmark.startup_time import first_call_seconds
from mar_export.cli import bench as bench_cli
from runtime.generator import Generator
from runtime.requests.prompt_subjects import example_prompts
from tests.helpers.benchmarks import FakeRunner, assert_table_agrees
from tests.helpers.command_line import Mar
from tests.helpers.distance import relative_l2
from tests.helpers.golden_cases import GOLDEN_TOLERANCE
from tests.helpers.json_documents import read_document
from tests.helpers.nova_cases import HEADS, NOVA_GOLDEN, nova_checkpoint
from training.models import nova_reference

MODEL = "case1"
ENGINES = {"condition", "backbone", "conditioning", "denoise"}


@pytest.fixture
def artifact(nova_artifacts: dict[str, pathlib.Path]) -> pathlib.Path:
    return nova_artifacts[MODEL]


def test_all_runners_draw_the_same_prompts(artifact: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[NDArray[Any]] = []
    generate, sample = Generator.generate, nova_reference.sample

    def generated(*arguments: Any, **named: Any) -> Any:
        result = generate(*arguments, **named)
        drawn.append(result.latents)
        return result

    def sampled(*arguments: Any, **named: Any) -> Any:
        latents = sample(*arguments, **named)
        drawn.append(latents)
        return latents

    monkeypatch.setattr(Generator, "generate", generated)
    monkeypatch.setattr(nova_reference, "sample", sampled)
    inputs = RunnerInputs(
        artifact=artifact,
        checkpoint=NOVA_GOLDEN / MODEL,
        config_file=HEADS,
        random_model=None,
        naive=artifact / "none",
        packages=artifact / "none",
        request=example_prompts(nova_checkpoint(MODEL).model.config, 2),
        batch=2,
        threads=1,
    )
    stages = {"runtime": ENGINES, "eager-optimized": ENGINES, "eager": {"condition", "backbone", "head"}}
    for name, expected in stages.items():
        _, draw = RUNNERS[name](inputs)
        times = draw({"iterations": 3, "diffusion_steps": 4, "cfg_scale": 3.0})
        assert times.keys() == expected
        assert min(times.values()) > 0
    assert len(drawn) == len(stages)
    assert relative_l2(drawn[0][0], drawn[0][1]) > 0.1  # the prompts of a batch differ
    for other in drawn[1:]:
        assert relative_l2(other, drawn[0]) <= GOLDEN_TOLERANCE


def test_the_command_times_random_prompts(fake_runners: type[FakeRunner], artifact: pathlib.Path) -> None:
    line = f"{artifact} --batch-size 3 --repeats 1 --json"
    result = CliRunner().invoke(bench_cli.bench, line, catch_exceptions=False)
    document = read_document(result.stdout)
    assert_table_agrees(result.stderr, document)
    assert {"condition", "backbone"} <= document["plans"]["own"]["roofline_seconds"].keys()
    (runner,) = fake_runners.instances
    assert runner.inputs.batch == len(runner.inputs.request["prompt_embeds"]) == 3


def test_start_up_is_timed_up_to_the_first_call_of_the_backbone(artifact: pathlib.Path) -> None:
    assert first_call_seconds(artifact, 1, "onnxruntime", "cpu") > 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{artifact} --class 1", "this model draws from text, not from classes; leave --class out"),
        ("{artifact} --runner naive-onnx --checkpoint x", "the runner naive-onnx does not support NOVA; choose others"),
        ("--model uva_small --random-weights", "mar bench is for models of images, and a UVA drives a robot"),
    ],
)
def test_wrong_use_is_one_line_before_anything_starts(
    mar: Mar, artifact: pathlib.Path, fake_runners: type[FakeRunner], line: str, message: str
) -> None:
    ended = mar("bench " + line.format(artifact=artifact))
    assert ended.code == 2
    assert message in ended.err
    assert ended.err.count("\n") == 1
    assert fake_runners.instances == []
