"""Published models in each form they come in: the same model out of all, one line out of what is none."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import pathlib
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from runtime.errors import CheckpointError, ConfigError, MarError
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
from tests.helpers.tiny_runs import one_sentence, one_thread
from training.checkpoints.checkpoint import load_checkpoint
from training.checkpoints.published_files import is_diffusers_folder, load_vae, read_json_object
from training.models.autoencoder import AutoencoderKL

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_INDEX = f"{_WEIGHTS}.index.json"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def heads(tmp_path: pathlib.Path) -> pathlib.Path:
    """What has to be told of a model whose file tells its layout."""
    return write_json(tmp_path / "heads.json", HEADS)


@pytest.fixture
def shape(tmp_path: pathlib.Path) -> pathlib.Path:
    """What has to be told of a model whose file tells nothing."""
    return write_json(tmp_path / "shape.json", {**HEADS, **LAYOUT})


def _sha256(*files: pathlib.Path) -> str:
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _refusal(path: pathlib.Path, error: type[MarError] = CheckpointError, **options: Any) -> str:
    """The one line that says why a checkpoint is refused."""
    with pytest.raises(error) as caught:
        load_checkpoint(path, **options)
    return one_sentence(caught)


# The same model out of every form


def test_a_pth_gives_its_averaged_weights(tmp_path: pathlib.Path, heads: pathlib.Path) -> None:
    file = write_pth(tmp_path / "checkpoint-last.pth", mar_weights())
    loaded = load_checkpoint(file, heads)
    assert loaded.model.config == CONFIG
    assert same_weights(loaded.model, mar_weights())
    assert (loaded.source, loaded.sha256, loaded.tokenizer, loaded.vae) == (file.name, _sha256(file), "none", None)


def test_arguments_may_be_a_plain_dictionary_or_not_there(tmp_path: pathlib.Path, heads: pathlib.Path) -> None:
    assert load_checkpoint(write_pth(tmp_path / "x.pth", mar_weights(), LAYOUT), heads).model.config == CONFIG
    bare = tmp_path / "bare.pth"
    torch.save({"model_ema": mar_weights()}, bare)
    assert load_checkpoint(bare, write_json(tmp_path / "all.json", {**HEADS, **LAYOUT})).model.config == CONFIG


def test_a_pth_from_before_files_were_archives_is_read_too(tmp_path: pathlib.Path, heads: pathlib.Path) -> None:
    file = tmp_path / "old.pth"
    content = {"model_ema": mar_weights(), "args": argparse.Namespace(**LAYOUT)}
    torch.save(content, file, _use_new_zipfile_serialization=False)
    assert same_weights(load_checkpoint(file, heads).model, mar_weights())


def test_a_file_of_tensors_gives_what_it_holds(tmp_path: pathlib.Path, shape: pathlib.Path) -> None:
    file = write_safetensors(tmp_path / "mar.safetensors", mar_weights())
    loaded = load_checkpoint(file, shape)
    assert loaded.model.config == CONFIG
    assert same_weights(loaded.model, mar_weights())
    assert (loaded.source, loaded.sha256, loaded.tokenizer) == ("mar.safetensors", _sha256(file), "none")


@pytest.mark.parametrize("name", [_WEIGHTS, "model.safetensors"])
def test_a_component_folder_gives_its_model_and_needs_nothing_else(tmp_path: pathlib.Path, name: str) -> None:
    folder = write_component(tmp_path / "mar", mar_weights(), {**CONFIG.to_dict(), "sample_size": 16, "_x": 1})
    (folder / _WEIGHTS).rename(folder / name)
    loaded = load_checkpoint(folder)
    assert loaded.model.config == CONFIG
    assert same_weights(loaded.model, mar_weights())
    assert (loaded.source, loaded.sha256, loaded.tokenizer) == ("mar", _sha256(folder / name), "none")


@pytest.mark.parametrize("shards", [2, 3])
def test_shards_give_the_model_that_their_index_names(tmp_path: pathlib.Path, shards: int) -> None:
    folder = write_component(tmp_path / "mar", mar_weights(), CONFIG.to_dict(), shards)
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) == shards
    write_safetensors(folder / "other.safetensors", {"z_proj.weight": torch.zeros(1)})  # which it does not name
    loaded = load_checkpoint(folder)
    assert loaded.model.config == CONFIG
    assert same_weights(loaded.model, mar_weights())
    assert loaded.sha256 == _sha256(*files)


@pytest.mark.parametrize("model", ["transformer", "mar", "model"])
def test_a_pipeline_folder_gives_its_model_with_its_autoencoder(tmp_path: pathlib.Path, model: str) -> None:
    loaded = load_checkpoint(write_pipeline(tmp_path / "pipeline", model))
    assert loaded.model.config == CONFIG
    assert same_weights(loaded.model, mar_weights())
    assert loaded.tokenizer == "kl"
    assert loaded.vae is not None
    assert loaded.vae.config == VAE
    assert same_weights(loaded.vae, vae_weights())
    assert loaded.sha256 == _sha256(tmp_path / "pipeline" / model / _WEIGHTS)


def test_a_pipeline_folder_without_an_autoencoder_has_no_tokenizer(tmp_path: pathlib.Path) -> None:
    folder = write_pipeline(tmp_path / "pipeline")
    shutil.rmtree(folder / "vae")
    loaded = load_checkpoint(folder)
    assert (loaded.tokenizer, loaded.vae) == ("none", None)


def test_an_autoencoder_that_is_given_goes_before_that_of_the_folder(tmp_path: pathlib.Path) -> None:
    other = {name: tensor + 1 for name, tensor in vae_weights().items()}
    file = write_safetensors(tmp_path / "other.safetensors", other)
    loaded = load_checkpoint(write_pipeline(tmp_path / "pipeline"), tokenizer=file)
    assert loaded.vae is not None
    assert same_weights(loaded.vae, other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_become_single_precision(
    tmp_path: pathlib.Path, shape: pathlib.Path, dtype: torch.dtype
) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in mar_weights().items()}
    loaded = load_checkpoint(write_safetensors(tmp_path / "mar.safetensors", weights), shape)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert same_weights(loaded.model, {name: tensor.float() for name, tensor in weights.items()})


def test_a_loaded_model_is_ready_to_draw_with(tmp_path: pathlib.Path) -> None:
    loaded = load_checkpoint(write_pipeline(tmp_path / "pipeline"))
    assert loaded.vae is not None
    for module in (loaded.model, loaded.vae):
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())
        assert not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))


def test_which_folders_are_those_of_diffusers(tmp_path: pathlib.Path) -> None:
    assert is_diffusers_folder(write_pipeline(tmp_path / "pipeline"))
    assert is_diffusers_folder(tmp_path / "pipeline" / "vae")
    assert not is_diffusers_folder(tmp_path)
    write_json(tmp_path / "run" / "config.json", {"model": {}, "tokenizer": "pixel"})
    assert not is_diffusers_folder(tmp_path / "run")


# The autoencoder beside it


def _vae_ckpt(folder: pathlib.Path, weights: Any, **others: Any) -> pathlib.Path:
    file = folder / "kl.ckpt"
    torch.save({"model": weights, **others}, file)
    return file


def _vae_safetensors(folder: pathlib.Path, weights: Any) -> pathlib.Path:
    return write_safetensors(folder / "kl.safetensors", weights)


def _vae_folder(folder: pathlib.Path, weights: Any) -> pathlib.Path:
    return write_component(folder / "vae", weights, {"latent_channels": 4})


def _vae_shards(folder: pathlib.Path, weights: Any) -> pathlib.Path:
    return write_component(folder / "vae", weights, {"latent_channels": 4}, shards=2)


@pytest.mark.parametrize("write", [_vae_ckpt, _vae_safetensors, _vae_folder, _vae_shards])
def test_an_autoencoder_comes_out_of_every_form_whole(tmp_path: pathlib.Path, write: Callable[..., Any]) -> None:
    path = write(tmp_path, vae_weights())
    vae = load_vae(path)
    assert vae.config == VAE
    assert same_weights(vae, vae_weights())
    # A .pth that tells no layout takes it from the autoencoder.
    torch.save({"model_ema": mar_weights()}, tmp_path / "x.pth")
    loaded = load_checkpoint(tmp_path / "x.pth", write_json(tmp_path / "heads.json", HEADS), tokenizer=path)
    assert loaded.model.config == CONFIG
    assert loaded.tokenizer == "kl"


@pytest.mark.parametrize("write", [_vae_ckpt, _vae_safetensors])
def test_what_an_autoencoder_was_trained_against_is_left_out(tmp_path: pathlib.Path, write: Callable[..., Any]) -> None:
    loss = {"loss.logvar": torch.zeros(()), "loss.discriminator.main.0.weight": torch.full((64, 3, 4, 4), torch.nan)}
    assert same_weights(load_vae(write(tmp_path, {**vae_weights(), **loss})), vae_weights())


def test_more_beside_the_weights_of_an_autoencoder_is_not_read(tmp_path: pathlib.Path) -> None:
    file = _vae_ckpt(tmp_path, vae_weights(), epoch=12, optimizer={"state": [torch.zeros(3)]})
    assert same_weights(load_vae(file), vae_weights())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"latent_channels": 16}, ["tokens of 16 values", "vae_embed_dim 16", "makes 64"]),
        ({"latent_channels": 3}, ["tokens of 16 values", "vae_embed_dim 3"]),
    ],
)
def test_an_autoencoder_with_other_latents_contradicts_the_tensors_of_the_model(
    tmp_path: pathlib.Path, change: dict[str, Any], told: list[str]
) -> None:
    vae = _vae_ckpt(tmp_path, vae_weights(dataclasses.replace(VAE, **change)))
    file = write_safetensors(tmp_path / "mar.safetensors", mar_weights())
    config = write_json(tmp_path / "shape.json", {**HEADS, "patch_size": 2, "vae_stride": 4, "img_size": 16})
    message = _refusal(file, ConfigError, config_file=config, tokenizer=vae)
    for part in (str(file), "its tensors", f"the tokenizer {vae}", *told):
        assert part in message


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"latent_channels": 16}, "vae_embed_dim is 4 by the arguments it was trained with, but 16 by the tokenizer"),
        ({"multipliers": (1, 2)}, "vae_stride is 4 by the arguments it was trained with, but 2 by the tokenizer"),
    ],
)
def test_an_autoencoder_of_another_model_contradicts_the_arguments_of_training(
    tmp_path: pathlib.Path, heads: pathlib.Path, change: dict[str, Any], told: str
) -> None:
    vae = _vae_ckpt(tmp_path, vae_weights(dataclasses.replace(VAE, attention_levels=(), **change)))
    file = write_pth(tmp_path / "x.pth", mar_weights())
    message = _refusal(file, ConfigError, config_file=heads, tokenizer=vae)
    for part in (str(file), f"{told} {vae}"):
        assert part in message


def test_a_pipeline_folder_whose_parts_contradict_each_other_is_refused(tmp_path: pathlib.Path) -> None:
    folder = write_pipeline(tmp_path / "pipeline")
    write_component(folder / "vae", vae_weights(dataclasses.replace(VAE, latent_channels=8)), {})
    message = _refusal(folder, ConfigError)
    assert (
        f"vae_embed_dim is 4 by the arguments it was trained with, but 8 by the tokenizer {folder / 'vae'}" in message
    )


def test_an_autoencoder_of_another_width_is_read_as_it_is(tmp_path: pathlib.Path) -> None:
    wide = dataclasses.replace(VAE, width=64)
    assert load_vae(_vae_ckpt(tmp_path, vae_weights(wide))).config == wide


@pytest.mark.parametrize(
    "name", ["decoder.up.1.block.0.conv1.weight", "encoder.mid.attn_1.q.weight", "quant_conv.bias"]
)
def test_an_autoencoder_with_one_layer_of_another_width_is_refused_by_it(tmp_path: pathlib.Path, name: str) -> None:
    weights = vae_weights()
    weights[name] = torch.cat([weights[name], weights[name]])
    file = _vae_ckpt(tmp_path, weights)
    with pytest.raises(CheckpointError, match=rf"{name} is \(\d+.* config asks for \(\d+") as caught:
        load_vae(file)
    assert str(file) in one_sentence(caught)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_an_autoencoder_with_weights_that_are_not_finite_is_refused(tmp_path: pathlib.Path, value: float) -> None:
    weights = vae_weights()
    weights["decoder.conv_in.bias"][3] = value
    with pytest.raises(CheckpointError, match=r"decoder\.conv_in\.bias.*not finite") as caught:
        load_vae(_vae_ckpt(tmp_path, weights))
    one_sentence(caught)


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {}},
        {"model": None},
        {"model": [torch.zeros(1)]},
        {"model": {"w": 1.0}},
        {"model": {1: torch.ones(1)}},
    ],
    ids=["elsewhere", "null", "list", "numbers", "no-names"],
)
def test_a_ckpt_without_weights_under_model_is_refused(tmp_path: pathlib.Path, content: object) -> None:
    file = tmp_path / "kl.ckpt"
    torch.save(content, file)
    with pytest.raises(CheckpointError, match="autoencoder under 'model'") as caught:
        load_vae(file)
    assert str(file) in one_sentence(caught)


def test_model_and_autoencoder_mistaken_for_each_other_are_refused(tmp_path: pathlib.Path, shape: pathlib.Path) -> None:
    model = write_safetensors(tmp_path / "mar.safetensors", mar_weights())
    vae = write_safetensors(tmp_path / "vae.safetensors", vae_weights())
    message = _refusal(model, config_file=shape, tokenizer=model)
    assert f"{model}: not a KL autoencoder under the published parameter names" in message
    assert "encoder.conv_in.weight" in message
    assert f"{vae}: not the parameters of a MAR model" in _refusal(vae, config_file=shape)


def test_a_missing_autoencoder_is_refused(tmp_path: pathlib.Path, heads: pathlib.Path) -> None:
    file = write_pth(tmp_path / "x.pth", mar_weights())
    for name in ("nowhere.ckpt", "nowhere.safetensors"):
        assert str(tmp_path / name) in _refusal(file, config_file=heads, tokenizer=tmp_path / name)
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in _refusal(file, config_file=heads, tokenizer=tmp_path / "empty")


# Damaged files


@pytest.mark.parametrize("percent", [0, 1, 10, 50, 99])
@pytest.mark.parametrize("form", ["pth", "safetensors", "component", "shard", "ckpt", "vae"])
def test_a_truncated_file_is_refused_by_its_name(
    tmp_path: pathlib.Path, shape: pathlib.Path, form: str, percent: int
) -> None:
    options: dict[str, Any] = {"config_file": shape}
    if form in ("pth", "ckpt"):
        path = file = write_pth(tmp_path / "x.pth", mar_weights())
    elif form == "safetensors":
        path = file = write_safetensors(tmp_path / "x.safetensors", mar_weights())
    elif form == "component":
        path, options = write_component(tmp_path / "mar", mar_weights(), CONFIG.to_dict()), {}
        file = path / _WEIGHTS
    elif form == "shard":
        path, options = write_component(tmp_path / "mar", mar_weights(), CONFIG.to_dict(), 2), {}
        file = sorted(path.glob("*.safetensors"))[1]
    else:
        path, options = write_pipeline(tmp_path / "pipeline"), {}
        file = path / "vae" / _WEIGHTS
    if form == "ckpt":
        file = options["tokenizer"] = _vae_ckpt(tmp_path, vae_weights())
    load_checkpoint(path, **options)  # whole, it is one that loads
    content = file.read_bytes()
    file.unlink()  # what is loaded is mapped from it
    file.write_bytes(content[: len(content) * percent // 100])
    assert str(file) in _refusal(path, **options)


@pytest.mark.parametrize(
    "damaged", [b"", b".", b"h\x05.", b")R.", b"}}}s.", b"u.", b"}(]K\x01u.", b"X\xff\xff\xff\x7fab.", b"]0."], ids=repr
)
def test_a_damaged_pickle_in_a_whole_archive_is_refused(
    tmp_path: pathlib.Path, heads: pathlib.Path, damaged: bytes
) -> None:
    """Reading these ends in errors of five kinds."""
    whole = write_pth(tmp_path / "whole.pth", mar_weights())
    file = tmp_path / "x.pth"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(file, "w") as target:
        for name in source.namelist():
            target.writestr(name, b"\x80\x02" + damaged if name.endswith("data.pkl") else source.read(name))
    assert str(file) in _refusal(file, config_file=heads)


@pytest.mark.parametrize("seed", range(10))
def test_altered_bytes_in_a_pickle_are_refused_in_one_line_or_read_as_a_model(
    tmp_path: pathlib.Path, heads: pathlib.Path, seed: int
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
        load_checkpoint(file, heads)
    except MarError as error:
        assert str(file) in str(error)


@pytest.mark.parametrize("arguments", [None, 5, "mar_base", ["mar_base"], torch.zeros(2)], ids=type)
def test_arguments_of_another_kind_are_refused(tmp_path: pathlib.Path, heads: pathlib.Path, arguments: object) -> None:
    file = tmp_path / "x.pth"
    torch.save({"model_ema": mar_weights(), "args": arguments}, file)
    message = _refusal(file, config_file=heads)
    assert f"{file}: expected the arguments of its training under 'args'" in message
    assert type(arguments).__name__ in message


@pytest.mark.parametrize(
    "wrong",
    [{"vae_stride": "4"}, {"patch_size": 2.5}, {"img_size": None}, {"class_num": "5"}, {"buffer_size": [3]}],
    ids=str,
)
def test_an_argument_of_another_kind_is_refused_by_its_name(
    tmp_path: pathlib.Path, heads: pathlib.Path, wrong: dict[str, object]
) -> None:
    file = write_pth(tmp_path / "x.pth", mar_weights(), argparse.Namespace(**{**LAYOUT, **wrong}))
    message = _refusal(file, ConfigError, config_file=heads)
    for part in (str(file), *wrong, "the arguments it was trained with"):
        assert part in message


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e300])
def test_weights_that_are_not_finite_in_single_precision_are_refused(
    tmp_path: pathlib.Path, shape: pathlib.Path, value: float
) -> None:
    weights = {**mar_weights(), "decoder_norm.bias": mar_weights()["decoder_norm.bias"].double()}
    weights["decoder_norm.bias"][3] = value
    file = write_safetensors(tmp_path / "mar.safetensors", weights)
    message = _refusal(file, config_file=shape)
    assert f"{file}: decoder_norm.bias holds values that are not finite" in message


def test_weights_without_names_are_refused(tmp_path: pathlib.Path, heads: pathlib.Path) -> None:
    weights: dict[Any, torch.Tensor] = {**mar_weights(), 3: torch.zeros(1)}
    file = write_pth(tmp_path / "x.pth", weights)
    assert f"{file}: expected the averaged weights under 'model_ema'" in _refusal(file, config_file=heads)


class _CreatesAFile:
    """What an attacker puts into a checkpoint: unpickling it opens a file for writing."""

    def __init__(self, file: pathlib.Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.file), "w")


def test_an_autoencoder_that_would_run_code_is_refused_and_runs_none(tmp_path: pathlib.Path) -> None:
    trace = tmp_path / "was-run"
    file = _vae_ckpt(tmp_path, vae_weights(), callback=_CreatesAFile(trace))
    with pytest.raises(CheckpointError, match="could run code") as caught:
        load_vae(file)
    assert str(file) in one_sentence(caught)
    assert not trace.exists()
    torch.load(file, weights_only=False)  # it is indeed what it is said to be
    assert trace.exists()


@pytest.mark.parametrize(
    "content", [b"# A text", b"\x93" * 100, pickle.dumps({"a": _CreatesAFile(pathlib.Path("x"))}, 4)]
)
def test_what_is_no_checkpoint_is_called_nothing_worse(
    tmp_path: pathlib.Path, recwarn: pytest.WarningsRecorder, content: bytes
) -> None:
    """And nothing but that is told: PyTorch warns of formats that it may not know."""
    file = tmp_path / "x.pth"
    file.write_bytes(content)
    assert _refusal(file) == f"{file}: not a PyTorch checkpoint, or not one of tensors alone"
    assert not recwarn.list


def test_an_artifact_is_told_from_a_run(tmp_path: pathlib.Path) -> None:
    write_json(tmp_path / "manifest.json", {"format_version": 7, "files": {}, "engines": {}})
    assert _refusal(tmp_path) == f"{tmp_path}: an artifact, not a run of mar train: it has no config.json"


# Folders that are not as they should be


def test_a_pipeline_folder_without_a_model_is_refused(tmp_path: pathlib.Path) -> None:
    folder = write_pipeline(tmp_path / "pipeline")
    shutil.rmtree(folder / "transformer")
    message = _refusal(folder)
    for part in (str(folder), "transformer", "mar", "model"):
        assert part in message


def test_a_component_folder_without_weights_is_refused(tmp_path: pathlib.Path) -> None:
    folder = write_component(tmp_path / "mar", mar_weights(), CONFIG.to_dict())
    (folder / _WEIGHTS).rename(folder / "diffusion_pytorch_model.bin")
    message = _refusal(folder)
    for part in (str(folder), _WEIGHTS):
        assert part in message


def test_a_component_folder_whose_config_contradicts_its_tensors_is_refused(tmp_path: pathlib.Path) -> None:
    folder = write_component(tmp_path / "mar", mar_weights(), {**CONFIG.to_dict(), "encoder_depth": 3})
    assert "encoder_depth is 2 by its tensors, but 3 by" in _refusal(folder, ConfigError)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"_class_name"', '{"_class_name": "MAR", "config": 3}'])
def test_a_component_folder_with_a_broken_config_is_refused_by_it(tmp_path: pathlib.Path, text: str) -> None:
    folder = write_component(tmp_path / "mar", mar_weights(), CONFIG.to_dict())
    (folder / "config.json").write_text(text)
    assert str(folder / "config.json") in _refusal(folder)


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "3", "{}", '{"weight_map": null}', '{"weight_map": ["x.safetensors"]}', '{"weight_map": "x"}'),
        '{"weight_map": {"z_proj.weight": 3}}',
        '{"weight_map": {"z_proj.weight": null}}',
    ],
)
def test_a_broken_index_of_shards_is_refused_by_it(tmp_path: pathlib.Path, text: str) -> None:
    folder = write_component(tmp_path / "mar", mar_weights(), CONFIG.to_dict(), shards=2)
    (folder / _INDEX).write_text(text)
    assert str(folder / _INDEX) in _refusal(folder)


def test_a_missing_shard_is_refused_by_its_name(tmp_path: pathlib.Path) -> None:
    folder = write_component(tmp_path / "mar", mar_weights(), CONFIG.to_dict(), shards=2)
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    assert str(shard) in _refusal(folder)


def test_an_index_that_names_no_shards_is_refused(tmp_path: pathlib.Path) -> None:
    folder = write_component(tmp_path / "mar", mar_weights(), CONFIG.to_dict(), shards=2)
    write_json(folder / _INDEX, {"weight_map": {}})
    assert str(folder) in _refusal(folder)


def test_a_parameter_that_no_shard_holds_is_named(tmp_path: pathlib.Path) -> None:
    weights = mar_weights()
    missing = weights.pop("decoder_norm.bias")
    folder = write_component(tmp_path / "mar", weights, CONFIG.to_dict(), shards=2)
    index = json.loads((folder / _INDEX).read_text())
    index["weight_map"]["decoder_norm.bias"] = next(iter(index["weight_map"].values()))
    write_json(folder / _INDEX, index)
    assert f"decoder_norm.bias is missing but the config asks for {tuple(missing.shape)}" in _refusal(folder)


@pytest.mark.parametrize("way", ["../outside.safetensors", "{absolute}"])
def test_an_index_never_leads_out_of_its_folder(tmp_path: pathlib.Path, way: str) -> None:
    outside = write_safetensors(tmp_path / "outside.safetensors", mar_weights())
    folder = write_component(tmp_path / "mar", mar_weights(), CONFIG.to_dict(), shards=2)
    write_json(folder / _INDEX, {"weight_map": dict.fromkeys(mar_weights(), way.format(absolute=outside))})
    assert str(folder / "outside.safetensors") in _refusal(folder)


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", "null", "[" * 100_000, '{"a": 1}}'])
def test_json_that_is_no_object_is_refused_by_its_file(tmp_path: pathlib.Path, text: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(CheckpointError) as caught:
        read_json_object(file)
    assert str(file) in one_sentence(caught)


def test_a_folder_in_place_of_a_json_file_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_json_object(tmp_path)
    assert str(tmp_path) in one_sentence(caught)


def test_an_autoencoder_gives_a_model_of_its_own_and_changes_no_file(tmp_path: pathlib.Path) -> None:
    """Weights are mapped from their file: what is done to them must not reach it."""
    file = _vae_ckpt(tmp_path, vae_weights())
    before = file.read_bytes()
    vae = load_vae(file)
    assert isinstance(vae, AutoencoderKL)
    with torch.no_grad():
        vae.quant_conv.weight.zero_()
    assert file.read_bytes() == before
