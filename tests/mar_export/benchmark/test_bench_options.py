"""The options of `mar bench`, with runners that have no process."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from mar_export.artifact.exported_checkpoint import as_exported
from mar_export.benchmark import naive_graphs
from mar_export.cli import bench as bench_cli
from mar_export.torch_backends import torch_cpu
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import MANIFEST, Manifest
from runtime.errors import BackendError
from runtime.sampling.settings import Sampling
from runtime.storage.files import write_json
from tests.helpers.benchmarks import (
    BACKBONE_COLOUR,
    WEIGHTS,
    FakeRunner,
    assert_table_agrees,
    colours,
)
from tests.helpers.json_documents import read_document
from training.checkpoints.checkpoint import Checkpoint
from training.checkpoints.random_weights import random_checkpoint
from training.models.model_sizes import model_config

pytestmark = pytest.mark.usefixtures("no_leftover_processes")


SMALL = model_config("pixel_small", img_size=16)  # of 16 tokens, as that model


def run(line: str) -> str:
    result = CliRunner().invoke(bench_cli.bench, line, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize(
    ("weights", "expected"),
    [("", [("runtime", None)]), (WEIGHTS, [("runtime", None), ("eager", "active"), ("eager", "passive")])],
)
def test_eager_pytorch_is_timed_if_there_is_a_checkpoint(
    fake_runners: type[FakeRunner], small_artifact: pathlib.Path, weights: str, expected: list[tuple[str, str | None]]
) -> None:
    run(f"{small_artifact} {weights} --repeats 1 --threads 3 --class 5 --batch-size 2")
    assert [(one.name, one.wait_policy) for one in fake_runners.instances] == expected
    for one in fake_runners.instances:
        assert one.inputs.artifact == small_artifact
        assert (one.inputs.request, one.inputs.batch, one.inputs.threads) == ({"labels": (5, 5)}, 2, 3)
        assert one.finished
        assert one.stopped


def test_json_prints_the_report_and_nothing_else_on_standard_output(
    fake_runners: type[FakeRunner], small_artifact: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    line = f"{small_artifact} --repeats 1 --preset own --preset fast --json --report {tmp_path / 'b.json'}"
    result = CliRunner().invoke(bench_cli.bench, line, catch_exceptions=False)
    document = read_document(result.stdout)
    assert [case["preset"] for case in document["cases"]] == ["own", "fast"]
    assert_table_agrees(result.stderr, document)
    in_file = read_document((tmp_path / "b.json").read_text())
    assert {**document, "made_by": in_file["made_by"]} == in_file


def test_sampling_options_change_every_preset(fake_runners: type[FakeRunner], small_artifact: pathlib.Path) -> None:
    run(f"{small_artifact} --preset fast --preset own --repeats 2 --iterations 3 --cfg-scale 1.5")
    (runner,) = fake_runners.instances
    requests = [{key: value for key, value in one.items() if value is not None} for one in runner.requests]
    warm_ups, drawn = requests[:2], requests[2:]
    assert [one["sampling"].iterations for one in warm_ups] == [3, 3]
    assert [one["sampling"].cfg_interval for one in warm_ups] == [(0.1, 1.0), (0.0, 1.0)]
    asked = {"iterations": 3, "cfg_scale": 1.5}
    assert drawn == [{**asked, "preset": "fast"}, asked] * 2


def test_preset_of_the_artifact_can_be_timed(
    fake_runners: type[FakeRunner], small_artifact: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    path = pathlib.Path(shutil.copytree(small_artifact, tmp_path / "artifact"))
    manifest = Artifact(path).manifest
    own = dataclasses.replace(manifest, presets={"mine": Sampling(iterations=2, diffusion_steps=(7, 4))})
    write_json(path / MANIFEST, own.to_dict())
    assert "mine: 16 tokens, 2 iterations, 11 head evaluations" in run(f"{path} --preset mine --repeats 1")
    assert fake_runners.instances[0].requests[-1]["preset"] == "mine"


def test_report_has_the_times_of_its_runners(
    fake_runners: type[FakeRunner], small_artifact: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    fake_runners.seconds = staticmethod(
        lambda runner, settings: {None: 2.0, "active": 9.0, "passive": 7.0}[runner.wait_policy]
    )
    output = run(
        f"{small_artifact} {WEIGHTS} --repeats 3 --report {tmp_path / 'new' / 'b.json'} --chart {tmp_path / 'b.png'}"
    )
    value = json.loads((tmp_path / "new" / "b.json").read_text())
    assert [case["times_the_baseline"] for case in value["cases"]] == [3.5, 1.0]
    assert value["baseline"] == {"runner": "eager", "preset": "own", "wait_policy": "passive"}
    (slower,) = value["slower_wait_policies"]
    assert (slower["runner"], slower["wait_policy"], slower["seconds"]["median"]) == ("eager", "active", 9.0)
    assert value["runners"]["eager"]["runs_on"] == "eager, passive, on nothing"
    assert value["machine"]["gflops"] == 5
    assert [one["peak_memory_bytes"] for one in value["runners"].values()] == [3 * 2**20] * 2
    assert_table_agrees(output, value)
    assert colours(tmp_path / "b.png")[BACKBONE_COLOUR] > 100
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["b.json", "b.png", "new"]


def test_model_with_random_weights_is_exported_once_to_the_work_folder(
    fake_runners: type[FakeRunner],
    pixel_artifact: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exported: list[Any] = []

    def export(checkpoint: Checkpoint, out: pathlib.Path, say: Callable[[str], None], sampling: Sampling) -> None:
        exported.append((checkpoint.source, sampling.cfg_scale))
        shutil.copytree(pixel_artifact, out)

    def export_naive(model: nn.Module, folder: pathlib.Path) -> None:
        folder.mkdir(parents=True)
        exported.append(sum(parameter.numel() for parameter in model.parameters()))
        for name in ("naive-backbone", "naive-head"):
            (folder / f"{name}.onnx").touch()

    monkeypatch.setattr("mar_export.artifact.export.export_artifact", export)
    monkeypatch.setattr(naive_graphs, "export_naive", export_naive)
    model = as_exported(random_checkpoint("pixel_small"), pixel_artifact).model
    parameters = sum(parameter.numel() for parameter in model.parameters())
    for _ in range(2):
        run(f"--model pixel_small --random-weights --work {tmp_path / 'work'} --repeats 1")
    assert exported == [("random weights, pixel_small", 2.9), parameters]
    assert [one.name for one in fake_runners.instances] == ["runtime", "naive-onnx", "eager", "eager"] * 2
    inputs = fake_runners.instances[0].inputs
    assert inputs.random_model == "pixel_small"
    assert (inputs.artifact / "manifest.json").is_file()
    assert (inputs.naive / "naive-head.onnx").is_file()
    assert inputs.artifact.is_relative_to(tmp_path / "work")
    assert inputs.naive.is_relative_to(tmp_path / "work")


def test_engines_are_compiled_once_for_a_number_of_threads(
    fake_runners: type[FakeRunner],
    small_artifact: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled: list[int] = []

    def save_packages(manifest: Manifest, model: nn.Module, folder: pathlib.Path) -> None:
        (folder / "backbone.pt2").touch()
        compiled.append(torch.get_num_threads())

    monkeypatch.setattr(torch_cpu, "save_packages", save_packages)
    for threads in (1, 3, 3):
        run(f"{small_artifact} {WEIGHTS} --runner aot-inductor --work {tmp_path} --repeats 1 --threads {threads}")
    assert compiled == [1, 3]
    assert len(fake_runners.instances) == 6  # of both wait policies
    assert all((one.inputs.packages / "backbone.pt2").is_file() for one in fake_runners.instances)


def test_without_a_compiler_aot_inductor_is_skipped_with_one_line(
    fake_runners: type[FakeRunner], small_artifact: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "no-such-compiler"))
    reason = "no C++ compiler; looked for no-such-compiler"
    output = run(f"{small_artifact} {WEIGHTS} --runner runtime --runner aot-inductor --repeats 1")
    assert f"aot-inductor is skipped: {reason}\n" in output
    assert [one.name for one in fake_runners.instances] == ["runtime"]
    with pytest.raises(BackendError, match=f"^aot-inductor: {re.escape(reason)}$"):
        run(f"{small_artifact} {WEIGHTS} --runner aot-inductor")


def test_temporary_work_folder_is_deleted(
    fake_runners: type[FakeRunner], small_artifact: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[pathlib.Path] = []

    def export_naive(model: nn.Module, folder: pathlib.Path) -> None:
        folder.mkdir(parents=True)
        folders.append(folder)

    monkeypatch.setattr(naive_graphs, "export_naive", export_naive)
    run(f"{small_artifact} {WEIGHTS} --runner naive-onnx --repeats 1")
    assert fake_runners.instances[0].inputs.naive == folders[0]
    assert not folders[0].exists()


def test_all_started_runners_are_stopped_when_one_fails(
    fake_runners: type[FakeRunner], small_artifact: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    def seconds(runner: FakeRunner, settings: Mapping[str, Any]) -> float:
        if runner.name == "eager" and "sampling" not in settings:  # after the warm-up
            raise BackendError("eager: RuntimeError: out of luck")
        return 1.0

    fake_runners.seconds = staticmethod(seconds)
    with pytest.raises(BackendError, match="out of luck"):
        run(f"{small_artifact} {WEIGHTS} --report {tmp_path / 'b.json'}")
    assert [one.stopped for one in fake_runners.instances] == [True, True, True]
    assert list(tmp_path.iterdir()) == []
