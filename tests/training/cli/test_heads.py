"""`mar flow-head` and `mar distill`: a checkpoint in, a run out, and images from its artifact."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
import signal

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file

from calibration.cli.calibrate import calibrate
from calibration.cli.optimize_steps import optimize_steps
from mar_export.artifact.export import export_artifact
from runtime.artifact.artifact_folder import Artifact
from runtime.errors import MarError, RequestError
from runtime.generator import Generator
from runtime.model.engine_spec import Array
from tests.helpers.tiny_runs import TINY, logged, one_sentence, one_thread, randomized, start, write_idx_dataset
from training.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_run, save_weights
from training.cli.distill import distill
from training.cli.flow_head import flow_head
from training.data.loader import MicroBatch
from training.heads.flow_training import with_flow_head
from training.heads.train_step import HeadTrainStep
from training.heads.trainer import _load
from training.loop import training_loop
from training.loop.optimizer_step import StepResult
from training.models.mar import MAR
from training.models.reference_loop import sample
from training.preemption import PreemptedError


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_idx_dataset(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    run = tmp_path_factory.mktemp("teacher") / "run"
    save_run(run, Checkpoint(randomized(MAR(**TINY.to_dict())), "pixel", ("a", "b", "c"), "tiny", "0" * 64))
    return run


def run_command(line: list[str]) -> str:
    """Run a command and return its output, or raise its error."""
    threads = torch.get_num_threads()
    result = CliRunner().invoke({"distill": distill, "flow-head": flow_head}[line[0]], line[1:])
    torch.set_num_threads(threads)
    if result.exception is not None:
        raise result.exception
    return result.output


SHORT = ["--count=24", "--steps=3", "--batch-size=8", "--threads=1"]


@pytest.fixture(scope="module")
def distilled(teacher: pathlib.Path, data: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with `run`, a head of two steps distilled with guidance, and `artifact`, its export. Read only."""
    folder = tmp_path_factory.mktemp("distilled")
    line = ["distill", str(teacher), "--to=2", "--cfg-scale=1.5", "--teacher-steps=4", f"--data={data}"]
    assert "mar export" in run_command([*line, f"--out={folder / 'run'}", *SHORT])
    export_artifact(load_checkpoint(folder / "run"), folder / "artifact", lambda text: None)  # compares with PyTorch
    return folder


def test_a_distilled_head_generates_in_its_own_number_of_steps(teacher: pathlib.Path, distilled: pathlib.Path) -> None:
    run, artifact = distilled / "run", distilled / "artifact"
    config = json.loads((run / "config.json").read_text())
    assert config["distilled_from"]["file"] == teacher.name
    assert {name: config["distilled_from"][name] for name in ("cfg_scale", "teacher_steps")} == {
        "cfg_scale": 1.5,
        "teacher_steps": 4,
    }
    settings = {"count": 24, "steps": 3, "batch_size": 8, "seed": 0, "checkpoint": str(teacher)}
    assert {name: config["training"][name] for name in settings} == settings
    own = Artifact(artifact).manifest.sampling
    assert (own.sampler, own.diffusion_steps, own.cfg_scale) == ("flow-euler", 2, 1.0)
    with Generator.load(artifact, threads=1) as generator:
        order, noise = np.tile(np.arange(9), (2, 1)), np.random.default_rng(0).standard_normal((3, 2, 9, 16))
        result = generator.generate([0, 2], order=order, noise=noise.astype(np.float32), iterations=4)
        assert result.plan.head_evaluations == 8
        with pytest.raises(RequestError) as caught:
            generator.generate([0], diffusion_steps=3)
    assert "diffusion_steps of this model must be 2, found 3" in one_sentence(caught)
    labels = np.array([0, 2])
    expected = sample(load_checkpoint(run).model, labels, result.plan, order, noise.astype(np.float32))
    np.testing.assert_allclose(result.latents, expected, rtol=1e-3, atol=1e-4)


