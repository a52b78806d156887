"""ReCAP: what its released sampler computed, by every way in which images are drawn here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mar_export.torch_backends.torch_cpu import eager_generator
from runtime.artifact.manifest import Manifest
from runtime.generator import Generator
from runtime.model.recap_engines import RECAP_ENGINES
from runtime.sampling.constraints import default_sampling
from tests.helpers.distance import relative_l2
from tests.helpers.golden_cases import GOLDEN_TOLERANCE
from tests.helpers.recap_cases import CASES, EDGES, SHORT, RecapCase, recap_case, recap_checkpoint
from training.models.recap_reference import ReusedContext
from training.models.reference_loop import sample

LABELS = [2, 7]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> RecapCase:
    return recap_case(request.param)


@pytest.fixture(scope="module")
def eager() -> Generator:
    """The modules of the engines in PyTorch."""
    config = recap_checkpoint().model.config
    named = {name: f"{name}.onnx" for name in ("backbone", *RECAP_ENGINES)}
    manifest = Manifest(config, "none", (), default_sampling(config), "fp32", {}, named, {}, {})
    return eager_generator(manifest, recap_checkpoint().model)


@pytest.fixture(params=["torch", "onnxruntime", "openvino"], scope="module")
def generator(request: pytest.FixtureRequest, eager: Generator) -> Generator:
    if request.param == "torch":
        return eager
    return Generator.load(request.getfixturevalue("recap_artifact"), backend=request.param, threads=1)


def test_the_plan_is_that_of_the_released_sampler(case: RecapCase) -> None:
    plan, arrays = case.plan, case.arrays
    assert "".join("FL"[iteration.local] for iteration in plan.iterations) == case.kinds
    assert [iteration.local for iteration in plan.iterations] == arrays["iteration_is_local"].tolist()
    assert [iteration.count for iteration in plan.iterations] == arrays["tokens_per_step"].tolist()
    assert [iteration.table.steps for iteration in plan.iterations] == arrays["diffusion_steps_per_step"].tolist()
    scales = [iteration.guidance_scale for iteration in plan.iterations]
    np.testing.assert_allclose(scales, arrays["guidance"], rtol=1e-12)


def test_every_stage_is_that_of_the_released_sampler(case: RecapCase, generator: Generator) -> None:
    """z of the iterations that are stored, tokens after each iteration, and the latents."""
    arrays, batch = case.arrays, len(case.arrays["labels"])
    config, order = recap_checkpoint().model.config, arrays["generation_order"].astype(np.int64)
    found: list[NDArray[np.float32]] = []

    def recorded(engine: Callable[..., Any]) -> Callable[..., Any]:
        def call(**inputs: Any) -> Any:
            outputs = engine(**inputs)
            found.append(outputs[0])
            return outputs

        return call

    backbones = {name: recorded(getattr(generator.engines, name)) for name in ("backbone", *RECAP_ENGINES)}
    engines: Any = dataclasses.replace(generator.engines, **backbones)
    recording = Generator(generator.manifest, engines, "recorded")
    result = recording.generate(**{**case.request(), "order": order})  # z is stored in this order
    assert relative_l2(result.latents, arrays["latents_float64"]) <= GOLDEN_TOLERANCE
    steps = arrays["z_steps"].tolist()
    assert {case.kinds[step] for step in steps} == {"F", "L"}
    for step in steps:
        rows = found[step].reshape(-1, case.plan.iterations[step].count, batch, config.z_channels)  # [G, K, B, C]
        assert (
            relative_l2(rows.swapaxes(1, 2).reshape(arrays[f"z_{step}"].shape), arrays[f"z_{step}"]) <= GOLDEN_TOLERANCE
        )

    after: list[NDArray[np.float32]] = []
    noise = np.take_along_axis(arrays["noise"], order[None, :, :, None], axis=2).swapaxes(1, 2)
    labels = np.concatenate([arrays["labels"], np.full(batch, config.class_num)]).astype(np.int64)
    known = np.empty((0, batch, config.token_channels), np.float32)
    generator.loop(case.plan, labels, order.T, noise, known, lambda *state: after.append(state[2]().copy()))
    for iteration, tokens, expected in zip(case.plan.iterations, after, arrays["tokens_after"], strict=True):
        in_order = np.take_along_axis(expected, order[:, :, None], axis=1).swapaxes(0, 1)[: iteration.stop]
        assert relative_l2(tokens[: iteration.stop], in_order) <= GOLDEN_TOLERANCE


def test_the_eager_reference_keeps_what_the_released_sampler_keeps(
    case: RecapCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and values that the first local iteration attends to, and the latents."""
    arrays, contexts = case.arrays, list[ReusedContext]()
    predict = ReusedContext.predict

    def recorded(self: ReusedContext, iteration: Any, *rest: Any) -> Any:
        if iteration.local and not contexts:
            contexts.append(ReusedContext(recap_checkpoint().model))
            contexts[0].encoder, contexts[0].decoder = self.encoder, self.decoder
        return predict(self, iteration, *rest)

    monkeypatch.setattr(ReusedContext, "predict", recorded)
    latents = sample(
        recap_checkpoint().model,
        arrays["labels"].astype(np.int64),
        case.plan,
        case.unsorted_order,
        arrays["noise"],
    )
    assert relative_l2(latents, arrays["latents_float64"]) <= GOLDEN_TOLERANCE
    for half in ("encoder", "decoder"):
        heads = arrays[f"past_{half}"].shape[3]
        kept = torch.stack([torch.stack(pair) for pair in getattr(contexts[0], half)])  # [depth, 2, GB, rows, E]
        by_head = kept.unflatten(-1, (heads, -1)).transpose(3, 4).numpy()
        assert relative_l2(by_head, arrays[f"past_{half}"]) <= GOLDEN_TOLERANCE


@pytest.mark.parametrize("name", EDGES)
def test_engines_draw_what_eager_pytorch_draws(name: str, generator: Generator) -> None:
    """At the edges: caches of no row, groups of all tokens, groups in which guidance begins or ends."""
    settings = {**SHORT, **EDGES[name]}
    plan, config = generator.plan(**settings), generator.manifest.model
    random = np.random.default_rng(0)
    order = random.permuted(np.tile(np.arange(plan.length), (2, 1)), axis=1)
    noise = random.standard_normal((plan.noise_steps + 1, 2, plan.length, config.token_channels), np.float32)
    found = generator.generate(LABELS, order=order, noise=noise, **settings).latents
    expected = sample(recap_checkpoint().model, np.array(LABELS), plan, order, noise)
    assert relative_l2(found, expected) <= 1e-5
