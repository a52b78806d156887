"""The config of `mar train` and `mar train-tokenizer`: TOML files, options over them, and `--print-config`."""

from __future__ import annotations

import json
import pathlib

import pytest

from runtime.model.families import DEFAULT, FAMILIES
from runtime.storage.structured_files import parse_toml
from tests.helpers.command_line import Command, Mar
from tests.helpers.tiny_runs import logged
from tests.helpers.train_command import error_line


def test_print_config_prints_toml_that_makes_the_same_run(
    train: Command, two_class_data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    options = ("--model", "pixel_small", "--data", two_class_data, "--image-size", 8, "--steps", 1, "--batch-size", 4)
    code, printed, err = train(*options, "--no-flip", "--learning-rate", 3e-7, "--print-config")
    assert (code, err) == (0, "")
    settings = parse_toml(printed)
    assert settings["data"] == str(two_class_data)
    assert (settings["model"]["img_size"], settings["model"]["diffloss_w"]) == (8, 224)
    assert (settings["training"]["flip"], settings["training"]["learning_rate"]) == (False, 3e-7)
    (tmp_path / "run.toml").write_text(printed)
    assert train("--config", tmp_path / "run.toml", "--print-config") == (0, printed, "")
    assert not settings["model"].keys() & FAMILIES[DEFAULT].from_data.keys()  # the run takes them from its data
    assert list(tmp_path.iterdir()) == [tmp_path / "run.toml"]


@pytest.mark.parametrize(
    ("command", "size", "flip"),
    [
        ("train", "pixel_small", True),
        ("train", "nova_small", False),
        ("train", "uva_small", False),
        ("train-tokenizer", "kl4_small", True),
    ],
)
def test_print_config_needs_neither_data_nor_steps(
    mar: Mar, tmp_path: pathlib.Path, command: str, size: str, flip: bool
) -> None:
    """They have no defaults; the printed config is complete with them on the command line."""
    file = tmp_path / "run.toml"
    code, printed, err = mar(command, "--model", size, "--seed", 5, "--print-config")
    assert (code, err) == (0, "")
    settings = parse_toml(printed)
    assert settings.keys() == {"model", "training"}
    assert (settings["training"]["seed"], settings["training"]["flip"], "steps" in settings["training"]) == (
        5,
        flip,
        False,
    )
    file.write_text(printed)
    code, printed, _ = mar(command, "--config", file, "--data", "photos", "--steps", 7, "--print-config")
    assert code == 0
    assert parse_toml(printed) == {**settings, "data": "photos", "training": {**settings["training"], "steps": 7}}
    file.write_text("training = 3")
    code, _, err = mar(command, "--config", file, "--model", size, "--print-config")
    assert code == 2
    assert "training must be a table, found 3" in error_line(err)


def test_the_command_line_takes_precedence_over_the_file(
    train: Command, two_class_data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        'data = "elsewhere"\n[model]\nname = "mar_base"\n'
        "diffloss_w = 32\nimg_size = 16\n[training]\nsteps = 9\nseed = 4\nflip = false\n"
    )
    flags = ("--model", "pixel_small", "--data", two_class_data, "--image-size", 8, "--steps", 2)
    code, printed, _ = train("--config", file, *flags, "--flip", "--print-config")
    settings = parse_toml(printed)
    assert code == 0
    assert (settings["data"], settings["model"]["img_size"], settings["model"]["diffloss_w"]) == (
        str(two_class_data),
        8,
        32,
    )
    assert settings["model"]["patch_size"] == 4  # of the size
    assert (settings["training"]["steps"], settings["training"]["seed"], settings["training"]["flip"]) == (2, 4, True)


def test_print_config_of_a_resumed_run_shows_its_new_settings(train: Command, two_step_run: pathlib.Path) -> None:
    before = (two_step_run / "config.json").read_text()
    code, printed, _ = train("--resume", two_step_run, "--steps", 5, "--print-config")
    saved = json.loads(before)
    assert code == 0
    assert parse_toml(printed) == {
        "data": saved["data"],
        "model": {name: value for name, value in saved["model"].items() if name not in FAMILIES[DEFAULT].from_data},
        "training": {**saved["training"], "steps": 5},
    }
    assert (two_step_run / "config.json").read_text() == before


def test_a_run_keeps_the_config_of_its_file(
    train: Command, two_class_data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    file, run = tmp_path / "run.toml", tmp_path / "run"
    file.write_text(
        f'data = "{two_class_data}"\n[model]\nname = "pixel_small"\nimg_size = 8\ndiffloss_d = 1\n'
        "[training]\nsteps = 1\nbatch_size = 2\n"
    )
    code, _, _ = train("--config", file, "--out", run)
    saved = json.loads((run / "config.json").read_text())
    assert code == 0
    assert (saved["model"]["diffloss_d"], saved["training"]["batch_size"]) == (1, 2)
    assert sorted(logged(run, "loss")) == [1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps = 3", "unknown keys steps"),
        ("[training]\nsteps = 3\nstep_size = 1", "unknown keys step_size"),
        ("[model]\ndepth = 3", "unknown model config keys depth"),
        ("[model]\nimg_size = 30", "img_size"),
        ("[model]\nclass_num = 3", "class_num of a new run comes from its data; remove it"),
        (
            "[model]\nclass_num = 3\nvae_embed_dim = 3",
            "class_num and vae_embed_dim of a new run come from its data; remove them",
        ),
        ('[training]\nsteps = "many"', "steps must be a whole number of at least 1"),
        ("[training]\nsteps = 3.0", "steps must be a whole number"),
        ("[training]\nsteps = true", "steps must be a whole number"),
        ("[training]\nflip = 1", "flip must be true or false"),
        ('[training]\nprecision = "fp16"', "precision must be bf16 or fp32"),
        ("[training]\nlearning_rate = inf", "learning_rate must be a finite number above 0"),
        ("[training]\nema_rate = 1", "ema_rate must be a finite number of at least 0 and below 1"),
        ("training = 3", "training must be a table"),
        ("model = []", "model must be a table or the name of a size"),
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
    two_class_data: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    file = pathlib.Path("run.toml")
    file.write_text(text)
    flags = [] if "data" in text else ["--data", two_class_data]
    flags += [] if "model =" in text else ["--model", "pixel_small"]
    flags += [] if "steps =" in text or "training =" in text else ["--steps", 1]
    code, out, err = train("--config", file, *flags, "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert message in error_line(err)
    assert "mar: run.toml" in err
    assert not (tmp_path / "run").exists()
