"""The first pass, kept by class: the same bits whether it is kept or computed, and computed no more than needed."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.generator import Generator
from runtime.loops import first_pass as first_pass_module
from runtime.model.config import ModelConfig
from runtime.model.engine_spec import Array
from runtime.requests.inpainting import Edit
from runtime.sampling.constraints import plan_for
from runtime.sampling.settings import Sampling
from tests.helpers.distance import relative_l2

KEPT: dict[str, Any] = {
    "iterations": 4,
    "diffusion_steps": 3,
    "start_timestep": 900,
    "cfg_scale": 2.0,
    "reuse_first_pass": True,
}
LABELS = [0, 3, 0, 5]
CLASSES = 4  # of LABELS, and the unconditional one


class Counted:
    """A generator with the engines of another, which counts the calls of its backbone that read no tokens."""

    def __init__(self, loaded: Generator) -> None:
        self.first_passes = 0

        def backbone(**inputs: Array) -> tuple[Array, ...]:
            self.first_passes += len(inputs["tokens"]) == 0
            return loaded.engines.backbone(**inputs)

        engines = dataclasses.replace(loaded.engines, backbone=backbone)
        self.generator = Generator(loaded.manifest, engines, "counted")

    def latents(self, labels: list[int], **settings: Any) -> NDArray[np.float32]:
        return self.generator.generate(labels, seed=1, **{**KEPT, **settings}).latents


@pytest.fixture(params=["onnxruntime", "openvino"], scope="module")
def loaded(request: pytest.FixtureRequest, golden_artifacts: dict[str, pathlib.Path]) -> Iterator[Generator]:
    with Generator.load(golden_artifacts["small"], backend=request.param, threads=1) as generator:
        yield generator


def test_a_kept_pass_has_the_bits_of_one_that_is_computed(loaded: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Computed for this batch, kept from it, kept from other batches, and given up at once."""
    counted = Counted(loaded)
    computed = counted.latents(LABELS)
    assert counted.first_passes == CLASSES
    assert counted.latents(LABELS).tobytes() == computed.tobytes()
    assert counted.first_passes == CLASSES

    other = Counted(loaded)
    for label in (5, 3, 0):
        other.latents([label], cfg_scale=1.0)
    assert other.first_passes == 3
    assert other.latents(LABELS).tobytes() == computed.tobytes()
    assert other.first_passes == CLASSES

    monkeypatch.setattr(first_pass_module, "CLASSES_KEPT", 1)
    keeps_one = Counted(loaded)
    assert keeps_one.latents(LABELS).tobytes() == computed.tobytes()
    assert keeps_one.first_passes == len(LABELS) + 1  # the unconditional class follows itself


def test_the_class_that_was_used_least_recently_is_given_up(loaded: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_pass_module, "CLASSES_KEPT", 2)
    counted = Counted(loaded)
    for label, passes in ((0, 1), (1, 2), (0, 2), (2, 3), (0, 3), (1, 4)):
        counted.latents([label], cfg_scale=1.0)
        assert counted.first_passes == passes


def test_the_image_is_that_of_an_ordinary_first_pass(loaded: Generator) -> None:
    for settings in ({}, {"cfg_scale": 1.0}, {"iterations": 1}, {"cfg_interval": (0.2, 1.0)}):
        found, expected = (
            loaded.generate(LABELS, seed=1, **{**KEPT, **settings, "reuse_first_pass": kept}).latents
            for kept in (True, False)
        )
        assert relative_l2(found, expected) <= 1e-5


def test_an_edit_has_no_such_pass(loaded: Generator) -> None:
    counted, mask = Counted(loaded), np.zeros((4, 4), bool)
    mask[1:3] = True
    known = np.random.default_rng(0).standard_normal((1, 8, 4, 4)).astype(np.float32)
    found, expected = (
        counted.generator.generate([0], edit=Edit(known, mask), **{**KEPT, "reuse_first_pass": kept}).latents
        for kept in (True, False)
    )
    assert found.tobytes() == expected.tobytes()
    assert counted.first_passes == 0


def test_lanes_keep_passes_of_their_own(golden_artifacts: dict[str, pathlib.Path]) -> None:
    with Generator.load(golden_artifacts["small"], threads=2, split_batches=True) as split:
        assert len(split.lanes) == 2
        found = [split.generate(LABELS, seed=1, **KEPT).latents for _ in range(2)]
        whole = Generator(split.manifest, split.engines, "").generate(LABELS, seed=1, **KEPT).latents
    assert found[0].tobytes() == found[1].tobytes()
    assert relative_l2(found[0], whole) <= 1e-5


@pytest.mark.parametrize(
    ("form", "settings", "kept"),
    [
        ({}, {}, True),
        ({"head": "vq", "codebook_size": 8}, {"sampler": "vq", "diffusion_steps": 1}, True),
        ({"attention": "causal"}, {}, False),
        ({}, {"recap_local_iterations": 1}, False),
        ({}, {"recap_local_iterations": 1, "recap_plain_iterations": 1}, True),
        ({}, {"reuse_first_pass": None}, False),
        ({}, {"reuse_first_pass": False}, False),
    ],
)
def test_the_plan_says_whether_the_pass_is_kept(form: dict[str, Any], settings: dict[str, Any], kept: bool) -> None:
    config = ModelConfig(img_size=16, vae_stride=4, **form)
    iterations = config.tokens if form.get("attention") else 4
    sampling = Sampling(**{"iterations": iterations, "diffusion_steps": 3, "reuse_first_pass": True, **settings})
    plan = plan_for(config, sampling)
    assert [iteration.of_class for iteration in plan.iterations] == [kept] + [False] * (iterations - 1)
    edit = plan_for(config, sampling, known=3)
    assert not any(iteration.of_class for iteration in edit.iterations)
