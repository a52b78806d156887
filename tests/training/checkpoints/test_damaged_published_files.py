"""Published files that are damaged, or that would run code when read, are refused."""

from __future__ import annotations

import argparse
import pathlib
import pickle
import zipfile
from typing import Any

import pytest
import torch

from runtime.errors import CheckpointError, ConfigError, MarError
from tests.helpers.published_forms import (
    CONFIG,
    LAYOUT,
    mar_weights,
    vae_weights,
    write_component,
    write_json,
    write_pipeline,
    write_pth,
    write_safetensors,
)
from tests.helpers.published_models import WEIGHTS_FILE, refusal, write_vae_checkpoint
from tests.helpers.tiny_runs import one_sentence
from training.checkpoints.checkpoint import load_checkpoint
from training.checkpoints.published_files import load_vae


@pytest.mark.parametrize("percent", [0, 1, 10, 50, 99])
@pytest.mark.parametrize("form", ["pth", "safetensors", "component", "shard", "ckpt", "vae"])
def test_the_error_about_a_truncated_file_names_it(
    tmp_path: pathlib.Path, arguments_file: pathlib.Path, form: str, percent: int
) -> None:
    options: dict[str, Any] = {"config_file": arguments_file}
    if form in ("pth", "ckpt"):
        path = file = write_pth(tmp_path / "x.pth", mar_weights())
    elif form == "safetensors":
        path = file = write_safetensors(tmp_path / "x.safetensors", mar_weights())
    elif form == "component":
        path, options = write_component(tmp_path / "mar", mar_weights(), CONFIG.to_dict()), {}
        file = path / WEIGHTS_FILE
    elif form == "shard":
        path, options = write_component(tmp_path / "mar", mar_weights(), CONFIG.to_dict(), 2), {}
        file = sorted(path.glob("*.safetensors"))[1]
    else:
        path, options = write_pipeline(tmp_path / "pipeline"), {}
        file = path / "vae" / WEIGHTS_FILE
    if form == "ckpt":
        file = options["tokenizer"] = write_vae_checkpoint(tmp_path, vae_weights())
    load_checkpoint(path, **options)  # whole, it is one that loads
    content = file.read_bytes()
    file.unlink()  # what is loaded is mapped from it
    file.write_bytes(content[: len(content) * percent // 100])
    assert str(file) in refusal(path, **options)


@pytest.mark.parametrize(
    "damaged", [b"", b".", b"h\x05.", b")R.", b"}}}s.", b"u.", b"}(]K\x01u.", b"X\xff\xff\xff\x7fab.", b"]0."], ids=repr
)
def test_a_damaged_pickle_in_an_intact_archive_is_refused(
    tmp_path: pathlib.Path, heads_file: pathlib.Path, damaged: bytes
) -> None:
    """Reading these ends in errors of five kinds."""
    whole = write_pth(tmp_path / "whole.pth", mar_weights())
    file = tmp_path / "x.pth"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(file, "w") as target:
        for name in source.namelist():
            target.writestr(name, b"\x80\x02" + damaged if name.endswith("data.pkl") else source.read(name))
    assert str(file) in refusal(file, config_file=heads_file)


@pytest.mark.parametrize("seed", range(10))
def test_altered_bytes_in_a_pickle_are_refused_in_one_line_or_read_as_a_model(
    tmp_path: pathlib.Path, heads_file: pathlib.Path, seed: int
) -> None:
    """Any bytes whatever: nothing but an error of ours may come out."""
    file = write_pth(tmp_path / "x.pth", mar_weights())
    content = bytearray(file.read_bytes())
    random = torch.Generator().manual_seed(seed)
    start = content.index(b"data.pkl") + len("data.pkl")
    for _ in range(1 + seed % 4):
        place = start + int(torch.randint(0, 4000, (), generator=random))
        content[place] = int(torch.randint(0, 256, (), generator=random))
    file.write_bytes(bytes(content))
    try:
        load_checkpoint(file, heads_file)
    except MarError as error:
        assert str(file) in str(error)


@pytest.mark.parametrize("arguments", [5, "mar_base", ["mar_base"], torch.zeros(2)], ids=type)
def test_arguments_of_a_wrong_type_are_refused(
    tmp_path: pathlib.Path, heads_file: pathlib.Path, arguments: object
) -> None:
    file = tmp_path / "x.pth"
    torch.save({"model_ema": mar_weights(), "args": arguments}, file)
    message = refusal(file, config_file=heads_file)
    assert f"{file}: expected the arguments of its training under 'args'" in message
    assert type(arguments).__name__ in message


@pytest.mark.parametrize(
    "wrong",
    [{"vae_stride": "4"}, {"patch_size": 2.5}, {"img_size": None}, {"class_num": "5"}, {"buffer_size": [3]}],
    ids=str,
)
def test_the_error_about_an_argument_of_a_wrong_type_names_it(
    tmp_path: pathlib.Path, heads_file: pathlib.Path, wrong: dict[str, object]
) -> None:
    file = write_pth(tmp_path / "x.pth", mar_weights(), argparse.Namespace(**{**LAYOUT, **wrong}))
    message = refusal(file, ConfigError, config_file=heads_file)
    for part in (str(file), *wrong, "the arguments it was trained with"):
        assert part in message


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e300])
def test_weights_that_are_not_finite_in_single_precision_are_refused(
    tmp_path: pathlib.Path, arguments_file: pathlib.Path, value: float
) -> None:
    weights = {**mar_weights(), "decoder_norm.bias": mar_weights()["decoder_norm.bias"].double()}
    weights["decoder_norm.bias"][3] = value
    file = write_safetensors(tmp_path / "mar.safetensors", weights)
    message = refusal(file, config_file=arguments_file)
    assert f"{file}: decoder_norm.bias holds values that are not finite" in message


