"""Published training checkpoints: averaged weights, refusal of code, and the config beside the file."""

from __future__ import annotations

import argparse
import json
import pathlib
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from runtime.errors import CheckpointError, ConfigError
from runtime.model.config import ModelConfig
from tests.helpers.golden_cases import GOLDEN
from tests.helpers.published_models import write_tiny_run
from tests.helpers.tiny_runs import TINY, one_sentence, randomized
from training.checkpoints import checkpoint
from training.checkpoints.checkpoint import load_checkpoint
from training.checkpoints.tensor_files import read_safetensors
from training.models.mar import MAR

_SMALL = GOLDEN / "small"


def _published_content() -> dict[str, Any]:
    """All that the published code saved, read without the code under test."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        content: dict[str, Any] = torch.load(_SMALL / "checkpoint-last.pth", weights_only=True)
    return content


def _write_config(folder: pathlib.Path, value: object) -> pathlib.Path:
    file = folder / "shape.json"
    file.write_text(json.dumps(value))
    return file


def _write_published(folder: pathlib.Path, weights: object, **others: object) -> pathlib.Path:
    """A checkpoint as the published code saves it."""
    file = folder / "checkpoint-last.pth"
    torch.save({"model": {}, "model_ema": weights, "args": argparse.Namespace(model="mar_custom"), **others}, file)
    return file


@pytest.mark.parametrize("name", ["small", "patch2"])
def test_the_averaged_weights_are_loaded_and_not_the_others(name: str) -> None:
    file = GOLDEN / name / "checkpoint-last.pth"
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(file, weights_only=True)
    loaded = load_checkpoint(file, GOLDEN / name / "meta.json")
    weights = loaded.model.state_dict()
    assert weights.keys() == content["model_ema"].keys()
    assert all(torch.equal(weights[key], content["model_ema"][key]) for key in weights)
    assert not any(torch.equal(weights[key], content["model"][key]) for key in weights)


def test_a_published_checkpoint_is_in_evaluation_mode_with_source_and_hash() -> None:
    loaded = load_checkpoint(_SMALL / "checkpoint-last.pth", _SMALL / "meta.json")
    assert loaded.model.config == ModelConfig(**json.loads((_SMALL / "meta.json").read_text())["config"])
    assert not loaded.model.training
    assert (loaded.tokenizer, loaded.class_names, loaded.source) == ("none", (), "checkpoint-last.pth")
    assert {parameter.device.type for parameter in loaded.model.parameters()} == {"cpu"}
    assert all(buffer.isfinite().all() and not buffer.is_meta for buffer in loaded.model.buffers())


def test_the_hash_of_a_checkpoint_is_that_of_its_file(tmp_path: pathlib.Path) -> None:
    run = write_tiny_run(tmp_path / "run")
    one = load_checkpoint(run).sha256
    assert len(one) == 64
    assert load_checkpoint(run).sha256 == one
    checkpoint.save_weights(run / "model.safetensors", randomized(MAR(**TINY.to_dict()), seed=1).state_dict())
    assert load_checkpoint(run).sha256 != one


def test_constructor_arguments_may_be_the_json_object_or_its_value_config(tmp_path: pathlib.Path) -> None:
    model = randomized(MAR(**TINY.to_dict()))
    file = _write_published(tmp_path, model.state_dict())
    for shape in (TINY.to_dict(), {"config": TINY.to_dict(), "cases": []}):
        loaded = load_checkpoint(file, _write_config(tmp_path, shape)).model
        assert loaded.config == TINY
        assert torch.equal(loaded.z_proj.weight, model.z_proj.weight)


class _CreatesAFile:
    """What an attacker puts into a checkpoint: unpickling it opens a file for writing."""

    def __init__(self, file: pathlib.Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.file), "w")


def _evil_weights(folder: pathlib.Path, evil: _CreatesAFile) -> pathlib.Path:
    return _write_published(folder, {"z_proj.weight": evil})


def _evil_arguments(folder: pathlib.Path, evil: _CreatesAFile) -> pathlib.Path:
    return _write_published(folder, _published_content()["model_ema"], args=argparse.Namespace(callback=evil))


def _evil_state_of_the_optimizer(folder: pathlib.Path, evil: _CreatesAFile) -> pathlib.Path:
    return _write_published(folder, _published_content()["model_ema"], optimizer=[evil])


def _evil_bare_pickle(folder: pathlib.Path, evil: _CreatesAFile) -> pathlib.Path:
    file = folder / "checkpoint-last.pth"
    file.write_bytes(pickle.dumps({"model_ema": evil}))
    return file


_EVIL = [_evil_weights, _evil_arguments, _evil_state_of_the_optimizer, _evil_bare_pickle]


@pytest.mark.parametrize("write", _EVIL)
def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(tmp_path: pathlib.Path, write: Any) -> None:
    trace = tmp_path / "was-run"
    file = write(tmp_path, _CreatesAFile(trace))
    with pytest.raises(CheckpointError):
        load_checkpoint(file, _SMALL / "meta.json")
    assert not trace.exists()
    # Without protection, reading the file runs the code.
    if write is _evil_bare_pickle:
        pickle.loads(file.read_bytes())
    else:
        torch.load(file, weights_only=False)
    assert trace.exists()


@pytest.mark.parametrize("write", _EVIL)
def test_the_refusal_of_a_checkpoint_that_would_run_code_does_not_tell_how_to_run_it(
    tmp_path: pathlib.Path, write: Any
) -> None:
    file = write(tmp_path, _CreatesAFile(tmp_path / "was-run"))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(file, _SMALL / "meta.json")
    message = one_sentence(caught)
    assert str(file) in message
    assert "can still be loaded" not in message


@pytest.mark.parametrize("percent", [0, 1, 10, 50, 99])
def test_a_truncated_published_checkpoint_is_refused(tmp_path: pathlib.Path, percent: int) -> None:
    content = (_SMALL / "checkpoint-last.pth").read_bytes()
    file = tmp_path / "cut.pth"
    file.write_bytes(content[: len(content) * percent // 100])
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(file, _SMALL / "meta.json")
    assert str(file) in one_sentence(caught)


@pytest.mark.parametrize("content", [b"hello, world\n" * 100, b"PK\x03\x04" + bytes(1000), b"\x80\x02}q\x00."])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: pathlib.Path, content: bytes) -> None:
    file = tmp_path / "other.pth"
    file.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(file, _SMALL / "meta.json")
    assert str(file) in one_sentence(caught)


def test_a_missing_published_checkpoint_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "nothing.pth", _SMALL / "meta.json")
    assert str(tmp_path / "nothing.pth") in one_sentence(caught)


@pytest.mark.parametrize(
    "content",
    [
        {"model": {"w": torch.zeros(1)}},
        {"model_ema": None},
        {"model_ema": [torch.zeros(1)]},
        {"model_ema": {"w": 1.0}},
        [torch.zeros(1)],
        torch.zeros(1),
    ],
    ids=["none", "null", "list", "numbers", "content-list", "content-tensor"],
)
def test_a_checkpoint_without_averaged_weights_is_refused(tmp_path: pathlib.Path, content: object) -> None:
    file = tmp_path / "odd.pth"
    torch.save(content, file)
    with pytest.raises(CheckpointError, match="model_ema") as caught:
        load_checkpoint(file, _SMALL / "meta.json")
    assert str(file) in one_sentence(caught)


_SPOILED = "encoder_blocks.0.attn.qkv.weight"


def _reshaped(weights: dict[str, Tensor]) -> None:
    weights[_SPOILED] = weights[_SPOILED].T.contiguous()


def _without(weights: dict[str, Tensor]) -> None:
    del weights[_SPOILED]


def _renamed(weights: dict[str, Tensor]) -> None:
    weights["module." + _SPOILED] = weights.pop(_SPOILED)


def _with_more(weights: dict[str, Tensor]) -> None:
    weights[f"{_SPOILED}.more"] = torch.zeros(3)


def _with_nan(weights: dict[str, Tensor]) -> None:
    weights[_SPOILED][3, 5] = float("nan")


def _with_infinity(weights: dict[str, Tensor]) -> None:
    weights[_SPOILED][3, 5] = float("-inf")


_DEFECTS = [_reshaped, _without, _renamed, _with_more, _with_nan, _with_infinity]


@pytest.mark.parametrize("spoil", _DEFECTS)
def test_the_error_about_published_weights_of_another_model_names_the_tensor(
    tmp_path: pathlib.Path, spoil: Any
) -> None:
    weights = _published_content()["model_ema"]
    spoil(weights)
    file = _write_published(tmp_path, weights)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(file, _SMALL / "meta.json")
    message = one_sentence(caught)
    assert _SPOILED in message
    assert str(file) in message


@pytest.mark.parametrize("spoil", _DEFECTS)
def test_the_error_about_a_run_with_weights_of_another_model_names_the_tensor(
    tmp_path: pathlib.Path, spoil: Any
) -> None:
    run = write_tiny_run(tmp_path / "run")
    weights = read_safetensors(run / "model.safetensors")
    spoil(weights)
    checkpoint.save_weights(run / "model.safetensors", weights)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(run)
    message = one_sentence(caught)
    assert _SPOILED in message
    assert str(run / "model.safetensors") in message


def test_the_error_about_a_wrong_shape_names_both_shapes(tmp_path: pathlib.Path) -> None:
    weights = _published_content()["model_ema"]
    _reshaped(weights)
    with pytest.raises(CheckpointError, match=r"\(48, 144\).*\(144, 48\)"):
        load_checkpoint(_write_published(tmp_path, weights), _SMALL / "meta.json")


def test_a_published_checkpoint_without_known_heads_requests_them() -> None:
    with pytest.raises(ConfigError, match=r"heads.*--model-config") as caught:
        load_checkpoint(_SMALL / "checkpoint-last.pth")
    assert "checkpoint-last.pth" in one_sentence(caught)


@pytest.mark.parametrize("name", ["small", "patch2"])
def test_a_published_checkpoint_needs_only_its_heads(tmp_path: pathlib.Path, name: str) -> None:
    heads = _write_config(tmp_path, {"encoder_num_heads": 4, "decoder_num_heads": 4})
    loaded = load_checkpoint(GOLDEN / name / "checkpoint-last.pth", heads)
    assert loaded.model.config == ModelConfig(**json.loads((GOLDEN / name / "meta.json").read_text())["config"])


def test_the_name_a_checkpoint_was_trained_under_must_fit_its_tensors(tmp_path: pathlib.Path) -> None:
    weights, arguments = _published_content()["model_ema"], argparse.Namespace(model="mar_base")
    file = _write_published(tmp_path, weights, args=arguments)
    with pytest.raises(ConfigError, match=r"48 by its tensors, but 768 by the name mar_base it was") as caught:
        load_checkpoint(file, _SMALL / "meta.json")
    assert str(file) in one_sentence(caught)


def test_the_given_size_name_must_fit_the_tensors() -> None:
    file = _SMALL / "checkpoint-last.pth"
    with pytest.raises(ConfigError, match=r"48 by its tensors, but 1024 by --model mar_large") as caught:
        load_checkpoint(file, name="mar_large")
    assert str(file) in one_sentence(caught)


def test_an_unknown_size_name_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'mar_tiny'.*mar_base") as caught:
        load_checkpoint(_SMALL / "checkpoint-last.pth", name="mar_tiny")
    one_sentence(caught)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('{"img_size": 64, "vae_strid": 16}', ConfigError),
        ('{"config": {"img_size": 64, "depth": 2}}', ConfigError),
        ('{"img_size": "64"}', ConfigError),
        ('{"img_size": NaN}', CheckpointError),
        ('{"encoder_num_heads": 4, "decoder_num_heads": 4, "mask_ratio_min": "much"}', ConfigError),
        ('{"encoder_num_heads": "4", "decoder_num_heads": 4}', ConfigError),
        ('{"encoder_num_heads": 5, "decoder_num_heads": 4}', ConfigError),
        ('{"vae_embed_dim": [8]}', ConfigError),
        ('{"config": []}', (ConfigError, CheckpointError)),
        ('{"config": [["img_size", 64]]}', (ConfigError, CheckpointError)),
        ('{"config": 64}', (ConfigError, CheckpointError)),
        ('{"config": null}', (ConfigError, CheckpointError)),
        ('{"config": "mar_base"}', (ConfigError, CheckpointError)),
        ("[]", CheckpointError),
        ("64", CheckpointError),
        ("null", CheckpointError),
        ('{"img_size": 64', CheckpointError),
        ("", CheckpointError),
        ("[" * 100_000, CheckpointError),
        ("\xff\xfe", CheckpointError),
    ],
)
def test_the_error_about_a_bad_config_file_names_it(
    tmp_path: pathlib.Path, text: str, error: type[Exception] | tuple[type[Exception], ...]
) -> None:
    file = tmp_path / "shape.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(error) as caught:
        load_checkpoint(_SMALL / "checkpoint-last.pth", file)
    assert str(file) in one_sentence(caught)


def test_an_unknown_key_of_a_config_file_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match=r"keys vae_strid;"):
        load_checkpoint(_SMALL / "checkpoint-last.pth", _write_config(tmp_path, {"vae_strid": 16}))


def test_a_missing_config_file_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(_SMALL / "checkpoint-last.pth", tmp_path / "shape.json")
    assert str(tmp_path / "shape.json") in one_sentence(caught)


def test_the_error_about_the_config_of_another_model_names_both_values() -> None:
    other = GOLDEN / "patch2" / "meta.json"
    with pytest.raises(ConfigError, match="vae_stride is 16 by the arguments it was trained with, but 8 by") as caught:
        load_checkpoint(_SMALL / "checkpoint-last.pth", other)
    message = one_sentence(caught)
    assert str(_SMALL / "checkpoint-last.pth") in message
    assert f"--model-config {other}" in message
