"""The sizes that engines are built for, against the sizes that the sampling loop uses."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mar_export.cli import build as build_cli
from mar_export.tensorrt.artifact_builds import plans_to_build
from mar_export.tensorrt.optimization_profiles import axis_ranges, input_shapes
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import MANIFEST
from runtime.loops import host_loop
from runtime.loops.host_loop import Engines, run_plan
from runtime.model.engine_spec import (
    BACKBONE,
    CONDITIONING,
    DECODER,
    DENOISE,
    ENCODER,
    EngineSpec,
)
from runtime.model.families import engine_specs
from runtime.sampling.plan import CFG_SCHEDULES, MASK_SCHEDULES, STEP_SCHEDULES, Plan, build_plan
from runtime.sampling.presets import PRESETS, resolve_sampling
from runtime.sampling.rng import TOKEN_ORDERS
from runtime.sampling.samplers import DIFFUSION_SAMPLERS
from runtime.sampling.settings import Sampling
from runtime.storage.files import write_json
from tests.helpers.command_line import Mar
from tests.helpers.tensorrt_builds import (
    BATCH,
    TINY_KL,
    InstantBuilder,
    manifest_of,
    textual_artifact,
)

INVALID_BATCHES = (
    *("''", "1", "1:2", "1:2:3:4", "a:b:c", "1.0:1:1", "1:1:", "1-1-8", "1:1:0x8"),
    *("0:1:2", "2:1:3", "1:3:2", "-1:1:1", "1:1:4097", f"1:1:{'9' * 30}", f"1:1:{'9' * 5000}"),
)


@pytest.mark.parametrize("batch", INVALID_BATCHES, ids=lambda batch: batch[:12])
def test_wrong_batch_is_one_clear_line(unbuilt_artifact: pathlib.Path, mar: Mar, batch: str) -> None:
    ended = mar(f"build {unbuilt_artifact} --target tensorrt-rtx --architecture sm_89 --batch={batch}")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("mar: --batch must ")
    assert ended.err.count("\n") == 1
    assert len(ended.err) < 200
    assert not (unbuilt_artifact / "engines").exists()


def test_command_builds_for_the_plan_of_its_sampling_options(
    tmp_path: pathlib.Path, mar: Mar, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen tokens, one an iteration, always guided; the tokenizer is never guided, and images come singly too."""
    builder = InstantBuilder()
    monkeypatch.setattr(build_cli, "TensorRTBuilder", lambda target, architectures: builder)
    path = textual_artifact(tmp_path / "artifact")
    plan = "--iterations 16 --cfg-scale 3 --diffusion-steps 25"
    ended = mar(f"build {path} --target tensorrt-rtx {plan} --batch 2:3:4")
    assert (ended.code, ended.err) == (0, "")
    backbone, rows = builder.profiles[BACKBONE], builder.profiles[DENOISE]
    assert backbone["tokens"] == ((0, 2, 4), (7, 3, 4), (15, 4, 4))
    assert backbone["predict"] == ((1, 2), (1, 3), (1, 4))
    assert backbone["rest"] == ((0, 2), (7, 3), (15, 4))
    assert backbone["labels"] == ((4,), (6,), (8,))
    assert rows["x"] == ((2, 4), (3, 4), (4, 4))
    assert [shape[0] for shape in rows["modulation"]] == [4, 6, 8]
    assert rows["coefficients"] == ((10,),) * 3
    assert builder.profiles[CONDITIONING]["timesteps"] == ((1,), (25,), (25,))
    assert builder.profiles[DECODER] == {"latents": ((1, 4, 4, 4), (3, 4, 4, 4), (4, 4, 4, 4))}
    assert builder.profiles[ENCODER] == {"image": ((1, 3, 8, 8), (3, 3, 8, 8), (4, 3, 8, 8))}


def image_plans(plans: Sequence[Plan]) -> list[Plan]:
    """Those of whole images, where nothing is known before the first iteration."""
    return [plan for plan in plans if not plan.iterations[0].known]


