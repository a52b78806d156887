"""A UVA as an artifact: its engines and `Policy` act as the published code did, on both backends of a processor."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import shutil
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from mar_export.artifact.export import export_artifact
from mar_export.tensorrt.artifact_builds import BuildOptions, build_engines
from mar_export.tensorrt.optimization_profiles import axis_ranges
from runtime import Policy
from runtime.artifact.artifact_folder import Artifact
from runtime.errors import BackendError, RequestError
from runtime.generator import Generator
from runtime.model.families import FAMILIES, check_supported, engine_specs
from runtime.requests.frames import encoder_input
from runtime.sampling.constraints import default_sampling, plan_for
from tests.fakes.tensorrt.script import TensorRTScript
from tests.helpers.distance import relative_l2
from tests.helpers.fake_generators import fake_generator
from tests.helpers.golden_cases import GOLDEN_TOLERANCE
from tests.helpers.simulated_gpu import PlanWriter
from tests.helpers.tensorrt_builds import RTX_GPUS, build_graph
from tests.helpers.uva_cases import CASES, UvaCase, uva_case, uva_checkpoint


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Exports a golden model once."""

    @functools.cache
    def export(model: str) -> pathlib.Path:
        out = tmp_path_factory.mktemp("uva") / model
        export_artifact(uva_checkpoint(model), out, lambda line: None)
        return out

    return export


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(("model", "file"), CASES)
def test_rows_and_actions_are_the_published_ones(exported: Any, model: str, file: str, backend: str) -> None:
    case = uva_case(model, file)
    with Policy.load(exported(model), backend=backend, threads=1) as policy:
        engines = policy._generator.engines
        assert engines.condition is not None
        (embedded,) = engines.condition(**case.observation)
        robots = len(embedded)
        predict = np.tile(np.arange(16)[:, None], robots)
        (z,) = engines.backbone(predict=predict, condition=embedded)  # [16 B, C], steps first
        actions = policy.act(case.observation, noise=case.noise, **case.settings)
    if "embedded_first_every4" in case.arrays:
        assert relative_l2(embedded[:1, ::4], case.arrays["embedded_first_every4"]) <= 2e-6
    assert relative_l2(z.reshape(16, robots, -1).swapaxes(0, 1), case.arrays["rows"]) <= 1e-5
    assert (actions.dtype, actions.shape) == (np.float32, case.arrays["action_pred"].shape)
    assert relative_l2(actions, case.arrays["action_pred_float64"]) <= GOLDEN_TOLERANCE


@pytest.mark.parametrize("cuda_graphs", [True, False], ids=["graphs", "calls"])
def test_a_simulated_gpu_acts_as_the_host(
    exported: Any, tensorrt: TensorRTScript, tmp_path: pathlib.Path, cuda_graphs: bool
) -> None:
    case, artifact = uva_case("case1", "run0.npz"), tmp_path / "artifact"
    shutil.copytree(exported("case1"), artifact)
    settings = {"diffusion_steps": 6, "sampler": "ddim"}
    opened = Artifact(artifact)
    plans = [plan_for(opened.manifest.model, opened.manifest.resolve_sampling(settings))]
    builder: Any = PlanWriter()
    build_engines(opened, builder, plans, BuildOptions((1, 2, 2), force=True), lambda text: None)
    with Policy.load(artifact, threads=1) as host:
        expected = host.act(case.observation, seed=5, **settings)
    with Policy.load(artifact, backend="tensorrt", cuda_graphs=cuda_graphs) as gpu:
        found = gpu.act(case.observation, seed=5, **settings)
    assert relative_l2(found, expected) <= GOLDEN_TOLERANCE


