"""`mar train`: new runs, resumed runs, and one line for every mistake."""

from __future__ import annotations

import json
import pathlib
import shutil

import pytest
import torch
from PIL import Image

from tests.helpers.command_line import Command
from tests.helpers.tiny_runs import logged, write_idx_dataset
from tests.helpers.train_command import error_line, run_mar_process
from training.checkpoints import checkpoint
from training.models.numerics import multiplies_bf16


def test_train_makes_a_run_with_the_settings_it_was_given(
    two_step_run: pathlib.Path, two_class_data: pathlib.Path
) -> None:
    config = json.loads((two_step_run / "config.json").read_text())
    assert config["model"]["img_size"] == 8
    assert config["model"]["class_num"] == 2
    assert config["data"] == str(two_class_data)
    assert config["training"] == {
        "steps": 2,
        "batch_size": 4,
        "accumulate": 1,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "decay_share": 0.0,
        "weight_decay": 0.02,
        "gradient_clip": 3.0,
        "ema_rate": 0.5,
        "flip": False,
        "seed": 3,
        "precision": "bf16" if multiplies_bf16(torch.device("cpu")) else "fp32",
        "attention_precision": "fp32",
        "fsdp": False,
        "gradient_checkpointing": False,
        "compile": False,
        "bad_data": "report",
        "workers": 0,
        "init": "",
        "validation_share": 0.0,
        "empty_classes": False,
        "keep": 1,
        "checkpoint_every": 2,
        "sample_every": 2,
        "background": "white",
    }


def test_train_writes_a_checkpoint_a_log_samples_and_a_curve(two_step_run: pathlib.Path) -> None:
    assert sorted(logged(two_step_run, "loss")) == [1, 2]
    assert checkpoint.saved_step(two_step_run / "training-state.safetensors") == 2
    assert checkpoint.load_checkpoint(two_step_run).class_names == ("0", "1")
    for path in ("samples/step-000002.png", "loss.png"):
        with Image.open(two_step_run / path) as image:
            image.verify()