def test_a_head_distilled_with_guidance_reaches_int8_without_the_unconditional_half(
    distilled: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """The sequence of docs/tasks/heads.md: distill, export, calibrate."""
    line = [str(distilled / "artifact"), "--out", str(tmp_path / "int8"), "--iterations=3", "--count=3", "--threads=1"]
    calibrate.main([*line, "--eval-count=2", "--target-sqnr=10"], standalone_mode=False)
    manifest = Artifact(tmp_path / "int8").manifest
    assert (manifest.precision, manifest.parity["generation"]["sqnr_db"] >= 10) == ("int8", True)
    rows: list[tuple[int, int]] = []  # of each step: the tokens, and the rows of their modulation
    seen: list[list[int]] = []  # the classes of each pass
    with Generator.load(tmp_path / "int8", threads=1) as generator:
        engines = generator.engines

        def backbone(**inputs: Array) -> tuple[Array, ...]:
            seen.append(inputs["labels"].tolist())
            return engines.backbone(**inputs)

        def denoise(**inputs: Array) -> tuple[Array, ...]:
            rows.append((len(inputs["x"]), len(inputs["modulation"])))
            return engines.denoise(**inputs)

        watched = dataclasses.replace(engines, backbone=backbone, denoise=denoise)
        result = Generator(manifest, watched, "watched").generate([0, 2], iterations=3)
        with pytest.raises(RequestError, match="guidance is already part of the distilled head"):
            generator.generate([0], cfg_scale=1.5)
    assert seen == [[0, 2]] * 3
    assert rows == [(2 * iteration.count, 2 * iteration.count) for iteration in result.plan.iterations for _ in "ab"]


def test_a_flow_head_generates_with_guidance_by_its_own_samplers(
    teacher: pathlib.Path, data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run, artifact = tmp_path / "run", tmp_path / "artifact"
    run_command(["flow-head", str(teacher), f"--data={data}", f"--out={run}", *SHORT])
    assert load_checkpoint(run).model.config.head == "flow"
    assert json.loads((run / "config.json").read_text())["head_trained_for"]["file"] == teacher.name
    export_artifact(load_checkpoint(run), artifact, lambda text: None)
    assert Artifact(artifact).manifest.sampling.sampler == "flow-2m"
    order, noise = np.arange(9)[None], np.random.default_rng(0).standard_normal((7, 1, 9, 16)).astype(np.float32)
    with Generator.load(artifact, threads=1) as generator:
        for sampler, eta in (("flow-2m", 0.0), ("flow-euler", 1.0)):
            settings = {"sampler": sampler, "eta": eta, "diffusion_steps": 6, "cfg_scale": 2.0, "iterations": 3}
            result = generator.generate([1], order=order, noise=noise, **settings)
            expected = sample(load_checkpoint(run).model, np.array([1]), result.plan, order, noise)
            np.testing.assert_allclose(result.latents, expected, rtol=1e-3, atol=1e-4)
    refused = CliRunner().invoke(optimize_steps, [str(artifact), "--budget-ms=5"]).exception
    assert str(refused) == f"{artifact} has a flow head; mar optimize-steps needs a diffusion head"


@pytest.mark.parametrize("command", [["flow-head"], ["distill", "--to=2"]], ids=str)
def test_an_existing_folder_is_not_overwritten(
    command: list[str], teacher: pathlib.Path, data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(RequestError) as caught:
        run_command([*command, str(teacher), f"--data={data}", f"--out={tmp_path}", *SHORT])
    assert f"{tmp_path} exists and is no run; choose another --out" in one_sentence(caught)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Have the next training receive SIGTERM after a number of steps."""
    update = HeadTrainStep.update

    def stopped(step: HeadTrainStep, number: int, batches: list[MicroBatch]) -> StepResult:
        if number == steps - 1:
            monkeypatch.undo()
            os.kill(os.getpid(), signal.SIGTERM)
        return update(step, number, batches)

    monkeypatch.setattr(HeadTrainStep, "update", stopped)


def test_a_head_is_a_whole_run_that_can_be_stopped_and_resumed(
    teacher: pathlib.Path, data: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = [
        "distill",
        str(teacher),
        "--to=1",
        "--teacher-steps=2",
        f"--data={data}",
        "--steps=4",
        *SHORT[:1],
        *SHORT[2:],
    ]
    run_command([*line, f"--out={tmp_path / 'whole'}"])
    for name, again in (("resumed", ["distill", f"--resume={tmp_path / 'resumed'}"]), ("repeated", line)):
        run = tmp_path / name
        stop_after(monkeypatch, 2)
        with pytest.raises(PreemptedError, match=rf"after step 2 of 4; .* continue it with mar distill --resume {run}"):
            run_command([*line, f"--out={run}"])
        run_command([*again, *([f"--out={run}"] if again is line else [])])
        whole, resumed = (load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", run))
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
        assert list(logged(run, "loss")) == [1, 2, 3, 4]
        assert [session["from_step"] for session in json.loads((run / "environment.json").read_text())] == [0, 2]
        assert (run / "loss.png").is_file()
        assert (run / "samples" / "step-000004.png").is_file()
    source = load_file(teacher / "model.safetensors")
    assert {name for name, tensor in source.items() if not torch.equal(tensor, whole[name])} == {
        name for name in source if name.startswith("diffloss.net.")
    }


def test_a_finished_head_stays_and_other_settings_are_refused(
    teacher: pathlib.Path, data: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["flow-head", str(teacher), f"--data={data}", f"--out={tmp_path / 'run'}", *SHORT]
    run_command(line)
    kept = json.loads((tmp_path / "run" / "config.json").read_text())["training"]["precision"]
    monkeypatch.setattr(training_loop, "multiplies_bf16", lambda device: kept == "fp32")  # as on another machine
    before = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    assert "is finished at step 3; export it with mar export" in run_command(line)
    assert (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns == before
    for other in ("--seed=1", f"--precision={'bf16' if kept == 'fp32' else 'fp32'}"):
        with pytest.raises(RequestError, match=r"run holds a run with other settings; choose another --out"):
            run_command([*line, other])
    with pytest.raises(MarError, match=r"not the config of a run of mar distill \(the head is no distilled one\)"):
        run_command(["distill", f"--resume={tmp_path / 'run'}"])
    with pytest.raises(RequestError, match=r"run resumed with --resume has its .* already; remove --data and --seed"):
        run_command(["flow-head", f"--resume={tmp_path / 'run'}", f"--data={data}", "--seed=1"])


def test_a_checkpoint_that_changed_since_is_refused(
    teacher: pathlib.Path, data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    copy = shutil.copytree(teacher, tmp_path / "teacher")
    run_command(["flow-head", str(copy), f"--data={data}", f"--out={tmp_path / 'run'}", *SHORT])
    save_weights(copy / "model.safetensors", randomized(MAR(**TINY.to_dict()), seed=1).state_dict())
    _load.cache_clear()
    with pytest.raises(MarError, match=r"teacher: not the checkpoint that .*run was begun with; copy that one back"):
        run_command(["flow-head", f"--resume={tmp_path / 'run'}"])


def test_an_impossible_distillation_is_refused_before_the_work(teacher: pathlib.Path, tmp_path: pathlib.Path) -> None:
    student = with_flow_head(load_checkpoint(teacher).model, 2)
    save_run(tmp_path / "student", Checkpoint(student, "pixel", ("a", "b", "c"), "tiny", "0" * 64))
    for source, steps, message in (
        (teacher, 5, "the teacher's steps must be a multiple of those of the head, 2, found 5"),
        (tmp_path / "student", 4, "student has a distilled head, which cannot be a teacher"),
    ):
        line = ["distill", str(source), "--to=2", f"--teacher-steps={steps}", f"--data={tmp_path / 'nothing'}"]
        with pytest.raises(RequestError) as caught:
            run_command([*line, f"--out={tmp_path / 'run'}"])
        assert message in one_sentence(caught)


def test_a_head_sees_the_background_of_the_run_that_it_is_for(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with one_thread():
        start(tmp_path / "teacher", data, 1, background="#102030").train()
    for number, (options, color) in enumerate((([], "#102030"), (["--background=red"], "#ff0000"))):
        out = tmp_path / f"head-{number}"
        run_command(["flow-head", str(tmp_path / "teacher"), f"--data={data}", f"--out={out}", *SHORT, *options])
        assert json.loads((out / "config.json").read_text())["training"]["background"] == color


def test_data_of_other_classes_is_refused_and_nothing_is_written(teacher: pathlib.Path, tmp_path: pathlib.Path) -> None:
    other = write_idx_dataset(tmp_path / "other", classes=2)
    with pytest.raises(MarError) as caught:
        run_command(["distill", "--to=2", str(teacher), f"--data={other}", f"--out={tmp_path / 'run'}", *SHORT])
    assert "2 classes of 1 channel, but the model was made for 3 classes of 1" in one_sentence(caught)
    assert not (tmp_path / "run").exists()


def test_data_of_renamed_classes_is_refused(tmp_path: pathlib.Path) -> None:
    for name in "bcz":
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (12, 12)).save(tmp_path / "data" / name / "0.png")
    model = randomized(MAR(**{**TINY.to_dict(), "vae_embed_dim": 3}))
    save_run(tmp_path / "teacher", Checkpoint(model, "pixel", ("a", "b", "c"), "tiny", "0" * 64))
    with pytest.raises(MarError, match=r"data has the classes b, c, z, but .* has a, b, c") as caught:
        run_command(
            ["flow-head", str(tmp_path / "teacher"), f"--data={tmp_path}/data", f"--out={tmp_path}/run", *SHORT]
        )
    one_sentence(caught)


@pytest.mark.parametrize(("form", "named"), [({"attention": "causal"}, "causal attention"), ({"head": "vq"}, "vq")])
@pytest.mark.parametrize("command", [["flow-head"], ["distill", "--to=2"]], ids=str)
def test_a_model_without_masked_diffusion_is_refused(
    command: list[str], form: dict[str, str], named: str, data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    model = MAR(**{**TINY.to_dict(), **form, **({"codebook_size": 7} if "head" in form else {})})
    save_run(run, Checkpoint(randomized(model), "pixel", ("a", "b", "c"), "tiny", "0" * 64))
    with pytest.raises(RequestError) as caught:
        run_command([*command, str(run), f"--data={data}", f"--out={out}", *SHORT])
    assert one_sentence(caught).startswith("training a head on a frozen backbone does not support models with")
    assert named in str(caught.value)
    assert not out.exists()