# Each engine once, and behind `slow` in both precisions.
@pytest.mark.parametrize(
    ("engine", "precision"),
    [
        ("condition", "fp16"),
        ("backbone", "bf16"),
        ("conditioning", "bf16"),
        ("denoise", "fp16"),
        *(
            pytest.param(engine, precision, marks=pytest.mark.slow)
            for engine in ("condition", "backbone", "conditioning", "denoise")
            for precision in ("fp16", "bf16")
        ),
    ],
)
def test_graphs_in_lower_precision_build_with_tensorrt_rtx(engine: str, precision: str, tmp_path: pathlib.Path) -> None:
    if sys.platform != "linux":
        pytest.importorskip("tensorrt_rtx")
    from mar_export.graphs.engine_modules import loop_modules
    from mar_export.onnx_export.mixed_precision import DTYPES, to_precision

    model = uva_checkpoint("case1").model
    spec = engine_specs(model.config)[engine]
    module = to_precision(loop_modules(model)[engine], DTYPES[precision])
    batch = (1, 1, 2)
    ranges = axis_ranges([plan_for(model.config, default_sampling(model.config))], batch)
    assert build_graph(module, spec, model.config, tmp_path / "graph.onnx", ranges, batch, RTX_GPUS) > 10_000


def test_the_manifest_names_the_family_its_engines_and_the_published_settings(exported: Any) -> None:
    manifest = Artifact(exported("case0")).manifest
    assert manifest.model == uva_checkpoint("case0").model.config
    assert manifest.to_dict()["request"] == ["observation"]
    assert manifest.engines.keys() == {"condition", "backbone", "conditioning", "denoise"}
    sampling = manifest.sampling
    assert (sampling.iterations, sampling.diffusion_steps, sampling.temperature) == (1, 100, 0.95)


def frames(robots: int = 1, side: int = 256) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (robots, 4, side, side, 3), np.uint8)


@pytest.fixture
def seeing(exported: Any) -> Any:
    """A policy with an encoder that is quick and that counts its calls: means of blocks of 16 x 16 pixels."""
    policy = Policy.load(exported("case0"), threads=1)
    images: list[NDArray[np.float32]] = []

    def encoder(image: NDArray[np.float32]) -> tuple[NDArray[np.float32]]:
        images.append(image)
        means = image.reshape(1, 3, 16, 16, 16, 16).mean(axis=(3, 5))  # [1, 3, 16, 16]
        return (np.tile(means, (1, 6, 1, 1))[:, :16],)

    policy._generator.engines = dataclasses.replace(policy._generator.engines, encoder=encoder)
    with policy:
        yield policy, images


FAST: dict[str, Any] = {"sampler": "ddim", "diffusion_steps": 4}


def test_frames_of_earlier_calls_are_kept_and_change_no_action(seeing: Any) -> None:
    policy, images = seeing
    film, text = frames(2).reshape(1, 8, 256, 256, 3), np.ones((1, 512), np.float32)
    calls = [policy.act({"frames": film[:, t : t + 4], "text": text}, index=[t], **FAST) for t in range(5)]
    assert len(images) == policy.encoded == 8
    assert {image.shape for image in images} == {(1, 3, 256, 256)}
    policy._kept.clear()
    again = policy.act({"frames": film[:, 4:], "text": text}, index=[4], **FAST)
    np.testing.assert_array_equal(again, calls[4])
    assert policy.encoded == 12
    changed = film[:, 4:].copy()
    changed[0, 3, 100, 100, 0] ^= 1
    policy.act({"frames": changed, "text": text}, **FAST)
    assert policy.encoded == 13