@pytest.mark.parametrize("preset", ["exact", "fast"])
def test_ranges_of_a_preset_include_every_edit(preset: str, tmp_path: pathlib.Path) -> None:
    """Of 256 tokens, where a whole image has few of the numbers of known tokens that an edit can have."""
    artifact = Artifact(textual_artifact(tmp_path / "artifact", config=dataclasses.replace(TINY_KL, img_size=32)))
    manifest = artifact.manifest
    assert manifest.model.tokens == 256
    ranges = axis_ranges(plans_to_build(artifact, {"preset": preset}), BATCH)
    sampling = manifest.resolve_sampling({"preset": preset})
    for known in range(1, 256):
        for iteration in build_plan(256, sampling, known).iterations:
            rest = 256 - iteration.known - iteration.count
            for axis, size in {"V": iteration.known, "K": iteration.count, "R": rest}.items():
                assert ranges[axis][0] <= size <= ranges[axis][2], (known, axis, size)
    of_whole = axis_ranges([build_plan(256, sampling)], BATCH)
    assert {axis: usual for axis, (_, usual, _) in ranges.items()} == {
        axis: usual for axis, (_, usual, _) in of_whole.items()
    }


def test_modulation_of_the_largest_sizes_stays_below_2_to_the_31() -> None:
    """Their product, the modulation, would pass 2**31 values, which TensorRT does not count beyond."""
    wide = dataclasses.replace(TINY_KL, img_size=32, diffloss_d=12, diffloss_w=1536)  # the head of MAR-H
    plans = [build_plan(256, resolve_sampling(Sampling(cfg_scale=2.9), wide, {"preset": name})) for name in PRESETS]
    ranges = axis_ranges(plans, (1, 1, 8))
    assert ranges["T"][2] * ranges["GN"][2] * wide.modulation_channels < 2**31


def test_default_plans_are_the_artifacts_own_and_every_preset(tmp_path: pathlib.Path) -> None:
    path = textual_artifact(tmp_path / "artifact")
    write_json(
        path / MANIFEST,
        dataclasses.replace(manifest_of(path), sampling=Sampling(iterations=3, diffusion_steps=7)).to_dict(),
    )
    artifact = Artifact(path)
    nothing = {"preset": None, "iterations": None, "cfg_scale": None}
    plans = image_plans(plans_to_build(artifact, nothing))
    assert [len(plan.iterations) for plan in plans] == [3, 16, 16, 14, 10, 6]
    assert [plan.diffusion_steps for plan in plans] == [7, 7, 25, 14, 10, 6]
    assert len(plans) == 1 + len(PRESETS)
    own = dataclasses.replace(manifest_of(path), presets={"mine": Sampling(iterations=2, diffusion_steps=(5, 4))})
    write_json(path / MANIFEST, own.to_dict())
    plans = image_plans(plans_to_build(Artifact(path), nothing))
    assert [len(plan.iterations) for plan in plans] == [3, 16, 16, 14, 10, 6, 2]
    (named,) = image_plans(plans_to_build(artifact, {**nothing, "preset": "fast"}))
    assert (len(named.iterations), named.diffusion_steps) == (14, 14)
    (changed,) = image_plans(plans_to_build(artifact, {**nothing, "iterations": 2}))
    assert (len(changed.iterations), changed.diffusion_steps) == (2, 7)