def test_weights_without_names_are_refused(tmp_path: pathlib.Path, heads_file: pathlib.Path) -> None:
    weights: dict[Any, torch.Tensor] = {**mar_weights(), 3: torch.zeros(1)}
    file = write_pth(tmp_path / "x.pth", weights)
    assert f"{file}: expected the averaged weights under 'model_ema'" in refusal(file, config_file=heads_file)


class _CreatesAFile:
    """What an attacker puts into a checkpoint: unpickling it opens a file for writing."""

    def __init__(self, file: pathlib.Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.file), "w")


def test_an_autoencoder_that_would_run_code_is_refused_and_runs_none(tmp_path: pathlib.Path) -> None:
    trace = tmp_path / "was-run"
    file = write_vae_checkpoint(tmp_path, vae_weights(), callback=_CreatesAFile(trace))
    with pytest.raises(CheckpointError, match="could run code") as caught:
        load_vae(file)
    assert str(file) in one_sentence(caught)
    assert not trace.exists()
    torch.load(file, weights_only=False)  # without protection, reading runs the code
    assert trace.exists()


@pytest.mark.parametrize(
    "content", [b"# A text", b"\x93" * 100, pickle.dumps({"a": _CreatesAFile(pathlib.Path("x"))}, 4)]
)
def test_a_file_that_is_no_checkpoint_is_not_called_dangerous(
    tmp_path: pathlib.Path, recwarn: pytest.WarningsRecorder, content: bytes
) -> None:
    """No other warning appears: PyTorch warns about unknown formats."""
    file = tmp_path / "x.pth"
    file.write_bytes(content)
    assert refusal(file) == f"{file}: not a PyTorch checkpoint, or not one of tensors alone"
    assert not recwarn.list


def test_an_artifact_is_recognized_as_no_run(tmp_path: pathlib.Path) -> None:
    write_json(tmp_path / "manifest.json", {"format_version": 8, "files": {}, "engines": {}})
    assert refusal(tmp_path) == f"{tmp_path}: an artifact, not a run of mar train: it has no config.json"