def test_a_mistake_is_one_line_and_exit_code_2_of_the_process(
    two_class_data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    done = run_mar_process(
        "train", "--model", "pixel_small", "--data", two_class_data, "--out", tmp_path / "run", "--steps", -1
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "mar: the command line: steps must be a whole number of at least 1, found -1\n"
    assert not (tmp_path / "run").exists()


def test_resume_continues_the_run_of_another_process(
    train: Command, two_step_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = pathlib.Path(shutil.copytree(two_step_run, tmp_path / "run"))
    code, _, _ = train("--resume", run, "--steps", 3, "--threads", 1)
    assert code == 0
    losses = logged(run, "loss")
    assert sorted(losses) == [1, 2, 3]
    assert {step: losses[step] for step in (1, 2)} == logged(two_step_run, "loss")
    assert checkpoint.saved_step(run / "training-state.safetensors") == 3
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["step-000002.png", "step-000003.png"]


def test_a_finished_run_prints_its_folder_and_the_next_commands(
    train: Command, two_step_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """A run without steps left prints the line again and does nothing else."""
    run = pathlib.Path(shutil.copytree(two_step_run, tmp_path / "run"))
    for options, step in ((("--steps", 3), 3), ((), 3), (("--steps", 1), 3)):
        code, out, _ = train("--resume", run, *options)
        assert code == 0
        [line] = out.splitlines()
        assert line.startswith(f"{run} is finished at step {step}; ")
        assert f"mar export {run} --out ARTIFACT" in line
        assert f"mar train --resume {run} --steps N" in line


# Each changes one option of a command that would work; None removes the option.
@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--model", "mar_tiny", "pixel_small"),
        ("--model", "mar_base", "mar_base"),
        ("--model", None, "--model"),
        ("--data", None, "data is missing (--data, the folder"),
        ("--out", None, "--out"),
        ("--steps", None, "--steps"),
        ("--steps", -3, "steps"),
        ("--steps", 0, "steps"),
        ("--steps", "many", "--steps"),
        ("--steps", 1.5, "--steps"),
        ("--batch-size", 0, "batch_size"),
        ("--batch-size", -4, "batch_size"),
        ("--batch-size", 11, "10"),  # there are ten images
        ("--learning-rate", "nan", "learning_rate"),
        ("--learning-rate", "inf", "learning_rate"),
        ("--learning-rate", 0, "learning_rate"),
        ("--weight-decay", -1, "weight_decay"),
        ("--weight-decay", "nan", "weight_decay"),
        ("--gradient-clip", 0, "gradient_clip"),
        ("--ema-rate", 1, "ema_rate"),
        ("--warmup-steps", -1, "warmup_steps"),
        ("--decay-share", 1.1, "decay_share"),
        ("--checkpoint-every", 0, "checkpoint_every"),
        ("--sample-every", -1, "sample_every"),
        ("--keep", 0, "keep"),
        ("--validation-share", 1, "validation_share"),
        ("--validation-share", -0.1, "validation_share"),
        ("--image-size", 30, "img_size"),
        ("--image-size", 0, "img_size"),
        ("--accumulate", 3, "over 1 process in 3 micro-batches"),  # a batch of four
        ("--attention-precision", "fp8", "--attention-precision"),
        ("--workers", -1, "workers"),
        ("--fsdp", "--no-flip", "torchrun"),
        ("--device", "tpu", "--device"),
        ("--config", "nowhere.toml", "nowhere.toml"),
        ("--precision", "fp8", "--precision"),
        ("--seed", -1, "seed"),
        ("--threads", 0, "threads"),
        ("--threads", -2, "threads"),
        ("--epochs", 3, "steps and epochs both say"),
        ("--epochs", 0, "--epochs"),
    ],
)
def test_a_wrong_option_is_one_line_that_names_it_and_leaves_no_run(
    train: Command, two_class_data: pathlib.Path, tmp_path: pathlib.Path, option: str, value: object, message: str
) -> None:
    run = tmp_path / "run"
    options = {"--model": "pixel_small", "--data": two_class_data, "--out": run, "--steps": 1, "--batch-size": 4}
    arguments = {**options, "--image-size": 8, option: value}
    code, out, err = train(*(part for pair in arguments.items() if pair[1] is not None for part in pair))
    assert code == 2
    assert out == ""
    assert message in error_line(err)
    assert not run.exists()


def test_a_message_about_one_image_uses_the_singular(train: Command, tmp_path: pathlib.Path) -> None:
    data = write_idx_dataset(tmp_path / "data", images=1, side=8, classes=1)
    options = ("--model", "pixel_small", "--image-size", 8, "--data", data, "--out", tmp_path / "run", "--steps", 1)
    _, _, err = train(*options, "--batch-size", 2)
    assert error_line(err) == "mar: a batch of 2 does not fit a dataset of 1 image"


@pytest.mark.parametrize("option", ["--model", "--out", "--config", "--init", "--image-size"])
def test_resume_names_the_option_of_a_new_run_that_was_given(
    train: Command, two_step_run: pathlib.Path, option: str
) -> None:
    code, _, err = train("--resume", two_step_run, option, 8 if option == "--image-size" else "pixel_small")
    assert code == 2
    assert error_line(err) == f"mar: a run resumed with --resume has its model already; remove {option}"


@pytest.mark.parametrize(
    ("option", "value", "field", "expected"),
    [
        ("--learning-rate", "1e-05", "learning_rate", 1e-5),
        ("--batch-size", "5", "batch_size", 5),
        ("--precision", "fp32", "precision", "fp32"),
        ("--seed", "9", "seed", 9),
    ],
)
def test_a_setting_given_beside_resume_is_used_or_refused_but_not_ignored(
    train: Command,
    two_step_run: pathlib.Path,
    tmp_path: pathlib.Path,
    option: str,
    value: str,
    field: str,
    expected: object,
) -> None:
    run = pathlib.Path(shutil.copytree(two_step_run, tmp_path / "run"))
    code, _, err = train("--resume", run, option, value)  # the run is finished, so nothing is trained
    if code == 2:
        assert option in error_line(err)
    else:
        assert json.loads((run / "config.json").read_text())["training"][field] == expected


@pytest.mark.parametrize("steps", [0, -1])
def test_resume_refuses_impossible_steps(train: Command, two_step_run: pathlib.Path, steps: int) -> None:
    before = (two_step_run / "config.json").read_text()
    code, _, err = train("--resume", two_step_run, "--steps", steps)
    assert code == 2
    assert "steps" in error_line(err)
    assert (two_step_run / "config.json").read_text() == before


def test_a_failure_other_than_wrong_use_has_exit_code_1(
    train: Command, two_step_run: pathlib.Path, two_class_data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    new = ("--model", "pixel_small", "--steps", 1, "--batch-size", 4, "--image-size", 8)
    file = tmp_path / "file"
    file.write_text("in the way")
    for arguments, message in [
        (("--resume", tmp_path / "nowhere"), "nowhere"),
        ((*new, "--data", tmp_path / "nowhere", "--out", tmp_path / "run"), "nowhere"),
        ((*new, "--data", two_class_data, "--out", two_step_run), "already holds a run"),
        ((*new, "--data", two_class_data, "--out", file), str(file)),
    ]:
        code, _, err = train(*arguments)
        assert code == 1
        assert message in error_line(err)
    assert not (tmp_path / "run").exists()


def test_help_describes_every_option_and_its_default(train: Command) -> None:
    code, out, err = train("--help")
    assert code == 0
    assert err == ""
    for option in (
        "--config",
        "--print-config",
        "--fsdp",
        "--model",
        "--data",
        "--out",
        "--resume",
        "--steps",
        "--precision",
        "--ema-rate",
    ):
        assert option in out
    assert "0.9999" in out


def test_profile_prints_the_time_of_each_part_and_writes_nothing(
    train: Command,
    two_class_data: pathlib.Path,
    two_step_run: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in two_step_run.rglob("*") if path.is_file()}
    new = ("--model", "pixel_small", "--data", two_class_data, "--image-size", 8, "--steps", 1, "--batch-size", 4)
    for options in (("--resume", two_step_run), (*new, "--accumulate", 2)):
        code, out, _ = train(*options, "--profile")
        assert code == 0
        assert "8 steps of 4 images" in out
        lines = [line.split() for line in out.splitlines() if line]
        shares = {" ".join(words[:-2]): float(words[-2]) for words in lines[2:] if words[-1].endswith("%")}
        assert all(value >= 0 for value in shares.values())
        phases = ("read", "forward", "backward", "clip", "optimizer", "average", "the rest")
        assert all(shares[phase] > 0 for phase in phases[:-1])
        assert {"backbone", "head"} < shares.keys()
        assert any(operator.startswith("aten::") for operator in out.split())
    assert list(tmp_path.iterdir()) == []
    assert {path: path.read_bytes() for path in two_step_run.rglob("*") if path.is_file()} == before