class RecordingEngine:
    """An engine that returns zeros, and notes the shapes it is called with."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.calls: list[dict[str, tuple[int, ...]]] = []

    def __call__(self, **inputs: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        self.calls.append({name: array.shape for name, array in inputs.items()})
        axes = {
            axis: size
            for tensor in self.spec.inputs
            for axis, size in zip(tensor.shape, inputs[tensor.name].shape, strict=True)
            if isinstance(axis, str)
        }
        return tuple(np.zeros(tensor.sized(axes), tensor.dtype) for tensor in self.spec.outputs)


def shapes_of(plans: Sequence[Plan], images: int) -> dict[str, list[dict[str, tuple[int, ...]]]]:
    """The shapes that the loop calls each engine with."""
    config = TINY_KL
    engines = {name: RecordingEngine(spec) for name, spec in engine_specs(config).items()}
    for plan in plans:
        run_plan(
            Engines(**engines),
            config,
            plan,
            condition=np.zeros(2 * images, np.int64),
            order=np.tile(np.arange(config.tokens)[:, None], images),
            noise=np.zeros((plan.diffusion_steps + 1, config.tokens, images, config.token_channels), np.float32),
            known=np.zeros((plan.iterations[0].known, images, config.token_channels), np.float32),
            after_iteration=None,
        )
    return {name: engine.calls for name, engine in engines.items()}


@st.composite
def samplings(draw: st.DrawFn) -> Sampling:
    """Any settings that there is a plan of, with chains short enough to run many."""
    sampler = draw(st.sampled_from(DIFFUSION_SAMPLERS))
    steps: int | str = draw(st.integers(2, 9))
    last = start = None
    if sampler in ("ddpm", "ddim") and draw(st.booleans()):
        steps = draw(st.sampled_from(["ddim2", "ddim5", "ddim8"]))
    else:
        last = draw(st.none() | st.integers(2, int(steps)))
        start = draw(st.none() | st.integers(int(steps) - 1, 998))
    low, high = sorted(draw(st.tuples(st.floats(0, 1), st.floats(0, 1))))
    return Sampling(
        iterations=draw(st.none() | st.integers(1, TINY_KL.tokens)),
        mask_schedule=draw(st.sampled_from(MASK_SCHEDULES)),
        token_order=draw(st.sampled_from(TOKEN_ORDERS)),
        cfg_scale=draw(st.sampled_from([0.0, 1.0, 2.5])),
        cfg_schedule=draw(st.sampled_from(CFG_SCHEDULES)),
        cfg_interval=(low, high),
        sampler=sampler,
        diffusion_steps=steps,
        last_diffusion_steps=last,
        step_schedule=draw(st.sampled_from(STEP_SCHEDULES)),
        start_timestep=start,
        temperature=draw(st.sampled_from([0.5, 1.0])),
        eta=draw(st.sampled_from([0.0, 1.0])) if sampler == "ddim" else 0.0,
    )


def all_plans(drawn: Sequence[Sampling], known: int) -> list[Plan]:
    """Those of whole images, and of an edit that begins with `known` tokens."""
    return [build_plan(TINY_KL.tokens, sampling, start) for sampling in drawn for start in {0, known}]


@settings(max_examples=40)
@given(
    st.lists(samplings(), min_size=1, max_size=3),
    st.tuples(*[st.integers(1, 5)] * 3).map(sorted),
    st.data(),
    st.sampled_from([1, 20_000, 16 * 2**20]),
)
def test_ranges_include_every_size_that_the_loop_uses(
    drawn: list[Sampling], batch: list[int], data: st.DataObject, modulation_bytes: int
) -> None:
    plans = all_plans(drawn, data.draw(st.integers(0, TINY_KL.tokens - 1)))
    least, usual, most = batch
    ranges = axis_ranges(plans, (least, usual, most))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(host_loop, "_MODULATION_BYTES", modulation_bytes)
        for images in {least, data.draw(st.integers(least, most)), most}:
            for name, calls in shapes_of(plans, images).items():
                built_for = input_shapes(engine_specs(TINY_KL)[name], ranges, (least, usual, most))
                assert calls
                for call in calls:
                    assert call.keys() == built_for.keys()
                    for tensor, shape in call.items():
                        low, middle, high = (np.array(size) for size in built_for[tensor])
                        assert len(shape) == len(low)
                        assert (low <= shape).all(), (name, tensor, shape)
                        assert (high >= shape).all(), (name, tensor, shape)
                        assert (low <= middle).all()
                        assert (middle <= high).all()


@settings(max_examples=30)
@given(
    st.lists(samplings(), min_size=1, max_size=3),
    st.tuples(*[st.integers(1, 5)] * 3).map(sorted),
    st.integers(0, TINY_KL.tokens - 1),
)
def test_ranges_are_no_larger_than_the_sizes_that_the_loop_uses(
    drawn: list[Sampling], batch: list[int], known: int
) -> None:
    """The ends of every range are reached; but a chain may always be cut into runs of any length.

    And the rows of all halves are a whole multiple of those of one, as the compiler tries at all three sizes.
    """
    plans = all_plans(drawn, known)
    least, usual, most = batch
    ranges = axis_ranges(plans, (least, usual, most))
    seen: dict[str, set[int]] = {axis: set() for axis in ranges}
    for images in (least, most):
        for name, calls in shapes_of(plans, images).items():
            for call, tensor in itertools.product(calls, engine_specs(TINY_KL)[name].inputs):
                for axis, size in zip(tensor.shape, call[tensor.name], strict=True):
                    if isinstance(axis, str):
                        seen[axis].add(size)
    seen["T"].add(1)
    for axis in ("Q", "O"):  # prompts, and unknown tokens of an engine that gets all positions: a MAR has neither
        assert not seen.pop(axis)
        assert ranges.pop(axis)
    all_rows, called = ranges.pop("GN"), seen.pop("GN")
    assert all(every in (one, 2 * one) for one, every in zip(ranges["N"], all_rows, strict=True))
    assert all_rows[0] <= min(called)
    assert max(called) <= all_rows[2]
    assert {axis: (low, high) for axis, (low, _, high) in ranges.items()} == {
        axis: (min(sizes), max(sizes)) for axis, sizes in seen.items()
    }
