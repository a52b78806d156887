"""`mar flow-head` and `mar distill`: a checkpoint in, a run out, and images from its artifact."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from calibration.cli.optimize_steps import optimize_steps
from mar_export.artifact.export import export_artifact
from runtime.artifact.artifact_folder import Artifact
from runtime.errors import MarError, RequestError
from runtime.generator import Generator
from tests.helpers.tiny_runs import TINY, one_sentence, randomized, write_idx_dataset
from training.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_run
from training.cli.distill import distill
from training.cli.flow_head import flow_head
from training.models.mar import MAR
from training.models.reference_loop import sample


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


def test_a_distilled_head_generates_in_its_own_number_of_steps(
    teacher: pathlib.Path, data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run, artifact = tmp_path / "run", tmp_path / "artifact"
    line = ["distill", str(teacher), "--to=2", "--cfg-scale=1.5", "--teacher-steps=4", f"--data={data}"]
    assert "mar export" in run_command([*line, f"--out={run}", *SHORT])
    origin = json.loads((run / "config.json").read_text())["distilled_from"]
    assert {name: origin[name] for name in ("cfg_scale", "teacher_steps", "images", "steps", "seed")} == {
        "cfg_scale": 1.5,
        "teacher_steps": 4,
        "images": 24,
        "steps": 3,
        "seed": 0,
    }
    checkpoint = load_checkpoint(run)
    export_artifact(checkpoint, artifact, lambda text: None)  # compares it with eager PyTorch
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


def test_a_flow_head_generates_with_guidance_by_its_own_samplers(
    teacher: pathlib.Path, data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run, artifact = tmp_path / "run", tmp_path / "artifact"
    run_command(["flow-head", str(teacher), f"--data={data}", f"--out={run}", *SHORT])
    assert load_checkpoint(run).model.config.head == "flow"
    assert json.loads((run / "config.json").read_text())["head_trained_for"]["images"] == 24
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
    with pytest.raises(RequestError) as caught:
        run_command([*command, str(teacher), f"--data={data}", f"--out={tmp_path}", *SHORT])
    assert f"{tmp_path} exists; choose another --out" in one_sentence(caught)


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
