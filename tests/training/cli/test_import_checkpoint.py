"""`mar import`: a run folder with the same weights, or one line and no files."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import pathlib
import resource
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from tests.helpers.command_line import Command, Mar
from tests.helpers.published_forms import (
    CONFIG,
    HEADS,
    LAYOUT,
    VAE,
    mar_weights,
    same_weights,
    vae_weights,
    write_component,
    write_json,
    write_pipeline,
    write_pth,
    write_safetensors,
)
from tests.helpers.train_command import error_line
from training.checkpoints.checkpoint import load_checkpoint


@pytest.fixture
def import_(mar: Mar) -> Command:
    return functools.partial(mar, "import")


def _sha256(file: pathlib.Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _pth(folder: pathlib.Path) -> tuple[pathlib.Path, list[Any], pathlib.Path]:
    file = write_pth(folder / "checkpoint-last.pth", mar_weights())
    return file, ["--model-config", write_json(folder / "heads.json", HEADS)], file


def _safetensors(folder: pathlib.Path) -> tuple[pathlib.Path, list[Any], pathlib.Path]:
    file = write_safetensors(folder / "mar.safetensors", mar_weights())
    return file, ["--model-config", write_json(folder / "shape.json", {**HEADS, **LAYOUT})], file


def _component(folder: pathlib.Path) -> tuple[pathlib.Path, list[Any], pathlib.Path]:
    path = write_component(folder / "mar", mar_weights(), CONFIG.to_dict())
    return path, [], path / "diffusion_pytorch_model.safetensors"


_LAYOUTS = [_pth, _safetensors, _component]


def _write_vae(folder: pathlib.Path) -> pathlib.Path:
    file = folder / "kl.ckpt"
    torch.save({"model": vae_weights()}, file)
    return file


def _contains_only(folder: pathlib.Path, *names: str) -> bool:
    """Hidden files count too, because temporary files are hidden."""
    return sorted(path.name for path in folder.iterdir()) == sorted(names)


# The run folder.


@pytest.mark.parametrize("write", _LAYOUTS)
@pytest.mark.parametrize("with_tokenizer", [False, True])
def test_an_imported_run_has_the_weights_bit_for_bit_and_keeps_their_hash_and_source(
    import_: Command, tmp_path: pathlib.Path, write: Callable[..., Any], with_tokenizer: bool
) -> None:
    path, options, file = write(tmp_path)
    if with_tokenizer:
        options = [*options, "--tokenizer", _write_vae(tmp_path)]
    run = tmp_path / "runs" / "mar"  # in a folder that does not exist yet
    code, out, err = import_(path, "--out", run, *options)
    assert (code, err) == (0, "")
    tokenizer = "kl" if with_tokenizer else "none"
    for text in ("0.1 M parameters", "4 tokens of 16 values", "16x16 pixels", f"tokenizer {tokenizer}", str(run)):
        assert text in out
    assert _contains_only(run, "config.json", "model.safetensors", *(["tokenizer.safetensors"] * with_tokenizer))
    assert _contains_only(run.parent, "mar")
    loaded = load_checkpoint(run)
    assert same_weights(loaded.model, mar_weights())
    assert loaded.model.config == CONFIG
    assert (loaded.tokenizer, loaded.class_names, loaded.source) == (tokenizer, (), "mar")
    assert loaded.sha256 == _sha256(run / "model.safetensors")
    assert (loaded.vae is not None) == with_tokenizer
    assert loaded.vae is None or (loaded.vae.config == VAE and same_weights(loaded.vae, vae_weights()))
    config = json.loads((run / "config.json").read_text())
    origin = {"file": path.name, "sha256": _sha256(file)}
    assert {name: config["imported_from"][name] for name in origin} == origin
    assert ("tokenizer_sha256" in config["imported_from"]) == with_tokenizer


def test_a_pipeline_folder_is_imported_with_its_autoencoder(import_: Command, tmp_path: pathlib.Path) -> None:
    code, _, err = import_(write_pipeline(tmp_path / "pipeline"), "--out", tmp_path / "run")
    assert (code, err) == (0, "")
    loaded = load_checkpoint(tmp_path / "run")
    assert same_weights(loaded.model, mar_weights())
    assert loaded.vae is not None
    assert same_weights(loaded.vae, vae_weights())


def test_an_imported_run_does_not_need_its_source(import_: Command, tmp_path: pathlib.Path) -> None:
    path, options, _ = _pth(tmp_path)
    assert import_(path, "--out", tmp_path / "run", *options)[0] == 0
    path.unlink()
    assert same_weights(load_checkpoint(tmp_path / "run").model, mar_weights())


def test_an_imported_run_can_be_imported_again_with_a_tokenizer(import_: Command, tmp_path: pathlib.Path) -> None:
    path, options, _ = _safetensors(tmp_path)
    (tmp_path / "one").mkdir()  # an empty folder is as good as none
    assert import_(path, "--out", tmp_path / "one", *options)[0] == 0
    assert import_(tmp_path / "one", "--out", tmp_path / "two", "--tokenizer", _write_vae(tmp_path))[0] == 0
    loaded = load_checkpoint(tmp_path / "two")
    assert same_weights(loaded.model, mar_weights())
    assert (loaded.tokenizer, loaded.model.config) == ("kl", CONFIG)


# Wrong use.


@pytest.mark.parametrize("kind", ["file", "folder", "run"])
def test_an_existing_path_is_not_overwritten(import_: Command, tmp_path: pathlib.Path, kind: str) -> None:
    path, options, _ = _pth(tmp_path)
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    elif kind == "folder":
        out.mkdir()
        (out / "loss.png").write_text("mine")
    else:
        assert import_(path, "--out", out, *options)[0] == 0
        assert import_(path, "--out", out, *options)[0] == 0  # the same again
        config = json.loads((out / "config.json").read_text())
        (out / "config.json").write_text(json.dumps({**config, "training": {"steps": 1000}}))
    before = {file: file.read_bytes() for file in [out, *out.rglob("*")] if file.is_file()}
    code, stdout, err = import_(path, "--out", out, *options)
    assert (code, stdout) == (2, "")
    held = "holds another run" if kind == "run" else "exists and is no run"
    assert f"{out} {held}; choose another --out" in error_line(err)
    assert {file: file.read_bytes() for file in [out, *out.rglob("*")] if file.is_file()} == before
    assert out.is_file() == (kind == "file")


@pytest.mark.parametrize(
    ("options", "code", "parts"),
    [
        ([], 2, ["heads", "--model-config"]),
        (["--model", "mar_base"], 2, ["24 by its tensors", "768 by --model mar_base"]),
        (["--model", "mar_tiny"], 2, ["--model", "mar_tiny", "mar_base"]),
        (["--model-config", "{folder}/nowhere.json"], 1, ["nowhere.json"]),
        (["--model-config", "{folder}/other.json"], 2, ["vae_stride is 4 by", "but 8 by --model-config", "other.json"]),
        (["--model-config", "{folder}/list.json"], 1, ["list.json", "expected a JSON object, found list"]),
        (["--model-config", "{folder}/heads.json", "--tokenizer", "{folder}/nowhere.ckpt"], 1, ["nowhere.ckpt"]),
        (
            ["--model-config", "{folder}/heads.json", "--tokenizer", "{folder}/x.pth"],
            1,
            ["x.pth", "an autoencoder under 'model'"],
        ),
    ],
)
def test_a_mistake_is_one_line_that_names_both_sides_and_leaves_nothing_behind(
    import_: Command, tmp_path: pathlib.Path, options: list[str], code: int, parts: list[str]
) -> None:
    files = tmp_path / "files"
    write_json(files / "heads.json", HEADS)
    write_json(files / "other.json", {**HEADS, "vae_stride": 8})
    write_json(files / "list.json", [HEADS])
    file = write_pth(files / "x.pth", mar_weights(), model=mar_weights())
    arguments = [option.format(folder=files) for option in options]
    exit_code, out, err = import_(file, "--out", tmp_path / "runs" / "run", *arguments)
    assert (exit_code, out) == (code, "")
    for part in parts:
        assert part in error_line(err)
    assert _contains_only(tmp_path, "files")


@pytest.mark.parametrize(("arguments", "message"), [(["x.pth"], "--out"), (["--out", "run"], "CHECKPOINT")])
def test_a_missing_argument_is_named(import_: Command, arguments: list[str], message: str) -> None:
    code, out, err = import_(*arguments)
    assert (code, out) == (2, "")
    assert message in error_line(err)


@pytest.mark.parametrize("percent", [0, 10, 99])
def test_a_truncated_checkpoint_leaves_nothing_behind(import_: Command, tmp_path: pathlib.Path, percent: int) -> None:
    (tmp_path / "files").mkdir()
    path, options, file = _pth(tmp_path / "files")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * percent // 100])
    code, out, err = import_(path, "--out", tmp_path / "run", *options)
    assert (code, out) == (1, "")
    assert str(file) in error_line(err)
    assert _contains_only(tmp_path, "files")


# Failures while writing.


@pytest.fixture
def source(tmp_path: pathlib.Path) -> list[Any]:
    """The arguments that import a model with its autoencoder."""
    (tmp_path / "files").mkdir()
    path, options, _ = _pth(tmp_path / "files")
    return [path, *options, "--tokenizer", _write_vae(tmp_path / "files")]


@pytest.mark.parametrize("failing", ["model", "tokenizer"])
@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["os", "safetensors"],
)
def test_a_full_disk_is_one_line_and_leaves_nothing_behind(
    import_: Command,
    tmp_path: pathlib.Path,
    source: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    failing: str,
    failure: Exception,
) -> None:
    def fail(tensors: dict[str, Tensor], path: pathlib.Path, metadata: dict[str, str]) -> None:
        if path.name.startswith(failing):
            raise failure
        save_file(tensors, path, metadata)

    monkeypatch.setattr("training.checkpoints.checkpoint.save_file", fail)
    code, out, err = import_(*source, "--out", tmp_path / "run")
    assert (code, out) == (1, "")
    assert "No space left on device" in error_line(err)
    assert _contains_only(tmp_path, "files")


@pytest.mark.parametrize("failing", ["model", "tokenizer"])
def test_a_write_that_fails_halfway_leaves_nothing_behind(
    import_: Command, tmp_path: pathlib.Path, source: list[Any], failing: str
) -> None:
    """A limit of the file size is like a full disk, and needs no privileges."""
    model, tokenizer = (sum(tensor.nbytes for tensor in weights.values()) for weights in (mar_weights(), vae_weights()))
    limit = model // 2 if failing == "model" else tokenizer // 2
    assert model + 20_000 < tokenizer // 2  # so that the limit stops the file named by `failing`
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        code, out, err = import_(*source, "--out", tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (code, out) == (1, "")
    assert "File too large" in error_line(err)
    assert f"{failing}.safetensors" in err
    assert _contains_only(tmp_path, "files")
    assert import_(*source, "--out", tmp_path / "run")[0] == 0  # the same command works when there is space


def test_a_file_in_place_of_the_parent_folder_is_one_line(
    import_: Command, tmp_path: pathlib.Path, source: list[Any]
) -> None:
    (tmp_path / "file").write_text("in the way")
    code, out, err = import_(*source, "--out", tmp_path / "file" / "run")
    assert (code, out) == (1, "")
    assert str(tmp_path / "file" / "run") in error_line(err)
    assert _contains_only(tmp_path, "file", "files")
