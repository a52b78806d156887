"""Sampling settings: typed overrides for every field, and complete settings as an argument of a request."""

from __future__ import annotations

import dataclasses
import inspect
import pathlib
from collections.abc import Iterator
from typing import get_type_hints

import pytest

from runtime.errors import RequestError
from runtime.generator import Generator
from runtime.model.config import ModelConfig
from runtime.sampling.constraints import default_sampling
from runtime.sampling.presets import resolve_sampling
from runtime.sampling.settings import Sampling, SamplingOverrides, SamplingRequest

OWN = Sampling(iterations=5, cfg_scale=2.0, diffusion_steps=7)
OTHER = Sampling(iterations=3, sampler="ddim", diffusion_steps=(9, 5, 4), temperature=0.5, start_timestep=900)
DISTILLED = ModelConfig(head="flow", distilled_steps=2)


@pytest.fixture(scope="module")
def generator(golden_artifacts: dict[str, pathlib.Path]) -> Iterator[Generator]:
    with Generator.load(golden_artifacts["small"], threads=1) as loaded:
        yield loaded


def test_overrides_have_the_fields_of_sampling_and_their_types_or_none() -> None:
    types = get_type_hints(Sampling)
    assert list(types) == [field.name for field in dataclasses.fields(Sampling)]
    assert get_type_hints(SamplingOverrides) == {name: type_ | None for name, type_ in types.items()}
    assert not SamplingOverrides.__required_keys__


def test_a_request_has_the_overrides_a_preset_and_complete_settings() -> None:
    expected = get_type_hints(SamplingOverrides) | {"preset": str | None, "sampling": Sampling | None}
    assert get_type_hints(SamplingRequest) == expected
    assert not SamplingRequest.__required_keys__


@pytest.mark.parametrize("method", [Generator.generate, Generator.generate_batches, Generator.sampling, Generator.plan])
def test_every_method_of_a_generator_takes_the_settings_of_a_request(method: object) -> None:
    assert callable(method)
    of_images = method in (Generator.generate, Generator.generate_batches)
    expected = "Unpack[ImageRequest]" if of_images else "Unpack[SamplingRequest]"
    assert inspect.signature(method).parameters["settings"].annotation == expected


def test_complete_settings_replace_the_own_ones_and_overrides_change_them() -> None:
    model = ModelConfig()
    assert resolve_sampling(OWN, model, {"sampling": OTHER}) == OTHER
    changed = resolve_sampling(OWN, model, {"sampling": OTHER, "cfg_scale": 4.0, "eta": None})
    assert changed == dataclasses.replace(OTHER, cfg_scale=4.0)
    assert resolve_sampling(OWN, model, {"sampling": None, "preset": None}) == OWN


def test_a_preset_beside_complete_settings_is_refused() -> None:
    with pytest.raises(RequestError, match="give either preset or sampling, found preset 'fast' and sampling"):
        resolve_sampling(OWN, ModelConfig(), {"sampling": OTHER, "preset": "fast"})


def test_complete_settings_that_the_model_does_not_allow_are_refused_and_not_changed() -> None:
    fixed = default_sampling(DISTILLED)
    assert resolve_sampling(OWN, DISTILLED, {"sampling": fixed}) == fixed
    with pytest.raises(RequestError, match=r"cfg_scale of this model must be 1\.0, found 3\.0"):
        resolve_sampling(OWN, DISTILLED, {"sampling": dataclasses.replace(fixed, cfg_scale=3.0)})


def test_images_of_complete_settings_are_those_of_the_same_single_settings(generator: Generator) -> None:
    single = dataclasses.asdict(OTHER)
    found, expected = generator.generate([1, 2], sampling=OTHER), generator.generate([1, 2], **single)
    assert found.latents.tobytes() == expected.latents.tobytes()
    (batch,) = generator.generate_batches([1, 2], 2, sampling=OTHER)
    assert batch.latents.tobytes() == expected.latents.tobytes()
    assert generator.sampling(sampling=OTHER) == OTHER
    assert [iteration.table.steps for iteration in generator.plan(sampling=OTHER).iterations] == [9, 5, 4]


def test_settings_change_by_name_and_none_keeps_a_setting() -> None:
    own = Sampling(iterations=5, cfg_scale=2.0)
    assert own.changed({}) == own
    assert own.changed({"iterations": None, "cfg_scale": 3.0}) == Sampling(iterations=5, cfg_scale=3.0)
    with pytest.raises(RequestError, match=r"unknown sampling settings .*cfg_scal;"):
        own.changed({"cfg_scal": 3.0})
