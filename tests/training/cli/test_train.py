"""`mar train` as a person uses it: a run, its continuation, and one line for every mistake."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
from PIL import Image

from tests.helpers.command_line import Command, Mar
from tests.helpers.tiny_runs import logged, one_thread, write_idx_dataset
from training.checkpoints import checkpoint
from training.config import tomllib

_ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():  # and back, whatever --threads has set
        yield


def _mar(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "runtime.cli.main", *(str(argument) for argument in arguments)]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_idx_dataset(tmp_path_factory.mktemp("data"), images=10, side=8, classes=2)


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory: pytest.TempPathFactory, data: pathlib.Path) -> pathlib.Path:
    """A run of two steps, made by the command. Read only."""
    run = tmp_path_factory.mktemp("runs") / "new" / "run"
    done = _mar(
        *("train", "--preset", "pixel_small", "--data", data, "--out", run, "--image-size", 8, "--steps", 2),
        *("--batch-size", 4, "--sample-every", 2, "--checkpoint-every", 2, "--warmup-steps", 0, "--threads", 1),
        *("--no-flip", "--seed", 3, "--learning-rate", 1e-3, "--ema-rate", 0.5),
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return run


def test_train_makes_a_run_with_the_settings_it_was_given(two_steps: pathlib.Path, data: pathlib.Path) -> None:
    config = json.loads((two_steps / "config.json").read_text())
    assert config["model"]["img_size"] == 8
    assert config["model"]["class_num"] == 2
    assert config["data"] == str(data)
    assert config["training"] == {
        "steps": 2,
        "batch_size": 4,
        "accumulate": 1,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "weight_decay": 0.02,
        "gradient_clip": 3.0,
        "ema_rate": 0.5,
        "flip": False,
        "seed": 3,
        "precision": "bf16",
        "attention_precision": "fp32",
        "fsdp": False,
        "gradient_checkpointing": False,
        "compile": False,
        "bad_data": "report",
        "workers": 0,
        "checkpoint_every": 2,
        "sample_every": 2,
    }


def test_train_leaves_a_checkpoint_a_log_samples_and_a_curve(two_steps: pathlib.Path) -> None:
    assert sorted(logged(two_steps, "loss")) == [1, 2]
    assert checkpoint.saved_step(two_steps / "training-state.safetensors") == 2
    assert checkpoint.load_checkpoint(two_steps).class_names == ("0", "1")
    for path in ("samples/step-000002.png", "loss.png"):
        with Image.open(two_steps / path) as image:
            image.verify()


def test_a_mistake_is_one_line_and_exit_code_2_of_the_process(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    done = _mar("train", "--preset", "pixel_small", "--data", data, "--out", tmp_path / "run", "--steps", -1)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "mar: the flags: steps must be a whole number of at least 1, found -1\n"
    assert not (tmp_path / "run").exists()


# From here on in this process, since to import torch takes seconds: `main` is all that `python -m runtime.cli.main` runs.


@pytest.fixture
def train(mar: Mar) -> Command:
    return functools.partial(mar, "train")


def _the_line(err: str) -> str:
    """The one line of an error: no traceback, nothing before and nothing after it."""
    [line] = err.splitlines()
    assert line.startswith("mar: ")
    assert len(line) < 400
    return line


def test_resume_goes_on_where_another_process_has_stopped(
    train: Command, two_steps: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = pathlib.Path(shutil.copytree(two_steps, tmp_path / "run"))
    code, _, _ = train("--resume", run, "--steps", 3, "--threads", 1)
    assert code == 0
    losses = logged(run, "loss")
    assert sorted(losses) == [1, 2, 3]
    assert {step: losses[step] for step in (1, 2)} == logged(two_steps, "loss")
    assert checkpoint.saved_step(run / "training-state.safetensors") == 3
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["step-000002.png", "step-000003.png"]


def test_a_finished_run_tells_where_it_is_and_what_comes_next(
    train: Command, two_steps: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Each time: a run with no steps left does nothing else."""
    run = pathlib.Path(shutil.copytree(two_steps, tmp_path / "run"))
    for options, step in ((("--steps", 3), 3), ((), 3), (("--steps", 1), 3)):
        code, out, _ = train("--resume", run, *options)
        assert code == 0
        [line] = out.splitlines()
        assert line.startswith(f"{run} is finished at step {step}; ")
        assert f"mar export {run} --out ARTIFACT" in line
        assert f"mar train --resume {run} --steps N" in line


