"""A NOVA as an artifact: its engines draw what the published code drew, on both backends of a processor."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mar_export.tensorrt.artifact_builds import BuildOptions, build_engines
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import Manifest
from runtime.errors import ArtifactError, RequestError
from runtime.generator import Generator
from runtime.model.latents import patchify
from runtime.requests.prompt_subjects import check_prompts
from runtime.sampling.constraints import plan_for
from tests.fakes.tensorrt.script import TensorRTScript
from tests.helpers.command_line import Mar
from tests.helpers.distance import relative_l2
from tests.helpers.golden_cases import GOLDEN_TOLERANCE
from tests.helpers.nova_cases import CASES, RENORMALIZED, channels_first, nova_case, nova_checkpoint
from tests.helpers.simulated_gpu import PlanWriter
from training.models.nova_reference import sample_request


@pytest.fixture
def exported(nova_artifacts: dict[str, pathlib.Path]) -> Any:
    """Returns the artifact of a golden model."""
    return nova_artifacts.__getitem__


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(("model", "file"), CASES)
def test_condition_z_tokens_and_latents_are_the_published_ones(
    exported: Any, model: str, file: str, backend: str
) -> None:
    case = nova_case(model, file)
    after: list[NDArray[np.float32]] = []
    rows: list[NDArray[np.float32]] = []  # what the backbone gave in each iteration
    with Generator.load(exported(model), backend=backend, threads=1) as loaded:

        def recorded(**inputs: NDArray[Any]) -> tuple[NDArray[Any], ...]:
            (z,) = loaded.engines.backbone(**inputs)
            rows.append(z.copy())
            return (z,)

        generator = Generator(loaded.manifest, dataclasses.replace(loaded.engines, backbone=recorded), backend)
        config, engine, guided = generator.manifest.model, generator.engines.condition, case.plan.guided
        assert engine is not None
        text, lengths = (array.numpy() for array in case.text(config, _float32()))
        condition, unconditional = engine(text=text, lengths=lengths)
        assert relative_l2(condition, case.arrays["c"]) <= 2e-6
        if guided:
            assert relative_l2(unconditional, case.arrays["c"][-1]) <= 2e-6

        def keep(done: int, total: int) -> None:
            unfinished = generator._unfinished
            assert unfinished is not None
            after.append(unfinished.tokens().swapaxes(0, 1).copy())

        result = generator.generate(
            prompt_embeds=case.prompts,
            order=case.arrays["order"],
            noise=case.noise,
            progress=keep,
            **case.settings,
        )
    order = case.arrays["order"]
    assert len(rows) == len(case.plan.iterations)
    published = (case.arrays["z_first"], case.arrays["z_second"])
    for iteration, z, expected in zip(case.plan.iterations, rows, published, strict=False):
        places = order[:, iteration.known : iteration.known + iteration.count]
        halves = 1 + iteration.guided
        of_places = np.take_along_axis(expected, np.tile(places, (halves, 1))[..., None], 1)  # [G B, K, C]
        found = z.reshape(halves, iteration.count, len(order), -1).swapaxes(1, 2).reshape(of_places.shape)
        assert relative_l2(found, of_places) <= GOLDEN_TOLERANCE
    for iteration, tokens, expected in zip(case.plan.iterations, after, case.arrays["tokens_after"], strict=True):
        known = order[:, : iteration.known + iteration.count, None]
        assert (
            relative_l2(tokens[:, : known.shape[1]], np.take_along_axis(channels_first(expected, config), known, 1))
            <= GOLDEN_TOLERANCE
        )
    assert relative_l2(result.latents, case.arrays["latents_float64"]) <= GOLDEN_TOLERANCE
    assert patchify(result.latents, config.patch_size).shape == after[-1].shape
    if "image_first" in case.arrays:
        decoded = case.arrays["image_first"][0].transpose(1, 2, 0) * 127.5 + 127.5
        assert result.images is not None
        assert np.abs(result.images[0] - np.clip(decoded, 0, 255)).max() <= 0.51  # rounded, where published cuts


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("model", RENORMALIZED)
def test_renormalized_guidance_is_the_published_one(exported: Any, model: str, backend: str) -> None:
    """The published code draws a whole image of noise in each iteration, so each one runs for itself here."""
    case = nova_case(model, "run2.npz")
    order = case.arrays["order"]
    with Generator.load(exported(model), backend=backend, threads=1) as generator:
        config: Any = generator.manifest.model
        inputs = {"prompt_embeds": case.prompts, "negative_prompt_embeds": case.negative_prompts}
        condition = check_prompts(inputs, config, (), None).condition(generator.engines, guided=True)
        assert relative_l2(condition, case.arrays["c"]) <= 2e-6
        tokens = np.zeros((config.tokens, len(order), config.token_channels), np.float32)
        for iteration, draws, expected in zip(
            case.plan.iterations, case.draws, case.arrays["tokens_after"], strict=True
        ):
            alone = dataclasses.replace(case.plan, iterations=(iteration,))
            noise = np.take_along_axis(draws, order[None, :, :, None], 2).swapaxes(1, 2)
            tokens = generator.loop(alone, condition, order.T, noise, tokens[: iteration.known], None)
            known = order[:, : iteration.known + iteration.count, None]
            published = np.take_along_axis(channels_first(expected, config), known, 1)
            assert relative_l2(tokens[: known.shape[1]].swapaxes(0, 1), published) <= GOLDEN_TOLERANCE


@pytest.mark.parametrize("cfg_renorm", [0.0, 0.7])
def test_renormalized_guidance_is_that_of_eager_pytorch(exported: Any, cfg_renorm: float) -> None:
    case, model = nova_case("case1", "run0.npz"), nova_checkpoint("case1").model
    settings = case.settings | {"cfg_renorm": cfg_renorm}
    request: dict[str, Any] = {"prompt_embeds": case.prompts, "order": case.arrays["order"], "noise": case.noise}
    with Generator.load(exported("case1"), threads=1) as generator:
        plan = generator.plan(**settings)
        found = generator.generate(**request, **settings).latents
        plain = generator.generate(**request, **case.settings).latents
        assert relative_l2(generator.generate(**request, **settings | {"cfg_renorm": 1.0}).latents, plain) <= 1e-5
    expected = sample_request(model, request, plan, case.arrays["order"], case.noise)
    assert relative_l2(found, expected) <= GOLDEN_TOLERANCE
    assert relative_l2(found, plain) > 1e-4


@pytest.mark.parametrize("cuda_graphs", [True, False], ids=["graphs", "calls"])
@pytest.mark.parametrize("options", [{}, {"cfg_truncation": 500.0}, {"cfg_renorm": 0.6}], ids=str)
def test_a_simulated_gpu_draws_what_the_host_draws(
    exported: Any, tensorrt: TensorRTScript, tmp_path: pathlib.Path, cuda_graphs: bool, options: dict[str, Any]
) -> None:
    case, artifact = nova_case("case0", "run0.npz"), tmp_path / "artifact"
    shutil.copytree(exported("case0"), artifact)
    settings: dict[str, Any] = {"iterations": 4, "diffusion_steps": 6, "cfg_scale": 3.0, **options}
    opened = Artifact(artifact)
    plans = [plan_for(opened.manifest.model, opened.manifest.resolve_sampling(settings))]
    builder: Any = PlanWriter()
    build_engines(opened, builder, plans, BuildOptions((1, 2, 2), force=True), lambda text: None)
    with Generator.load(artifact, threads=1) as host:
        expected = host.generate(prompt_embeds=case.prompts, seed=5, **settings).latents
    with Generator.load(artifact, backend="tensorrt", cuda_graphs=cuda_graphs) as gpu:
        found = gpu.generate(prompt_embeds=case.prompts, seed=5, **settings).latents
    assert relative_l2(found, expected) <= GOLDEN_TOLERANCE


def test_truncated_guidance_is_the_conditional_output_alone(exported: Any) -> None:
    """Truncated from the first step on, guidance has no effect; truncated nowhere, it is as without truncation."""
    case = nova_case("case0", "run0.npz")
    request: dict[str, Any] = {"prompt_embeds": case.prompts, "iterations": 3, "diffusion_steps": 4}
    with Generator.load(exported("case0"), threads=1) as generator:
        plain = generator.generate(**request, cfg_scale=1.0).latents
        guided = generator.generate(**request, cfg_scale=4.0).latents
        assert relative_l2(generator.generate(**request, cfg_scale=4.0, cfg_truncation=0.0).latents, guided) == 0
        halfway = generator.generate(**request, cfg_scale=4.0, cfg_truncation=600.0).latents
        assert relative_l2(halfway, guided) > 1e-3
        assert relative_l2(halfway, plain) > 1e-3


def _float32() -> Any:
    import torch

    return torch.float32


def test_the_manifest_names_the_family_and_its_engines(exported: Any) -> None:
    manifest = Artifact(exported("case0")).manifest
    assert manifest.model == nova_checkpoint("case0").model.config
    assert manifest.to_dict()["model"]["family"] == "nova"
    assert Artifact(exported("case1")).manifest.to_dict()["request"] == ["prompt_embeds"]
    assert manifest.to_dict()["request"] == ["prompt"]
    with pytest.raises(ArtifactError, match=r"request must be \['prompt'\], found \['labels'\]"):
        Manifest.from_dict({**manifest.to_dict(), "request": ["labels"]}, "manifest.json")
    assert manifest.engines.keys() == {
        "condition",
        "backbone",
        "conditioning",
        "denoise",
        "text_encoder",
        "decoder",
        "encoder",
    }
    assert manifest.sampling.mask_schedule == "cosine-rounded"


def test_a_plan_counts_the_condition_once_and_predicts_the_time(exported: Any, mar: Mar) -> None:
    ended = mar(f"plan {exported('case1')} --iterations 4 --diffusion-steps 3 --threads 1 --json")
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)
    assert list(document["operations"]) == ["condition", "backbone", "conditioning", "denoise"]
    assert ["condition" in iteration["operations"] for iteration in document["iterations"]] == [True] + [False] * 3
    assert document["seconds"] > 0


ROWS = np.zeros((3, 40), np.float32)
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "labels": (
        {"labels": [1]},
        "this model draws from prompts; give prompt, a list of texts, or prompt_embeds, a list",
    ),
    "nothing": (
        {},
        "the prompts are missing; give prompt, a list of texts, or prompt_embeds, a list of arrays [n, 40]",
    ),
    "no prompt": ({"prompt_embeds": []}, "the prompts are an empty list"),
    "another width": (
        {"prompt_embeds": [ROWS[:, :7]]},
        "prompt_embeds[0] must be floating point of shape [n, 40], found float32 [3, 7]",
    ),
    "too many rows": (
        {"prompt_embeds": [ROWS, np.zeros((17, 40))]},
        "prompt_embeds[1] must have at most 16 rows, found 17",
    ),
    "not finite": ({"prompt_embeds": [ROWS * np.inf]}, "prompt_embeds[0] holds values that are not finite"),
    "fewer negative prompts": (
        {"prompt_embeds": [ROWS, ROWS], "negative_prompt_embeds": [ROWS]},
        "there must be as many negative prompts as prompts, 2; found 1",
    ),
    "a single array": ({"prompt_embeds": ROWS}, "prompt_embeds must be a list of arrays [n, 40]"),
    "guidance below 1": ({"prompt_embeds": [ROWS], "cfg_scale": 0.5}, "cfg_scale of a NOVA must be at least 1"),
    "renormalized by more": ({"prompt_embeds": [ROWS], "cfg_renorm": 2}, "cfg_renorm must be a number in 0..1"),
    "a start": ({"prompt_embeds": [ROWS], "start_timestep": 900}, "start_timestep of this model must be None"),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_request_is_one_line(exported: Any, wrong: str) -> None:
    arguments, message = WRONG[wrong]
    with Generator.load(exported("case0"), threads=1) as generator, pytest.raises(RequestError) as caught:
        generator.generate(**arguments)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
