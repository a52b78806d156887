"""Folders in the format of diffusers whose parts are missing or damaged are refused."""

from __future__ import annotations

import json
import pathlib
import shutil

import pytest

from runtime.errors import CheckpointError, ConfigError
from tests.helpers.published_forms import (
    CONFIG,
    Weights,
    mar_weights,
    same_weights,
    write_component,
    write_json,
    write_pipeline,
    write_safetensors,
)
from tests.helpers.published_models import WEIGHTS_FILE, refusal
from tests.helpers.tiny_runs import one_sentence
from training.checkpoints.checkpoint import load_checkpoint
from training.checkpoints.published_files import read_json_object

_INDEX = f"{WEIGHTS_FILE}.index.json"


def test_a_pipeline_folder_without_a_model_is_refused(tmp_path: pathlib.Path) -> None:
    folder = write_pipeline(tmp_path / "pipeline")
    shutil.rmtree(folder / "transformer")
    message = refusal(folder)
    for part in (str(folder), "transformer", "mar", "model"):
        assert part in message


def test_a_component_folder_without_weights_is_refused(tmp_path: pathlib.Path) -> None:
    folder = write_component(tmp_path / "mar", mar_weights(), CONFIG.to_dict())
    (folder / WEIGHTS_FILE).rename(folder / "diffusion_flax_model.msgpack")
    message = refusal(folder)
    for part in (str(folder), WEIGHTS_FILE):
        assert part in message


def test_a_component_folder_whose_config_contradicts_its_tensors_is_refused(tmp_path: pathlib.Path) -> None:
    folder = write_component(tmp_path / "mar", mar_weights(), {**CONFIG.to_dict(), "encoder_depth": 3})
    assert "encoder_depth is 2 by its tensors, but 3 by" in refusal(folder, ConfigError)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"_class_name"', '{"_class_name": "MAR", "config": 3}'])
def test_the_error_about_a_component_folder_with_a_broken_config_names_the_config(
    tmp_path: pathlib.Path, text: str
) -> None:
    folder = write_component(tmp_path / "mar", mar_weights(), CONFIG.to_dict())
    (folder / "config.json").write_text(text)
    assert str(folder / "config.json") in refusal(folder)


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "3", "{}", '{"weight_map": null}', '{"weight_map": ["x.safetensors"]}', '{"weight_map": "x"}'),
        '{"weight_map": {"z_proj.weight": 3}}',
        '{"weight_map": {"z_proj.weight": null}}',
    ],
)
def test_the_error_about_a_broken_index_of_shards_names_it(tmp_path: pathlib.Path, text: str) -> None:
    folder = write_component(tmp_path / "mar", mar_weights(), CONFIG.to_dict(), shards=2)
    (folder / _INDEX).write_text(text)
    assert str(folder / _INDEX) in refusal(folder)


def test_the_error_about_a_missing_shard_names_it(tmp_path: pathlib.Path) -> None:
    folder = write_component(tmp_path / "mar", mar_weights(), CONFIG.to_dict(), shards=2)
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    assert str(shard) in refusal(folder)


def test_a_shard_of_a_name_that_no_file_can_have_is_missing(tmp_path: pathlib.Path) -> None:
    folder = write_component(tmp_path / "mar", mar_weights(), CONFIG.to_dict(), shards=2)
    write_json(folder / _INDEX, {"weight_map": dict.fromkeys(mar_weights(), "x" * 300)})
    assert f"no checkpoint file at {folder / ('x' * 300)}" in refusal(folder)


def test_an_index_that_names_no_shards_is_refused(tmp_path: pathlib.Path) -> None:
    folder = write_component(tmp_path / "mar", mar_weights(), CONFIG.to_dict(), shards=2)
    write_json(folder / _INDEX, {"weight_map": {}})
    assert str(folder) in refusal(folder)


def test_a_parameter_that_no_shard_holds_is_named(tmp_path: pathlib.Path) -> None:
    weights = mar_weights()
    missing = weights.pop("decoder_norm.bias")
    folder = write_component(tmp_path / "mar", weights, CONFIG.to_dict(), shards=2)
    index = json.loads((folder / _INDEX).read_text())
    index["weight_map"]["decoder_norm.bias"] = next(iter(index["weight_map"].values()))
    write_json(folder / _INDEX, index)
    assert f"decoder_norm.bias is missing but the config requires {tuple(missing.shape)}" in refusal(folder)


def test_an_old_single_file_beside_newer_shards_is_left_out_and_told(tmp_path: pathlib.Path) -> None:
    folder = write_component(tmp_path / "mar", mar_weights(), CONFIG.to_dict(), shards=2)
    write_safetensors(folder / WEIGHTS_FILE, {name: tensor * 0 for name, tensor in mar_weights().items()})
    loaded = load_checkpoint(folder)
    assert same_weights(loaded.model, mar_weights())
    expected = f"{folder}: {_INDEX} is followed, and {WEIGHTS_FILE} beside it left out; remove what is old"
    assert loaded.warnings == (expected,)


def test_a_single_file_that_the_index_names_is_no_contradiction(tmp_path: pathlib.Path) -> None:
    folder = write_component(tmp_path / "mar", mar_weights(), CONFIG.to_dict())
    write_json(folder / _INDEX, {"weight_map": dict.fromkeys(mar_weights(), WEIGHTS_FILE)})
    loaded = load_checkpoint(folder)
    assert same_weights(loaded.model, mar_weights())
    assert loaded.warnings == ()


def test_tensors_that_the_index_places_elsewhere_are_left_out_and_told(tmp_path: pathlib.Path) -> None:
    """A shard of an earlier model can hold parameters that the index now places in another shard."""
    folder = write_component(tmp_path / "mar", mar_weights(), CONFIG.to_dict(), shards=2)
    places = json.loads((folder / _INDEX).read_text())["weight_map"]
    shard = folder / places["class_emb.weight"]
    other = {name: tensor for name, tensor in mar_weights().items() if places[name] != shard.name}
    write_safetensors(shard, {**{name: tensor * 0 for name, tensor in other.items()}, **_placed(places, shard)})
    loaded = load_checkpoint(folder)
    assert same_weights(loaded.model, mar_weights())
    assert f"{shard}: holds {min(other)} and {len(other) - 1} others that {_INDEX} does not place" in loaded.warnings[0]


def _placed(places: dict[str, str], shard: pathlib.Path) -> Weights:
    """The parameters that the index places in a shard."""
    return {name: tensor for name, tensor in mar_weights().items() if places[name] == shard.name}


@pytest.mark.parametrize("way", ["../outside.safetensors", "{absolute}"])
def test_an_index_never_leads_out_of_its_folder(tmp_path: pathlib.Path, way: str) -> None:
    outside = write_safetensors(tmp_path / "outside.safetensors", mar_weights())
    folder = write_component(tmp_path / "mar", mar_weights(), CONFIG.to_dict(), shards=2)
    write_json(folder / _INDEX, {"weight_map": dict.fromkeys(mar_weights(), way.format(absolute=outside))})
    assert str(folder / "outside.safetensors") in refusal(folder)


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", "null", "[" * 100_000, '{"a": 1}}'])
def test_the_error_about_json_that_is_no_object_names_the_file(tmp_path: pathlib.Path, text: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(CheckpointError) as caught:
        read_json_object(file)
    assert str(file) in one_sentence(caught)


def test_a_folder_in_place_of_a_json_file_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_json_object(tmp_path)
    assert str(tmp_path) in one_sentence(caught)