# Each changes one thing of a call that would work; None leaves the option away.
@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--preset", "mar_tiny", "pixel_small"),
        ("--preset", "mar_base", "mar_base"),
        ("--preset", None, "--preset"),
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
        ("--checkpoint-every", 0, "checkpoint_every"),
        ("--sample-every", 0, "sample_every"),
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
        ("--epochs", 3, "--epochs"),
    ],
)
def test_a_wrong_option_is_one_line_that_names_it_and_leaves_no_run(
    train: Command, data: pathlib.Path, tmp_path: pathlib.Path, option: str, value: object, told: str
) -> None:
    run = tmp_path / "run"
    options = {"--preset": "pixel_small", "--data": data, "--out": run, "--steps": 1, "--batch-size": 4}
    given = {**options, "--image-size": 8, option: value}
    code, out, err = train(*(part for pair in given.items() if pair[1] is not None for part in pair))
    assert code == 2
    assert out == ""
    assert told in _the_line(err)
    assert not run.exists()


def test_one_image_is_no_plural(train: Command, tmp_path: pathlib.Path) -> None:
    data = write_idx_dataset(tmp_path / "data", images=1, side=8, classes=1)
    options = ("--preset", "pixel_small", "--image-size", 8, "--data", data, "--out", tmp_path / "run", "--steps", 1)
    _, _, err = train(*options, "--batch-size", 2)
    assert _the_line(err) == "mar: a batch of 2 does not fit a dataset of 1 image"


@pytest.mark.parametrize("option", ["--preset", "--data", "--out", "--config"])
def test_resume_refuses_what_makes_a_new_run(train: Command, two_steps: pathlib.Path, option: str) -> None:
    code, _, err = train("--resume", two_steps, option, "pixel_small")
    assert code == 2
    assert "--resume" in _the_line(err)


@pytest.mark.parametrize(
    ("option", "value", "field", "meant"),
    [
        ("--learning-rate", "1e-05", "learning_rate", 1e-5),
        ("--batch-size", "5", "batch_size", 5),
        ("--precision", "fp32", "precision", "fp32"),
        ("--seed", "9", "seed", 9),
    ],
)
def test_a_setting_given_beside_resume_is_used_or_refused_but_not_ignored(
    train: Command, two_steps: pathlib.Path, tmp_path: pathlib.Path, option: str, value: str, field: str, meant: object
) -> None:
    run = pathlib.Path(shutil.copytree(two_steps, tmp_path / "run"))
    code, _, err = train("--resume", run, option, value)  # the run is finished, so nothing is trained
    if code == 2:
        assert option in _the_line(err)
    else:
        assert json.loads((run / "config.json").read_text())["training"][field] == meant


@pytest.mark.parametrize("steps", [0, -1])
def test_resume_refuses_impossible_steps(train: Command, two_steps: pathlib.Path, steps: int) -> None:
    before = (two_steps / "config.json").read_text()
    code, _, err = train("--resume", two_steps, "--steps", steps)
    assert code == 2
    assert "steps" in _the_line(err)
    assert (two_steps / "config.json").read_text() == before