def test_a_frame_is_kept_as_it_was_when_it_was_read(seeing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, _ = seeing
    text = np.ones((1, 512), np.float32)
    expected = policy.act({"frames": frames(), "text": text}, index=[0], **FAST)
    policy._kept.clear()
    camera = frames()

    def overwriting(frame: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float32]:
        camera[:] = 0
        return encoder_input(frame, height, width)

    monkeypatch.setattr("runtime.policy.encoder_input", overwriting)
    policy._latents(camera[0, 0])
    monkeypatch.undo()
    found = policy.act({"frames": frames(), "text": text}, index=[0], **FAST)
    np.testing.assert_array_equal(found, expected)


def test_what_is_kept_does_not_grow(seeing: Any) -> None:
    policy, _ = seeing
    text = np.ones((1, 512), np.float32)
    for call in range(20):
        film = np.full((1, 4, 16, 16, 3), call, np.uint8)
        film[0, :, 0, 0, 0] = range(4)
        policy.act({"frames": film, "text": text}, **FAST)
    assert policy.encoded == 80
    assert len(policy._kept) <= 64


def test_each_call_draws_other_noise_and_a_seed_with_an_index_draws_it_again(exported: Any) -> None:
    case = uva_case("case0", "run1.npz")
    with Policy.load(exported("case0"), threads=1) as policy:
        first, second = (policy.act(case.observation, **FAST) for _ in range(2))
        assert relative_l2(second, first) > 1e-3
        np.testing.assert_array_equal(policy.act(case.observation, index=[0], **FAST), first)
        assert relative_l2(policy.act(case.observation, seed=1, index=[0], **FAST), first) > 1e-3
        assert (policy.chunks, policy.n_action_steps) == (4, 8)


def test_robots_of_a_batch_act_as_alone(exported: Any) -> None:
    case = uva_case("case0", "run0.npz")
    alone = {name: array[1:] for name, array in case.observation.items()}
    with Policy.load(exported("case0"), threads=1) as policy:
        both = policy.act(case.observation, index=[3, 4], **FAST)
        np.testing.assert_allclose(policy.act(alone, index=[4], **FAST)[0], both[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(96, 96), (224, 224), (480, 640), (256, 256)])
def test_frames_are_resized_as_published(height: int, width: int) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    pixels = torch.from_numpy(frame).permute(2, 0, 1)[None].double() / 255
    resized = F.interpolate(pixels, (256, 256), mode="bilinear", align_corners=False)
    expected = (resized * 255 / 127.5 - 1).numpy()
    for given in (frame, (frame / 255).astype(np.float32)):
        found = encoder_input(given, 256, 256)
        assert (found.dtype, found.shape) == (np.float32, (1, 3, 256, 256))
        np.testing.assert_allclose(found, expected, atol=2e-6)


LATENTS, TEXT = np.zeros((2, 4, 16, 16, 16), np.float32), np.zeros((2, 512), np.float32)
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({"observation": {}}, "observation must have frames or latents and text, found no frames, text"),
    "no mapping": ({"observation": [LATENTS]}, "observation must be a mapping of arrays by name"),
    "no text": (
        {"observation": {"latents": LATENTS}},
        "observation must have frames or latents and text, found no text",
    ),
    "a state": (
        {"observation": {"latents": LATENTS, "text": TEXT, "state": TEXT}},
        "observation must have frames or latents and text, found 'state', which this model does not read",
    ),
    "both": (
        {"observation": {"latents": LATENTS, "frames": LATENTS, "text": TEXT}},
        "observation must have frames or latents and text, found both frames and latents",
    ),
    "three frames": (
        {"observation": {"latents": LATENTS[:, :3], "text": TEXT}},
        "observation: latents must be floating point of shape [2, 4, 16, 16, 16] (2 robots first), found float32 "
        "[2, 3, 16, 16, 16]",
    ),
    "text of another width": (
        {"observation": {"latents": LATENTS, "text": TEXT[:, :3]}},
        "observation: text must be floating point of shape [2, 512]",
    ),
    "text of fewer robots": (
        {"observation": {"latents": LATENTS, "text": TEXT[:1]}},
        "observation: text must be floating point of shape [2, 512] (2 robots first), found float32 [1, 512]",
    ),
    "not finite": (
        {"observation": {"latents": LATENTS, "text": np.full_like(TEXT, np.inf)}},
        "observation: text holds values that are not finite",
    ),
    "no robot": (
        {"observation": {"latents": LATENTS[:0], "text": TEXT[:0]}},
        "observation: latents must be of 1 to 4096 robots",
    ),
    "a history of frames": (
        {"observation": {"frames": np.zeros((1, 16, 8, 8, 3), np.uint8), "text": TEXT[:1]}},
        "observation: frames must have the shape [B, 4, H, W, 3], found [1, 16, 8, 8, 3]; of 16 frames give every "
        "fourth, frames[:, 3::4]",
    ),
    "bright frames": (
        {"observation": {"frames": np.full((1, 4, 8, 8, 3), 255.0), "text": TEXT[:1]}},
        "observation: frames of float64 must lie in 0..1, found 255..255; give pixels of 0..255 as uint8",
    ),
    "frames without encoder": (
        {"observation": {"frames": frames(2, 8), "text": TEXT}},
        "this artifact has no encoder, because its checkpoint has no complete autoencoder; give latents",
    ),
    "noise of fewer steps": (
        {"observation": {"latents": LATENTS, "text": TEXT}, "noise": np.zeros((5, 2, 16, 10))},
        "noise must be floating point of shape [101, 2, 16, 10]",
    ),
    "guidance": (
        {"observation": {"latents": LATENTS, "text": TEXT}, "cfg_scale": 2.0},
        "cfg_scale of this model must be 1.0, found 2.0; leave it out: actions are drawn without guidance",
    ),
    "a flow": (
        {"observation": {"latents": LATENTS, "text": TEXT}, "sampler": "flow-2m"},
        "the sampler of a UVA must be ddpm or ddim or dpm++2m or dpm++2m-sde, found 'flow-2m'",
    ),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_observation_is_one_line(exported: Any, wrong: str) -> None:
    arguments, message = WRONG[wrong]
    with Policy.load(exported("case0"), threads=1) as policy, pytest.raises(RequestError) as caught:
        policy.act(**arguments)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_generator_of_a_policy_says_what_to_call(exported: Any) -> None:
    with Generator.load(exported("case0"), threads=1) as generator:
        with pytest.raises(RequestError, match=r"^this model drives a robot; call runtime.Policy, or give observation"):
            generator.generate([1])
        with pytest.raises(RequestError, match=r"^observation is missing; this model drives a robot"):
            generator.generate()


def test_a_policy_of_images_says_what_to_call() -> None:
    with pytest.raises(RequestError, match=r"^runtime.Policy is for models that drive robots, .*runtime.Generator$"):
        Policy(fake_generator())


@pytest.mark.parametrize("scale", [1e-50, 1e-39])
def test_actions_that_overflow_in_the_units_of_the_robot_reach_nobody(exported: Any, scale: float) -> None:
    case: UvaCase = uva_case("case0", "run1.npz")
    with Policy.load(exported("case0"), threads=1) as policy:
        config = policy._config
        policy._config = dataclasses.replace(config, action_scale=(scale,) * config.action_dim)
        with pytest.raises(BackendError, match=r"^actions in the units of the robot are not finite; .*action_scale"):
            policy.act(case.observation, **FAST)
        assert policy.chunks == 0


def test_a_closed_policy_says_so(exported: Any) -> None:
    case: UvaCase = uva_case("case0", "run1.npz")
    policy = Policy.load(exported("case0"), threads=1)
    policy.close()
    with pytest.raises(BackendError, match="closed"):
        policy.act(case.observation, **FAST)


def test_an_encoder_need_not_be_asked_for(tmp_path: pathlib.Path) -> None:
    with pytest.raises(RequestError, match=r"^mar export --encoder is for models of images; a UVA is exported with"):
        export_artifact(uva_checkpoint("case0"), tmp_path / "out", lambda line: None, optional=("encoder",))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", FAMILIES["uva"].refused)
def test_what_does_not_support_a_policy_says_so_in_one_line(command: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_supported(uva_checkpoint("case0").model.config, command)
    assert str(caught.value).startswith(f"{command} ")
    assert "UVA" in str(caught.value)
    assert "\n" not in str(caught.value)
