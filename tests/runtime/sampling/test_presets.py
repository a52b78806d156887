"""Presets: the settings they replace, the settings of the model they keep, and wrong names."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import MANIFEST
from runtime.cli.generate import generate
from runtime.cli.inspect import inspect
from runtime.cli.plan import plan
from runtime.errors import RequestError
from runtime.generator import Generator
from runtime.model.config import ModelConfig
from runtime.sampling.plan import build_plan
from runtime.sampling.presets import PRESETS, check_preset_name, resolve_sampling
from runtime.sampling.settings import RECAP_SETTINGS, Sampling
from runtime.storage.files import write_json

# Every value differs from the default.
OWN = Sampling(
    iterations=7,
    mask_schedule="linear",
    token_order="raster",
    cfg_scale=3.5,
    cfg_schedule="ramp",
    cfg_interval=(0.1, 0.6),
    sampler="ddim",
    diffusion_steps=33,
    last_diffusion_steps=9,
    step_schedule="cosine",
    start_timestep=900,
    temperature=0.8,
    eta=0.5,
    cfg_min=1.2,
    recap_local_iterations=1,
    recap_plain_iterations=2,
    recap_cache_buffer=False,
    reuse_first_pass=True,
    recap_diffusion_share=0.5,
)
OF_OTHER_FAMILIES = [
    "cfg_truncation",
    "cfg_renorm",
    "flow_shift",
    "low_res_iterations",
    "low_res_cfg_scale",
    "low_res_sampler",
    "low_res_diffusion_steps",
]
ANY_PRESET = sorted(PRESETS)[0]


def model_of(length: int, **changes: Any) -> ModelConfig:
    """A model whose images have `length` tokens."""
    return ModelConfig(img_size=16 * math.isqrt(length), **changes)


MODEL, SMALL = model_of(256), model_of(16)


def test_the_settings_of_these_tests_differ_from_every_default() -> None:
    own, default = dataclasses.asdict(OWN), dataclasses.asdict(Sampling())
    assert [name for name in own if own[name] == default[name]] == OF_OTHER_FAMILIES
    build_plan(256, OWN)


def test_a_request_without_a_preset_changes_only_the_given_settings() -> None:
    assert resolve_sampling(OWN, MODEL, {}) == OWN
    assert resolve_sampling(OWN, MODEL, {"preset": None, "eta": None}) == OWN
    assert resolve_sampling(OWN, MODEL, {"temperature": 0.9}) == dataclasses.replace(OWN, temperature=0.9)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_keeps_guidance_temperature_and_steps_that_it_does_not_have(preset: str) -> None:
    found = resolve_sampling(OWN, MODEL, {"preset": preset})
    named = PRESETS[preset]
    assert found.cfg_scale == named.get("cfg_scale", 3.5)
    assert found.temperature == named.get("temperature", 0.8)
    assert found.diffusion_steps == named.get("diffusion_steps", 33)


def test_some_presets_have_diffusion_steps_and_some_do_not() -> None:
    assert {"diffusion_steps" in named for named in PRESETS.values()} == {True, False}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_replaces_everything_else_the_model_has(preset: str) -> None:
    """So a preset means the same for every model."""
    found = resolve_sampling(OWN, MODEL, {"preset": preset})
    of_the_model = Sampling(cfg_scale=3.5, temperature=0.8, diffusion_steps=33, start_timestep=900)
    plain = resolve_sampling(of_the_model, MODEL, {"preset": preset})
    assert found == plain
    for name in set(PRESETS[preset]) - {"iterations"}:
        assert getattr(found, name) == PRESETS[preset][name]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Sampling)])
def test_single_settings_override_a_preset(preset: str, name: str) -> None:
    named = resolve_sampling(Sampling(), MODEL, {"preset": preset, name: getattr(OWN, name)})
    without = resolve_sampling(Sampling(), MODEL, {"preset": preset})
    assert named == dataclasses.replace(without, **{name: getattr(OWN, name)})


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("length", [1, 4, 16, 64, 256])
@pytest.mark.parametrize(
    "own",
    [
        Sampling(cfg_scale=2.0),
        OWN,
        Sampling(diffusion_steps="ddim20"),
        Sampling(diffusion_steps=10, start_timestep=999),
        Sampling(diffusion_steps=20, start_timestep=19),
        Sampling(iterations=1, diffusion_steps=(20,), start_timestep=19),
    ],
    ids=str,
)
def test_every_preset_gives_a_plan_for_any_size_and_model(preset: str, length: int, own: Sampling) -> None:
    plan = build_plan(length, resolve_sampling(own, model_of(length), {"preset": preset}))
    assert len(plan.iterations) <= length
    assert sum(iteration.count for iteration in plan.iterations) == length


def test_only_instant_keeps_the_first_pass_and_none_has_local_iterations() -> None:
    assert [name for name, settings in PRESETS.items() if "reuse_first_pass" in settings] == ["instant"]
    assert not any(set(RECAP_SETTINGS) & settings.keys() for settings in PRESETS.values())


@pytest.mark.parametrize("preset", ["nope", "", ANY_PRESET.upper(), 3, True, [ANY_PRESET]], ids=repr)
def test_a_preset_that_does_not_exist_is_refused_by_name(preset: object) -> None:
    with pytest.raises(RequestError) as refusal:
        resolve_sampling(OWN, MODEL, {"preset": preset})
    assert f"preset must be one of {', '.join(PRESETS)}, found {preset!r}" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_setting_that_does_not_exist_is_refused_beside_a_preset() -> None:
    with pytest.raises(RequestError, match="cfg_scal;"):
        resolve_sampling(OWN, MODEL, {"preset": ANY_PRESET, "cfg_scal": 1.0})


def test_presets_differ() -> None:
    assert len({resolve_sampling(Sampling(), MODEL, {"preset": preset}) for preset in PRESETS}) == len(PRESETS)


# Presets of an artifact's own.

_NO_RECAP: dict[str, Any] = dict.fromkeys(RECAP_SETTINGS)  # which needs engines that the artifact lacks
TUNED = dataclasses.replace(
    OWN, iterations=3, diffusion_steps=(9, 5, 4), last_diffusion_steps=None, cfg_scale=1.25, **_NO_RECAP
)


def test_a_preset_of_the_artifact_replaces_everything_except_overrides() -> None:
    presets = {"tuned": TUNED}
    assert resolve_sampling(Sampling(temperature=0.5), SMALL, {"preset": "tuned"}, presets) == TUNED
    named = resolve_sampling(OWN, SMALL, {"preset": "tuned", "cfg_scale": 4.0}, presets)
    assert named == dataclasses.replace(TUNED, cfg_scale=4.0)


def test_presets_of_an_artifact_do_not_change_the_built_in_ones() -> None:
    for preset in PRESETS:
        settings = {"preset": preset}
        assert resolve_sampling(OWN, MODEL, settings, {"tuned": TUNED}) == resolve_sampling(OWN, MODEL, settings)


def test_the_error_for_an_unknown_preset_lists_the_presets_of_the_artifact() -> None:
    with pytest.raises(RequestError, match=r"preset must be one of exact, .*, instant, tuned, found 'nope'"):
        resolve_sampling(OWN, SMALL, {"preset": "nope"}, {"tuned": TUNED})


@pytest.mark.parametrize(
    "name", [*PRESETS, "own", "", "a b", "-a", "../a", "a/b", "a\n", "é", "a" * 41, 3, None], ids=repr
)
def test_a_preset_name_that_is_built_in_or_has_other_characters_is_refused(name: object) -> None:
    with pytest.raises(RequestError) as refusal:
        check_preset_name(name)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["calibrated", "a", "40ms", "low_error-2.1", "a" * 40])
def test_other_preset_names_are_accepted(name: str) -> None:
    check_preset_name(name)


@pytest.fixture
def tuned(golden_artifacts: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> pathlib.Path:
    """An artifact with a preset of its own."""
    path = pathlib.Path(shutil.copytree(golden_artifacts["small"], tmp_path / "artifact"))
    manifest = dataclasses.replace(Artifact(path).manifest, presets={"tuned": TUNED})
    write_json(path / MANIFEST, manifest.to_dict())
    return path


def test_every_command_uses_a_preset_of_the_manifest(tuned: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert Artifact(tuned).manifest.presets == {"tuned": TUNED}
    file = tmp_path / "latents.npy"
    line = [str(tuned), "--class=1", "--seed=3", "--preset=tuned", f"--save-latents={file}", "--threads=1"]
    ended = CliRunner().invoke(generate, line)
    assert ended.exit_code == 0, ended.output
    with Generator.load(tuned, threads=1) as generator:
        found = generator.generate([1], seed=3, preset="tuned")
        expected = generator.generate([1], seed=3, **dataclasses.asdict(TUNED))
    assert [iteration.table.steps for iteration in found.plan.iterations] == [9, 5, 4]
    assert np.load(file).tobytes() == found.latents.tobytes() == expected.latents.tobytes()
    planned = CliRunner().invoke(plan, [str(tuned), "--preset=tuned", "--no-time"])
    assert planned.output.splitlines()[0] == TUNED.describe()
    assert "18 head evaluations" in planned.output
    assert f"preset      tuned: {TUNED.describe()}\n" in CliRunner().invoke(inspect, [str(tuned)]).output


def test_steps_can_be_listed_one_by_one_on_the_command_line(artifact: pathlib.Path) -> None:
    line = [str(artifact), "--no-time", "--iterations=3"]
    planned = CliRunner().invoke(plan, [*line, "--diffusion-steps=9,5,4"])
    assert "18 head evaluations" in planned.output
    refused = CliRunner().invoke(plan, [*line, "--diffusion-steps=9,five,4"]).exception
    assert str(refused) == "--diffusion-steps must be N, ddimN or N,N,..., found '9,five,4'"


# Through the surfaces. A start below the last timesteps keeps the values of this briefly trained head small.

NAMED: dict[str, Any] = {"start_timestep": 900, "cfg_scale": 2.0}


@pytest.fixture(scope="module")
def artifact(golden_artifacts: dict[str, pathlib.Path]) -> pathlib.Path:
    return golden_artifacts["small"]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_generator_generates_with_a_preset(artifact: pathlib.Path, preset: str) -> None:
    with Generator.load(artifact, threads=1) as generator:
        settings = dataclasses.asdict(resolve_sampling(Sampling(), SMALL, {"preset": preset, **NAMED}))
        assert dataclasses.asdict(generator.sampling(preset=preset, **NAMED)) == settings
        found = generator.generate([1, 2], seed=3, preset=preset, **NAMED)
        expected = generator.generate([1, 2], seed=3, **settings)
        own = generator.generate([1, 2], seed=3, iterations=3, **NAMED)
    assert found.latents.tobytes() == expected.latents.tobytes()
    assert found.latents.tobytes() != own.latents.tobytes()
    assert len(found.plan.iterations) <= 16


@pytest.mark.parametrize("preset", PRESETS)
def test_the_command_generates_with_a_preset(artifact: pathlib.Path, tmp_path: pathlib.Path, preset: str) -> None:
    file = tmp_path / "latents.npy"
    options = [f"--preset={preset}", "--start-timestep=900", "--cfg-scale=2.0", "--iterations=3", "--threads=1"]
    line = [str(artifact), "--class=1", "--class=2", "--seed=3", f"--save-latents={file}", *options]
    ended = CliRunner().invoke(generate, line)
    assert ended.exit_code == 0, ended.output
    with Generator.load(artifact, threads=1) as generator:
        expected = generator.generate([1, 2], seed=3, preset=preset, iterations=3, **NAMED)
    assert len(expected.plan.iterations) == 3
    assert np.load(file).tobytes() == expected.latents.tobytes()
