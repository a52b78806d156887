"""The constraints of each kind of model: its default settings are valid, and settings of other models are refused."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
from typing import Any

import pytest

from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import MANIFEST
from runtime.errors import ArtifactError, ConfigError, RequestError
from runtime.model.config import LATER_FIELDS, ModelConfig
from runtime.sampling.constraints import (
    apply_constraints,
    default_sampling,
    fixed_settings,
    short_chain_settings,
    supported_samplers,
)
from runtime.sampling.plan import build_plan
from runtime.sampling.presets import PRESETS, resolve_sampling
from runtime.sampling.samplers import DIFFUSION_SAMPLERS, FLOW_SAMPLERS, SAMPLERS, VQ
from runtime.sampling.settings import Sampling

DIFFUSION, FLOW, DISTILLED = ModelConfig(), ModelConfig(head="flow"), ModelConfig(head="flow", distilled_steps=2)
VQ_MODEL, CAUSAL = ModelConfig(head="vq", codebook_size=16), ModelConfig(attention="causal", order="raster")
MODELS = {"diffusion": DIFFUSION, "flow": FLOW, "distilled": DISTILLED, "vq": VQ_MODEL, "causal": CAUSAL}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_the_default_settings_of_a_model_are_valid(model: ModelConfig) -> None:
    default = default_sampling(model)
    assert apply_constraints(model, default, dataclasses.asdict(default)) == default
    build_plan(model.tokens, default)
    assert default.sampler in supported_samplers(model)


def test_the_default_settings_of_a_diffusion_head_are_the_published_ones() -> None:
    assert default_sampling(DIFFUSION) == Sampling()


def test_the_default_settings_of_a_distilled_head_are_those_of_its_distillation() -> None:
    default = default_sampling(DISTILLED)
    assert (default.sampler, default.diffusion_steps, default.cfg_scale) == ("flow-euler", 2, 1.0)
    plan = build_plan(DISTILLED.tokens, default)
    assert plan.head_evaluations == 2 * len(plan.iterations)
    assert not any(iteration.guided for iteration in plan.iterations)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_uses_a_sampler_of_the_head(model: ModelConfig, preset: str) -> None:
    found = resolve_sampling(default_sampling(model), model, {"preset": preset})
    assert found.sampler in supported_samplers(model)
    assert found.iterations == (model.tokens if model is CAUSAL else PRESETS[preset]["iterations"])
    assert found.token_order == model.order
    assert found.cfg_interval == PRESETS[preset].get("cfg_interval", (0.0, 1.0))
    build_plan(model.tokens, found)
    for name, (value, _) in fixed_settings(model).items():
        assert getattr(found, name) == value


def test_presets_of_a_flow_head_differ() -> None:
    assert len({resolve_sampling(Sampling(), FLOW, {"preset": preset}) for preset in PRESETS}) == len(PRESETS)


@pytest.mark.parametrize(
    ("model", "other", "message"),
    [
        (DIFFUSION, FLOW_SAMPLERS, "the sampler of a diffusion head must be ddpm or ddim or dpm++2m or dpm++2m-sde"),
        (FLOW, DIFFUSION_SAMPLERS, "the sampler of a flow head must be flow-euler or flow-2m"),
    ],
    ids=["diffusion", "flow"],
)
def test_a_sampler_of_another_head_is_refused_in_one_line(
    model: ModelConfig, other: tuple[str, ...], message: str
) -> None:
    assert {*other, *supported_samplers(model)} == {*SAMPLERS}
    for sampler in (*other, VQ):
        with pytest.raises(RequestError) as refusal:
            resolve_sampling(default_sampling(model), model, {"sampler": sampler})
        assert str(refusal.value) == f"{message}, found {sampler!r}"


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (DISTILLED, {"diffusion_steps": 4}, "diffusion_steps of this model must be 2, found 4"),
        (DISTILLED, {"diffusion_steps": (2,) * 64}, "diffusion_steps of this model must be 2, found (2, 2,"),
        (DISTILLED, {"last_diffusion_steps": 1}, "last_diffusion_steps of this model must be None, found 1"),
        (DISTILLED, {"cfg_scale": 3.0}, "cfg_scale of this model must be 1.0, found 3.0; leave it out: guidance"),
        (DISTILLED, {"eta": 0.5}, "eta of this model must be 0.0, found 0.5"),
        (DISTILLED, {"sampler": "flow-2m"}, "sampler of this model must be flow-euler, found 'flow-2m'"),
        (VQ_MODEL, {"sampler": "ddim"}, "sampler of this model must be vq, found 'ddim'"),
        (VQ_MODEL, {"diffusion_steps": 4}, "diffusion_steps of this model must be 1, found 4; leave it out: a vq head"),
        (CAUSAL, {"iterations": 64}, "iterations of this model must be 256, found 64; leave it out: causal"),
        (CAUSAL, {"token_order": "random"}, "token_order of this model must be raster, found 'random'"),
    ],
    ids=str,
)
def test_a_setting_that_the_model_fixes_cannot_be_changed(
    model: ModelConfig, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError) as refusal:
        resolve_sampling(default_sampling(model), model, settings)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_short_chain_is_valid_for_every_model() -> None:
    for model in MODELS.values():
        chain = short_chain_settings(model, 3)
        sampling = apply_constraints(model, dataclasses.replace(default_sampling(model), **chain), chain)
        chains = {iteration.table.steps for iteration in build_plan(model.tokens, sampling).iterations}
        assert chains == {sampling.diffusion_steps} <= {1, 2, 3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "gan"}, "head must be one of diffusion, flow, vq, found 'gan'"),
        ({"head": None}, "head must be one of diffusion, flow, vq, found None"),
        ({"distilled_steps": 2}, "distilled_steps 2 belongs to the head flow, found diffusion"),
        ({"head": "flow", "distilled_steps": -1}, "distilled_steps must lie in 0..1000, found -1"),
        ({"head": "flow", "distilled_steps": 1.0}, "distilled_steps must be int, found 1.0"),
    ],
    ids=str,
)
def test_a_head_that_does_not_exist_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**changes)


def test_a_manifest_without_the_later_fields_of_a_model_loads(
    golden_artifacts: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    path = pathlib.Path(shutil.copytree(golden_artifacts["small"], tmp_path / "artifact"))
    value = json.loads((path / MANIFEST).read_text())
    for field in LATER_FIELDS:
        del value["model"][field]
    (path / MANIFEST).write_text(json.dumps(value))
    assert Artifact(path).manifest.model.head == "diffusion"


def test_a_manifest_whose_sampler_belongs_to_another_head_is_refused(
    golden_artifacts: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    path = pathlib.Path(shutil.copytree(golden_artifacts["small"], tmp_path / "artifact"))
    value = json.loads((path / MANIFEST).read_text())
    value["sampling"]["sampler"] = "flow-2m"
    (path / MANIFEST).write_text(json.dumps(value))
    with pytest.raises(ArtifactError, match=r"sampling: the sampler of a diffusion head must be .*, found 'flow-2m'"):
        Artifact(path)
