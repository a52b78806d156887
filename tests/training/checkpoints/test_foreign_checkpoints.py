"""Checkpoints as other training codes save them: their weights are found, or one line says what they are."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import pathlib
import types
import uuid
from typing import Any

import numpy as np
import pytest
import torch

from runtime.errors import ConfigError
from tests.helpers.published_forms import (
    CONFIG,
    LAYOUT,
    Weights,
    mar_weights,
    same_weights,
    write_json,
    write_pth,
    write_safetensors,
)
from tests.helpers.published_models import refusal
from training.checkpoints.checkpoint import load_checkpoint

_ARGUMENTS = argparse.Namespace(model="mar_custom", **LAYOUT)


def _other() -> Weights:
    """Weights that must not be taken."""
    return {name: tensor + 1 for name, tensor in mar_weights().items()}


def _prefixed(prefix: str, weights: Weights) -> Weights:
    return {prefix + name: tensor for name, tensor in weights.items()}


def _save(folder: pathlib.Path, content: object) -> pathlib.Path:
    torch.save(content, folder / "x.pth")
    return folder / "x.pth"


# Where weights are.


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "model.module.", "net.mar.", "_forward_module."]
)
@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_a_prefix_before_every_name_is_left_out(
    tmp_path: pathlib.Path, arguments_file: pathlib.Path, prefix: str, form: str
) -> None:
    weights = _prefixed(prefix, mar_weights())
    pth = form == "pth"
    file = write_pth(tmp_path / "x.pth", weights) if pth else write_safetensors(tmp_path / "x.safetensors", weights)
    loaded = load_checkpoint(file, arguments_file)
    assert loaded.model.config == CONFIG
    assert same_weights(loaded.model, mar_weights())
    assert loaded.warnings == ()


def test_wrappers_of_single_blocks_are_left_out(tmp_path: pathlib.Path, arguments_file: pathlib.Path) -> None:
    weights = {
        name.replace("encoder_blocks.0.", "encoder_blocks.0._orig_mod.").replace(
            "decoder_blocks.0.", "decoder_blocks.0._checkpoint_wrapped_module."
        ): tensor
        for name, tensor in mar_weights().items()
    }
    assert same_weights(load_checkpoint(_save(tmp_path, weights), arguments_file).model, mar_weights())


def _nameless(weights: Weights) -> list[torch.Tensor]:
    return [*weights.values()]


def _without_dots(weights: Weights) -> Weights:
    return {"model_ema." + name.replace(".", ""): tensor for name, tensor in weights.items()}


_AVERAGED: dict[str, Any] = {
    "ema": {"ema": mar_weights(), "model": _other()},
    "ema_state_dict": {"model": _other(), "ema_state_dict": mar_weights()},
    "state_dict_ema": {"state_dict": _other(), "state_dict_ema": mar_weights()},
    "nested": {"state": {"model": _other(), "model_ema": {"module": _prefixed("module.", mar_weights())}}},
    "list": {"model": _other(), "model_ema": _nameless(mar_weights())},
    "shadow": {"model": _other(), "ema": {"decay": 0.9, "shadow_params": _nameless(mar_weights()), "collected": None}},
    "ema-model": {"model": {**_prefixed("online_model.", _other()), **_prefixed("ema_model.", mar_weights())}},
    "lightning": {"state_dict": {**_prefixed("model.", _other()), **_without_dots(mar_weights())}},
}


@pytest.mark.parametrize("content", _AVERAGED.values(), ids=_AVERAGED)
def test_averaged_weights_are_taken_wherever_they_are(
    tmp_path: pathlib.Path, arguments_file: pathlib.Path, content: Any
) -> None:
    loaded = load_checkpoint(_save(tmp_path, content), arguments_file)
    assert same_weights(loaded.model, mar_weights())
    assert loaded.warnings == ()


@pytest.mark.parametrize("averaged", [{}, {"model_ema": None}, {"ema": {}}, {"ema": None}, {"model_ema": []}], ids=str)
@pytest.mark.parametrize("key", ["model", "state_dict", "module"])
def test_without_averaged_weights_the_others_are_taken_with_a_warning(
    tmp_path: pathlib.Path, arguments_file: pathlib.Path, averaged: Any, key: str
) -> None:
    file = _save(tmp_path, {key: mar_weights(), "args": _ARGUMENTS, **averaged})
    loaded = load_checkpoint(file, arguments_file)
    assert same_weights(loaded.model, mar_weights())
    (warning,) = loaded.warnings
    assert warning.startswith(f"{file}: there are no averaged weights; those under '{key}' are taken")


def test_tensors_alone_are_read_without_a_warning(tmp_path: pathlib.Path, arguments_file: pathlib.Path) -> None:
    loaded = load_checkpoint(_save(tmp_path, collections.OrderedDict(mar_weights())), arguments_file)
    assert same_weights(loaded.model, mar_weights())
    assert loaded.warnings == ()


def test_one_of_several_averages_is_named(tmp_path: pathlib.Path, arguments_file: pathlib.Path) -> None:
    loaded = load_checkpoint(_save(tmp_path, {"ema2": _other(), "model_ema": mar_weights()}), arguments_file)
    assert same_weights(loaded.model, mar_weights())
    assert "those under 'model_ema' are taken, not 'ema2'" in loaded.warnings[0]


def test_a_list_that_does_not_fit_the_names_beside_it_is_refused(tmp_path: pathlib.Path) -> None:
    content = {"model": mar_weights(), "model_ema": _nameless(mar_weights())[::-1]}
    assert "the averaged weights under 'model_ema' are a list of" in refusal(_save(tmp_path, content))


# Classes.


def _with_thousand_classes() -> Weights:
    weights = mar_weights()
    rows = torch.full((1000 - CONFIG.class_num, CONFIG.encoder_embed_dim), torch.nan)
    return {**weights, "class_emb.weight": torch.cat([weights["class_emb.weight"], rows])}


@pytest.mark.parametrize("source", ["arguments", "option"])
def test_rows_of_classes_that_earlier_published_code_made_in_vain_are_dropped(
    tmp_path: pathlib.Path, heads_file: pathlib.Path, source: str
) -> None:
    arguments = argparse.Namespace(**LAYOUT, **({"class_num": 5} if source == "arguments" else {}))
    option = write_json(tmp_path / "5.json", {"class_num": 5, "encoder_num_heads": 3, "decoder_num_heads": 8})
    file = write_pth(tmp_path / "x.pth", _with_thousand_classes(), arguments)
    loaded = load_checkpoint(file, heads_file if source == "arguments" else option)
    assert loaded.model.config == CONFIG
    assert same_weights(loaded.model, mar_weights())
    assert "1000 rows and class_num is 5; the rows from 5 are dropped" in loaded.warnings[0]


@pytest.mark.parametrize("classes", [6, 1001, 0])
def test_other_numbers_of_classes_contradict_the_tensors(
    tmp_path: pathlib.Path, heads_file: pathlib.Path, classes: int
) -> None:
    weights = mar_weights() if classes == 6 else _with_thousand_classes()
    file = write_pth(tmp_path / "x.pth", weights, argparse.Namespace(**LAYOUT, class_num=classes))
    assert f"but {classes} by the arguments" in refusal(file, ConfigError, config_file=heads_file)


# Arguments and what else a file holds.


class _Kind(enum.Enum):
    """An enumeration of a training code."""

    FIRST = 1


class _State:
    """An object of a training code, whose making must not run."""

    def __init__(self) -> None:
        self.value = pathlib.Path("/data")

    def __setstate__(self, state: object) -> None:
        raise AssertionError("the class was used")


_VALUES: dict[str, Any] = {
    "numpy": np.float64(1e-4),
    "numpy-array": np.arange(3.0),
    "numpy-generator": np.random.default_rng(0),
    "path": pathlib.Path("/data/x"),
    "enumeration": _Kind.FIRST,
    "object": _State(),
    "dtype": torch.bfloat16,
    "date": datetime.datetime(2026, 1, 1),
    "identity": uuid.UUID(int=3),
    "sets": [{1}, frozenset([2]), range(3), 1j, b"x"],
    "queue": collections.deque([1, 2]),
    "default": collections.defaultdict(list, {"a": [1]}),
    "module": torch.nn.Linear(2, 2),
    "namespace": types.SimpleNamespace(a=1),
}


@pytest.mark.parametrize("value", _VALUES.values(), ids=_VALUES)
@pytest.mark.parametrize("place", ["args", "beside"])
def test_other_objects_in_a_checkpoint_are_not_run_and_do_not_matter(
    tmp_path: pathlib.Path, heads_file: pathlib.Path, value: object, place: str
) -> None:
    arguments = argparse.Namespace(**vars(_ARGUMENTS), **({"value": value} if place == "args" else {}))
    others = {"callbacks": {_State: value}} if place == "beside" else {}
    loaded = load_checkpoint(write_pth(tmp_path / "x.pth", mar_weights(), arguments, **others), heads_file)
    assert loaded.model.config == CONFIG
    assert same_weights(loaded.model, mar_weights())


@pytest.mark.parametrize("kind", ["int64", "int32", "uint8", ">i4"])
def test_numpy_numbers_among_the_arguments_are_read(
    tmp_path: pathlib.Path, heads_file: pathlib.Path, kind: str
) -> None:
    arguments = types.SimpleNamespace(**{name: np.dtype(kind).type(value) for name, value in LAYOUT.items()})
    arguments.buffer_size = np.frombuffer(np.array(3, kind).tobytes(), kind)[0]
    file = write_pth(tmp_path / "x.pth", mar_weights(), arguments)
    assert load_checkpoint(file, heads_file).model.config == CONFIG


def test_the_error_about_an_argument_of_an_unknown_class_names_the_class(
    tmp_path: pathlib.Path, heads_file: pathlib.Path
) -> None:
    file = write_pth(tmp_path / "x.pth", mar_weights(), argparse.Namespace(**{**LAYOUT, "vae_stride": _Kind.FIRST}))
    message = refusal(file, ConfigError, config_file=heads_file)
    assert "vae_stride" in message
    assert "_Kind" in message


# What is no checkpoint.

_PLACEHOLDERS = {
    "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 24\n": "a Git LFS pointer",
    "<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>": "a web page",
    "\n  <HTML lang=en>": "a web page",
    '<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>': "a web page",
    "/annex/objects/SHA256E-s24--00.pth\n": "a git-annex pointer",
}


@pytest.mark.parametrize("name", ["x.pth", "x.ckpt", "x.safetensors"])
@pytest.mark.parametrize("text", _PLACEHOLDERS, ids=_PLACEHOLDERS.values())
def test_what_a_download_left_in_place_of_weights_is_called_that(
    tmp_path: pathlib.Path, heads_file: pathlib.Path, name: str, text: str
) -> None:
    (tmp_path / name).write_text(text)
    assert f"{tmp_path / name}: {_PLACEHOLDERS[text]} in place of the content; " in refusal(tmp_path / name)
    mar = write_pth(tmp_path / "mar.pth", mar_weights())
    message = refusal(mar, config_file=heads_file, tokenizer=tmp_path / name)
    assert f"{tmp_path / name}: {_PLACEHOLDERS[text]} in place of the content; " in message
