"""Batches in lanes: their images are those of a batch that is not split, and a failure ends all lanes."""

from __future__ import annotations

import dataclasses
import pathlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from runtime import loaded_artifact
from runtime.engine_clocks import with_clocks
from runtime.errors import BackendError
from runtime.generator import Generator
from runtime.loops.lanes import in_lanes as in_lanes_of
from runtime.loops.lanes import share_threads
from runtime.model.engine_spec import ENGINES, Array
from runtime.requests.inpainting import Edit
from runtime.sampling.plan import build_plan
from runtime.sampling.settings import Sampling

FAST: dict[str, Any] = {"iterations": 4, "diffusion_steps": "ddim5", "cfg_scale": 2.0}
MIB = 2**20


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def in_lanes(request: pytest.FixtureRequest, golden_artifacts: dict[str, pathlib.Path]) -> Iterator[Generator]:
    with Generator.load(golden_artifacts["small"], backend=request.param, threads=3, split_batches=True) as loaded:
        yield loaded


@pytest.fixture
def whole(in_lanes: Generator) -> Generator:
    """The same engines, whose batches are not split."""
    return Generator(in_lanes.manifest, in_lanes.engines, "")


def test_threads_and_memory_decide_the_number_of_lanes() -> None:
    assert share_threads(2, 12 * MIB) == [1, 1]
    assert share_threads(16, 12 * MIB) == [4, 3, 3, 3, 3]
    assert share_threads(8, 32 * MIB) == [4, 4]
    assert share_threads(8, 33 * MIB) == share_threads(1, MIB) == []


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_lanes_draw_the_images_of_a_whole_batch(in_lanes: Generator, whole: Generator, batch: int) -> None:
    labels = [number % 6 for number in range(batch)]
    assert len(in_lanes.lanes) == 3
    found, expected = (each.generate(labels, seed=4, **FAST) for each in (in_lanes, whole))
    np.testing.assert_allclose(found.latents, expected.latents, rtol=0, atol=1e-5)
    assert found.records == expected.records


def test_lanes_draw_the_edits_of_a_whole_batch(in_lanes: Generator, whole: Generator) -> None:
    mask = np.zeros((4, 4), bool)
    mask[1:3] = True
    known = np.random.default_rng(0).standard_normal((3, 8, 4, 4)).astype(np.float32)
    found, expected = (each.generate([0, 1, 2], edit=Edit(known, mask), **FAST) for each in (in_lanes, whole))
    np.testing.assert_allclose(found.latents, expected.latents, rtol=0, atol=1e-5)


def test_each_lane_gets_its_part_of_both_guidance_halves() -> None:
    got: list[dict[str, Any]] = []

    def lane(plan: Any, condition: Any, order: Any, noise: Any, known: Any, after_iteration: Any) -> Any:
        got.append({"condition": condition, "order": order, "noise": noise, "known": known})
        return order[..., None].astype(np.float32)

    condition, order = np.arange(6), np.arange(12).reshape(4, 3)  # two halves of three images of four tokens
    noise, known = np.arange(24.0).reshape(2, 4, 3, 1), np.arange(6.0).reshape(2, 3, 1)
    run = in_lanes_of([lane, lane], lane)
    tokens = run(build_plan(4, Sampling()), condition, order, noise, known, None)  # type: ignore[arg-type]
    assert np.array_equal(tokens[..., 0], order)
    for part, images in zip(sorted(got, key=lambda each: each["order"][0, 0]), ([0], [1, 2]), strict=True):
        assert part["condition"].tolist() == [*images, *(3 + image for image in images)]
        for name, array, axis in (("order", order, 1), ("noise", noise, 2), ("known", known, 1)):
            assert np.array_equal(part[name], array.take(images, axis)), name


def test_unfinished_images_of_all_lanes_are_shown(pixel_artifact: pathlib.Path) -> None:
    with Generator.load(pixel_artifact, threads=2, split_batches=True) as split:
        whole = Generator(split.manifest, split.engines, "")
        shown: dict[str, list[Any]] = {}
        for name, each in (("split", split), ("whole", whole)):
            images = shown[name] = []
            each.generate(
                [0, 1, 0],
                progress=lambda done, total, each=each, images=images: images.append(each.partial_images([2, 0])),
                **FAST,
            )
    assert len(shown["split"]) == 4
    for found, expected in zip(shown["split"], shown["whole"], strict=True):
        assert np.abs(found.astype(int) - expected).max() <= 1


def test_an_exception_of_the_progress_ends_all_lanes(in_lanes: Generator) -> None:
    def leave(done: int, total: int) -> None:
        raise KeyError("the client has gone")

    threads = threading.active_count()
    with pytest.raises(KeyError, match="the client has gone"):
        in_lanes.generate([0, 1, 2], progress=leave, **FAST)
    assert threading.active_count() == threads
    in_lanes.generate([0, 1, 2], **FAST)


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_the_failure_of_a_lane_reaches_the_caller(in_lanes: Generator, failing: int) -> None:
    def fail(**inputs: Array) -> tuple[Array, ...]:
        raise BackendError("no memory")

    lanes = list(in_lanes.lanes)
    lanes[failing] = dataclasses.replace(lanes[failing], denoise=fail)
    with pytest.raises(BackendError, match="no memory"):
        Generator(in_lanes.manifest, in_lanes.engines, "", lanes=lanes).generate([0, 1, 2], **FAST)


def test_clocks_add_up_the_seconds_of_all_lanes(in_lanes: Generator) -> None:
    timed, clocks = with_clocks(in_lanes)
    assert len(timed.lanes) == len(in_lanes.lanes)
    timed.generate([0, 1, 2], **FAST)
    assert all(clocks[name].seconds > 0 for name in ENGINES)


def test_a_model_on_a_gpu_is_not_split(
    golden_artifacts: dict[str, pathlib.Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = loaded_artifact.open_backend

    def with_loop(*arguments: Any) -> Any:
        backend = opened(*arguments)
        backend.loop = lambda config: lambda *rest: None  # type: ignore[method-assign, assignment, return-value]
        return backend

    monkeypatch.setattr(loaded_artifact, "open_backend", with_loop)
    with Generator.load(golden_artifacts["small"], threads=2, split_batches=True) as loaded:
        assert not loaded.lanes