def test_a_failure_that_is_no_mistake_of_use_has_exit_code_1(
    train: Command, two_steps: pathlib.Path, data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    new = ("--preset", "pixel_small", "--steps", 1, "--batch-size", 4, "--image-size", 8)
    file = tmp_path / "file"
    file.write_text("in the way")
    for arguments, told in [
        (("--resume", tmp_path / "nowhere"), "nowhere"),
        ((*new, "--data", tmp_path / "nowhere", "--out", tmp_path / "run"), "nowhere"),
        ((*new, "--data", data, "--out", two_steps), "already holds a run"),
        ((*new, "--data", data, "--out", file), str(file)),
    ]:
        code, _, err = train(*arguments)
        assert code == 1
        assert told in _the_line(err)
    assert not (tmp_path / "run").exists()


def test_help_tells_every_option_and_its_default(train: Command) -> None:
    code, out, err = train("--help")
    assert code == 0
    assert err == ""
    for option in (
        "--config",
        "--print-config",
        "--fsdp",
        "--preset",
        "--data",
        "--out",
        "--resume",
        "--steps",
        "--precision",
        "--ema-rate",
    ):
        assert option in out
    assert "0.9999" in out


# The config


def test_print_config_prints_toml_that_makes_the_same_run(
    train: Command, data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    options = ("--preset", "pixel_small", "--data", data, "--image-size", 8, "--steps", 1, "--batch-size", 4)
    code, printed, err = train(*options, "--no-flip", "--learning-rate", 3e-7, "--print-config")
    assert (code, err) == (0, "")
    told = tomllib.loads(printed)
    assert told["data"] == str(data)
    assert (told["model"]["img_size"], told["model"]["diffloss_w"]) == (8, 224)
    assert (told["training"]["flip"], told["training"]["learning_rate"]) == (False, 3e-7)
    (tmp_path / "run.toml").write_text(printed)
    assert train("--config", tmp_path / "run.toml", "--print-config") == (0, printed, "")
    assert list(tmp_path.iterdir()) == [tmp_path / "run.toml"]


@pytest.mark.parametrize(("command", "preset"), [("train", "pixel_small"), ("train-tokenizer", "kl4_small")])
def test_print_config_needs_neither_data_nor_steps(mar: Mar, tmp_path: pathlib.Path, command: str, preset: str) -> None:
    """Which have no defaults; what is printed is a config file beside which they come as flags."""
    file = tmp_path / "run.toml"
    code, printed, err = mar(command, "--preset", preset, "--seed", 5, "--print-config")
    assert (code, err) == (0, "")
    told = tomllib.loads(printed)
    assert told.keys() == {"model", "training"}
    assert (told["training"]["seed"], told["training"]["flip"], "steps" in told["training"]) == (5, True, False)
    file.write_text(printed)
    code, printed, _ = mar(command, "--config", file, "--data", "photos", "--steps", 7, "--print-config")
    assert code == 0
    assert tomllib.loads(printed) == {**told, "data": "photos", "training": {**told["training"], "steps": 7}}
    file.write_text("training = 3")
    code, _, err = mar(command, "--config", file, "--preset", preset, "--print-config")
    assert code == 2
    assert "training must be a table, found 3" in _the_line(err)


def test_flags_come_before_the_file(train: Command, data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        'data = "elsewhere"\n[model]\nname = "mar_base"\n'
        "diffloss_w = 32\nimg_size = 16\n[training]\nsteps = 9\nseed = 4\nflip = false\n"
    )
    flags = ("--preset", "pixel_small", "--data", data, "--image-size", 8, "--steps", 2)
    code, printed, _ = train("--config", file, *flags, "--flip", "--print-config")
    told = tomllib.loads(printed)
    assert code == 0
    assert (told["data"], told["model"]["img_size"], told["model"]["diffloss_w"]) == (str(data), 8, 32)
    assert told["model"]["patch_size"] == 4  # the preset's
    assert (told["training"]["steps"], told["training"]["seed"], told["training"]["flip"]) == (2, 4, True)


def test_print_config_shows_that_of_a_run_as_it_would_go_on(train: Command, two_steps: pathlib.Path) -> None:
    before = (two_steps / "config.json").read_text()
    code, printed, _ = train("--resume", two_steps, "--steps", 5, "--print-config")
    kept = json.loads(before)
    assert code == 0
    assert tomllib.loads(printed) == {
        "data": kept["data"],
        "model": kept["model"],
        "training": {**kept["training"], "steps": 5},
    }
    assert (two_steps / "config.json").read_text() == before


def test_the_config_of_a_file_trains_and_is_kept(train: Command, data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    file, run = tmp_path / "run.toml", tmp_path / "run"
    file.write_text(
        f'data = "{data}"\n[model]\nname = "pixel_small"\nimg_size = 8\ndiffloss_d = 1\n'
        "[training]\nsteps = 1\nbatch_size = 2\n"
    )
    code, _, _ = train("--config", file, "--out", run)
    kept = json.loads((run / "config.json").read_text())
    assert code == 0
    assert (kept["model"]["diffloss_d"], kept["training"]["batch_size"]) == (1, 2)
    assert sorted(logged(run, "loss")) == [1]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("steps = 3", "unknown keys steps"),
        ("[training]\nsteps = 3\nstep_size = 1", "unknown keys step_size"),
        ("[model]\ndepth = 3", "unknown model config keys depth"),
        ("[model]\nimg_size = 30", "img_size"),
        ('[training]\nsteps = "many"', "steps must be a whole number of at least 1"),
        ("[training]\nsteps = 3.0", "steps must be a whole number"),
        ("[training]\nsteps = true", "steps must be a whole number"),
        ("[training]\nflip = 1", "flip must be true or false"),
        ('[training]\nprecision = "fp16"', "precision must be bf16 or fp32"),
        ("[training]\nlearning_rate = inf", "learning_rate must be a finite number above 0"),
        ("[training]\nema_rate = 1", "ema_rate must be a finite number of at least 0 and below 1"),
        ("training = 3", "training must be a table"),
        ("model = []", "model must be a table"),
        ("data = 3", "data must be the path"),
        ('model = "mar_tiny"', "model must be one of"),
        ('preset = "mar_base"', "the key preset is now model"),
        ('[training]\nattention = "bf16"', "the key attention is now attention_precision"),
        ('[model]\nhead = "codes"', 'head = "codes" is now head = "vq"'),
        ("[model]\ncodes = 512", "the key codes is now codebook_size"),
        ("data = ", "not TOML"),
        ("data = 1\ndata = 2", "not TOML"),
    ],
)
def test_a_wrong_config_is_one_line_that_names_file_and_key(
    train: Command,
    data: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    file = pathlib.Path("run.toml")
    file.write_text(text)
    flags = [] if "data" in text else ["--data", data]
    flags += [] if "model =" in text else ["--preset", "pixel_small"]
    flags += [] if "steps =" in text or "training =" in text else ["--steps", 1]
    code, out, err = train("--config", file, *flags, "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert told in _the_line(err)
    assert "mar: run.toml" in err
    assert not (tmp_path / "run").exists()


def test_profile_shows_where_a_step_goes_and_writes_nothing(
    train: Command,
    data: pathlib.Path,
    two_steps: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in two_steps.rglob("*") if path.is_file()}
    new = ("--preset", "pixel_small", "--data", data, "--image-size", 8, "--steps", 1, "--batch-size", 4)
    for options in (("--resume", two_steps), (*new, "--accumulate", 2)):
        code, out, _ = train(*options, "--profile")
        assert code == 0
        assert "8 steps of 4 images" in out
        lines = [line.split() for line in out.splitlines() if line]
        spent = {" ".join(words[:-2]): float(words[-2]) for words in lines[2:] if words[-1].endswith("%")}
        assert all(value >= 0 for value in spent.values())
        phases = ("read", "forward", "backward", "clip", "optimizer", "average", "the rest")
        assert all(spent[phase] > 0 for phase in phases[:-1])
        assert {"backbone", "head"} < spent.keys()
        assert any(operator.startswith("aten::") for operator in out.split())
    assert list(tmp_path.iterdir()) == []
    assert {path: path.read_bytes() for path in two_steps.rglob("*") if path.is_file()} == before
