"""The Python interface: published numbers are reproduced, images are reproducible, wrong requests are refused."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from runtime.artifact.manifest import MANIFEST
from runtime.errors import BackendError, RequestError
from runtime.generator import Generator
from runtime.requests.inpainting import Edit
from runtime.sampling.rng import seeded_noise, seeded_order
from runtime.sampling.settings import Sampling
from tests.helpers.distance import relative_l2
from tests.helpers.golden_cases import GOLDEN_TOLERANCE, GoldenCase

# A stride from 0 starts its chains below t = 999, where these briefly trained heads would let values explode.
FAST: dict[str, Any] = {"iterations": 5, "cfg_scale": 2.0, "diffusion_steps": "ddim5"}
# The settings that FAST does not have, with values that differ from the defaults.
OWN: dict[str, Any] = {
    "mask_schedule": "linear",
    "token_order": "checkerboard",
    "cfg_schedule": "constant",
    "cfg_interval": [0.1, 0.9],
    "sampler": "ddim",
    "last_diffusion_steps": None,
    "step_schedule": "cosine",
    "start_timestep": None,
    "temperature": 0.9,
    "eta": 0.5,
}
LABELS = [0, 5, 2, 3, 1]


@pytest.fixture(scope="module")
def generators(golden_artifacts: dict[str, pathlib.Path]) -> Iterator[dict[str, Generator]]:
    loaded = {model: Generator.load(path, threads=1) for model, path in golden_artifacts.items()}
    yield loaded
    for generator in loaded.values():
        generator.close()


@pytest.fixture(scope="module")
def generator(generators: dict[str, Generator]) -> Generator:
    """The model of 16 tokens, 8 values each, and 6 classes."""
    return generators["small"]


def latents_of(generator: Generator, labels: list[int], **request: object) -> NDArray[np.float32]:
    return generator.generate(labels, **(FAST | request)).latents


def test_a_golden_case_gives_the_latents_of_the_published_code(
    generators: dict[str, Generator], golden_case: GoldenCase
) -> None:
    result = generators[golden_case.model].generate(
        golden_case.labels.tolist(), order=golden_case.order, noise=golden_case.noise, **golden_case.settings
    )
    assert result.latents.dtype == np.float32
    assert result.latents.shape == golden_case.latents.shape
    assert relative_l2(result.latents, golden_case.latents) <= GOLDEN_TOLERANCE
    assert [iteration.count for iteration in result.plan.iterations] == golden_case.tokens_per_step


def test_an_artifact_without_a_tokenizer_returns_latents_and_no_images(generator: Generator) -> None:
    result = generator.generate([1], **FAST)
    assert result.latents.shape == (1, 8, 4, 4)
    assert result.images is None


def test_a_seed_gives_the_same_bits_twice(generator: Generator) -> None:
    assert latents_of(generator, LABELS, seed=3).tobytes() == latents_of(generator, LABELS, seed=3).tobytes()


def test_another_seed_index_or_class_gives_another_image(generator: Generator) -> None:
    requests: list[dict[str, Any]] = [{}, {"seed": 1}, {"index": [1]}, {"index": [2**64 - 1]}, {"seed": 2**64 - 1}]
    images = [latents_of(generator, [2], **request) for request in requests] + [latents_of(generator, [4])]
    assert len({image.tobytes() for image in images}) == len(images)


@pytest.mark.parametrize("request_", [FAST, FAST | {"cfg_scale": 1.0}, FAST | {"cfg_schedule": "constant"}], ids=str)
def test_an_image_is_the_same_alone_and_in_a_batch(generator: Generator, request_: dict[str, Any]) -> None:
    together = latents_of(generator, LABELS, seed=3, **request_)
    for index, label in enumerate(LABELS):
        alone = latents_of(generator, [label], seed=3, index=[index], **request_)
        assert relative_l2(together[index], alone[0]) <= 1e-5


def test_an_image_does_not_depend_on_its_place_in_a_batch(generator: Generator) -> None:
    forward = latents_of(generator, [0, 5, 2], seed=3, index=[10, 2**64 - 1, 12])
    backward = latents_of(generator, [2, 5, 0], seed=3, index=[12, 2**64 - 1, 10])
    assert relative_l2(forward, backward[::-1]) <= 1e-5


def test_the_order_and_noise_of_a_seed_give_the_same_image_as_the_seed(generator: Generator) -> None:
    config, indices = generator.manifest.model, [4, 0]
    order, noise = seeded_order(3, indices, config), seeded_noise(3, indices, 5, config)
    seeded = latents_of(generator, [1, 2], seed=3, index=indices)
    assert seeded.tobytes() == latents_of(generator, [1, 2], order=order, noise=noise).tobytes()
    assert (
        seeded.tobytes()
        == latents_of(generator, [1, 2], order=order.tolist(), noise=noise.astype(np.float64)).tobytes()
    )
    assert seeded.tobytes() != latents_of(generator, [1, 2], order=order[::-1], noise=noise).tobytes()
    assert seeded.tobytes() != latents_of(generator, [1, 2], order=order, noise=noise[:, ::-1]).tobytes()


@pytest.mark.parametrize("kind", ["random", "raster", "checkerboard"])
def test_the_order_of_a_seed_has_the_requested_kind(generator: Generator, kind: str) -> None:
    order = seeded_order(3, [0, 1], generator.manifest.model, kind)
    seeded = latents_of(generator, [1, 2], seed=3, token_order=kind)
    assert seeded.tobytes() == latents_of(generator, [1, 2], seed=3, order=order).tobytes()
    assert seeded.tobytes() != latents_of(generator, [1, 2], seed=3, order=order[:, ::-1]).tobytes()


def test_progress_is_called_after_each_iteration(generator: Generator) -> None:
    calls: list[tuple[int, int]] = []
    latents_of(generator, [1], iterations=7, progress=lambda done, of: calls.append((done, of)))
    assert calls == [(done, 7) for done in range(1, 8)]


def test_settings_that_a_request_does_not_give_are_the_artifacts_own(
    golden_artifacts: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    artifact = pathlib.Path(shutil.copytree(golden_artifacts["small"], tmp_path / "artifact"))
    manifest = json.loads((artifact / MANIFEST).read_text())
    (artifact / MANIFEST).write_text(json.dumps(manifest | {"sampling": FAST | OWN}))
    with Generator.load(artifact, threads=1) as generator:
        own = generator.generate([2], seed=3)
        assert own.latents.tobytes() == latents_of(generator, [2], seed=3, **OWN).tobytes()
        assert own.latents.tobytes() == latents_of(generator, [2], seed=3, **dict.fromkeys(FAST | OWN)).tobytes()
        other = generator.generate([2], seed=3, iterations=2, diffusion_steps=3)
    assert (len(other.plan.iterations), other.plan.diffusion_steps) == (2, 3)
    assert other.plan.guidance_scale == own.plan.guidance_scale == FAST["cfg_scale"]


def test_an_unknown_setting_is_refused_with_its_name(generator: Generator) -> None:
    with pytest.raises(RequestError, match="cfg_scal;"):
        generator.plan(cfg_scal=2.0)


def test_the_description_names_backend_device_and_threads(generator: Generator) -> None:
    assert generator.description.startswith("onnxruntime ")
    assert "cpu" in generator.description
    assert "1 thread" in generator.description


class NoArray:
    """What another library refuses to turn into an array, as PyTorch a tensor on a GPU."""

    def __array__(self, *arguments: object, **named: object) -> None:
        raise TypeError("not on\nthis device")


# Wrong requests for one image: an argument, its value, and a part of the message.
ORDER = list(range(16))
NOISE_SHAPE = (6, 1, 16, 8)
NOT_FINITE = np.full(NOISE_SHAPE, math.nan)

BAD_REQUESTS: list[tuple[str, object, str]] = [
    *(("labels", [value], f"class {value} ") for value in (6, -1, 10**6, 2**63)),
    ("labels", [2**64], "labels"),
    ("labels", [], "labels is empty; give at least one class, such as labels=[0]"),
    ("labels", "dress", "labels must be a list of classes, found 'dress'; write labels=['dress']"),
    ("labels", ["dress"], "class 'dress' is unknown; this model has no names for its classes, only numbers"),
    ("labels", [[1, 2]], "[1, 2]"),
    ("labels", 3, "[]"),
    ("labels", [0] * 4097, "4097"),
    *(("labels", [value], "labels must be whole numbers") for value in (1.0, None, True)),
    ("labels", [[1], [2, 3]], "labels"),
    *((name, NoArray(), f"{name}: not on this device") for name in ("labels", "order", "noise")),
    *(("seed", value, f"{value!r}") for value in (-1, 2**64, "x", "1", True, 1.5, None, math.nan)),
    *(("seed", value, f"one number for each of the batch, 1; found {len(value)}") for value in ([], [1, 2], range(3))),
    *(("seed", [value], f"seed must be a whole number in 0..2^64-1, found {value!r}") for value in (-1, 2**64, "x")),
    *(("index", value, f"{len(value)}") for value in ([], [1, 2], range(3))),
    *(("index", [value], f"{value!r}") for value in (-1, 2**64, "x", True, 1.5, None)),
    ("index", 3, "3"),
    *(("iterations", value, f"{value}") for value in (0, -1, 17, 2.5, "4", True, math.nan)),
    *(("cfg_scale", value, f"{value!r}") for value in (-1.0, math.nan, math.inf, 1e39, "2", [2.0])),
    *(("temperature", value, f"{value!r}") for value in (-1.0, math.nan, math.inf, 1e39, "1", [1.0])),
    *(("cfg_schedule", value, f"{value!r}") for value in ("cosine", 1)),
    *(("sampler", value, f"{value!r}") for value in ("euler", 1, ["ddpm"])),
    *(("mask_schedule", value, f"{value!r}") for value in ("two-stage", 1)),
    *(("token_order", value, f"{value!r}") for value in ("spiral", 1)),
    *(("step_schedule", value, f"{value!r}") for value in ("exponential", 1)),
    ("cfg_interval", 0.5, "0.5"),
    ("cfg_interval", [0.7, 0.2], "0.2"),
    *(("last_diffusion_steps", value, "last_diffusion_steps") for value in (5, 1, 2.5)),
    *(("start_timestep", value, "start_timestep") for value in (900, 3, 1000, "900")),
    *(("eta", value, f"{value!r}") for value in (0.5, -1.0, math.nan, "1", [1.0])),
    *(("preset", value, f"{value!r}") for value in ("nope", 1)),
    *(("sampling", value, "sampling must be a runtime.Sampling") for value in ("fast", 1, {"iterations": 2})),
    ("sampling", Sampling(sampler="flow-2m"), "found 'flow-2m'"),
    *(("decode_batch", value, "decode_batch") for value in (-1, 4097, 1.5, "1", True, None)),
    *(("diffusion_steps", value, f"{value!r}") for value in (1, 1001, 2.5, "ddim700", "x", math.inf)),
    ("order", [ORDER[:-1]], "[1, 15]"),
    ("order", ORDER, "[16]"),
    ("order", [ORDER, ORDER], "[2, 16]"),
    ("order", [[0, *ORDER[:-1]]], "permutation of 0..15"),
    ("order", [[*ORDER[1:], 16]], "permutation of 0..15"),
    ("order", [[-16, *ORDER[1:]]], "permutation of 0..15"),
    ("order", [[float(position) for position in ORDER]], "float64"),
    ("order", [[None] * 16], "object"),
    ("order", [ORDER, ORDER[:-1]], "order"),
    ("noise", np.zeros((5, 1, 16, 8)), "[5, 1, 16, 8]"),
    ("noise", np.zeros((6, 2, 16, 8)), "[6, 2, 16, 8]"),
    ("noise", np.zeros((6, 1, 8, 16)), "[6, 1, 8, 16]"),
    ("noise", 0.5, "[]"),
    ("noise", np.zeros(NOISE_SHAPE, np.int64), "int64"),
    ("noise", np.zeros(NOISE_SHAPE, np.complex64), "complex64"),
    ("noise", np.zeros(NOISE_SHAPE, bool), "bool"),
    ("noise", [[0.0], [0.0, 1.0]], "noise"),
    ("noise", NOT_FINITE, "not finite"),
    ("noise", np.full(NOISE_SHAPE, math.inf), "not finite"),
    ("noise", np.full(NOISE_SHAPE, 1e39), "not finite"),  # in float32, which the engines compute in
]


@pytest.mark.parametrize(("name", "value", "message"), BAD_REQUESTS, ids=lambda part: " ".join(str(part).split())[:24])
def test_a_bad_request_is_refused_before_anything_runs(
    generator: Generator, name: str, value: object, message: str
) -> None:
    ran: list[int] = []
    request: dict[str, Any] = {"labels": [0], **FAST, "progress": lambda done, of: ran.append(done), name: value}
    with pytest.raises(RequestError) as refusal:
        generator.generate(**request)
    assert refusal.value.exit_code == 2
    assert message in str(refusal.value)
    assert ran == []


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 64])
def test_batches_give_the_same_images_as_generating_each_of_them(generator: Generator, batch_size: int) -> None:
    labels, numbers = [0, 5, 3, 3, 1], [7, 0, 2, 9, 4]
    results = list(generator.generate_batches(labels, batch_size, seed=5, index=numbers, **FAST))
    assert [len(result.latents) for result in results] == [
        min(batch_size, 5 - start) for start in range(0, 5, batch_size)
    ]
    for start, result in zip(range(0, 5, batch_size), results, strict=True):
        part = slice(start, start + batch_size)
        alone = latents_of(generator, labels[part], seed=5, index=numbers[part])
        np.testing.assert_array_equal(result.latents, alone)


def test_batches_take_their_part_of_a_given_order_and_noise(generator: Generator) -> None:
    config = generator.manifest.model
    order, noise = seeded_order(1, range(3), config), seeded_noise(1, range(3), 5, config)
    parts = list(generator.generate_batches([0, 1, 2], 2, order=order, noise=noise, **FAST))
    for part, result in ((slice(0, 2), parts[0]), (slice(2, 3), parts[1])):
        alone = latents_of(generator, [0, 1, 2][part], order=order[part], noise=noise[:, part])
        np.testing.assert_array_equal(result.latents, alone)


def test_the_next_batch_is_prepared_while_one_is_generated(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test waits for the noise of the next batch, which would never come if it were made afterwards."""
    made = [threading.Event() for _ in range(2)]

    def recording_noise(seed: int, indices: Sequence[int], *rest: Any) -> NDArray[np.float32]:
        made[indices[0]].set()
        return seeded_noise(seed, indices, *rest)

    monkeypatch.setattr("runtime.generator.seeded_noise", recording_noise)
    waited = []
    first = iter(
        generator.generate_batches([0, 0], 1, progress=lambda done, of: waited.append(made[1].wait(60)), **FAST)
    )
    next(first)
    assert waited
    assert all(waited)


@pytest.mark.parametrize(
    "wrong",
    [
        {"labels": [0, 6]},
        {"labels": 3},
        *({"batch_size": size} for size in (0, 4097, 1.5, "2", True, None)),
        {"index": [0]},
        {"decode_batch": -1},
        {"seed": -1},
    ],
    ids=str,
)
def test_wrong_batches_are_refused_before_anything_runs(generator: Generator, wrong: dict[str, Any]) -> None:
    request: dict[str, Any] = {"labels": [0, 0], "batch_size": 1, **FAST, **wrong}
    with pytest.raises(RequestError):
        generator.generate_batches(**request)


ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3)
SOME = st.recursive(ANYTHING, lambda inner: st.lists(inner, max_size=3), max_leaves=4)
ARGUMENTS = ("labels", "seed", "index", "order", "noise", "edit", "known", "mask", "decode_batch")
SETTINGS = ("preset", "sampling", *(field.name for field in dataclasses.fields(Sampling)))


@given(request=st.dictionaries(st.sampled_from([*SETTINGS, *ARGUMENTS]), SOME, min_size=1))
def test_any_request_is_generated_or_refused(generator: Generator, request: dict[str, Any]) -> None:
    short: dict[str, Any] = {"labels": [0], "iterations": 1, "diffusion_steps": "ddim2"}
    if {"known", "mask"} <= request.keys():
        request["edit"] = Edit(request.pop("known"), request.pop("mask"))
    try:
        result = generator.generate(**(short | request))
    except (RequestError, BackendError) as refusal:  # a huge guidance scale can make values overflow
        assert str(refusal)
    else:
        assert np.isfinite(result.latents).all()


BAD_BACKENDS: list[tuple[str, object]] = [
    *(("threads", value) for value in (0, -1, 1025, 1.5, "2", True, math.nan)),
    *(("backend", value) for value in ("nope", "", "Onnxruntime", None)),
    *(("device", value) for value in ("tpu", "", "CPU")),
]


@pytest.mark.parametrize(("name", "value"), BAD_BACKENDS, ids=str)
def test_a_bad_backend_device_or_thread_count_is_refused(
    golden_artifacts: dict[str, pathlib.Path], name: str, value: object
) -> None:
    arguments: dict[str, Any] = {"threads": 1, name: value}
    with pytest.raises(RequestError) as refusal:
        Generator.load(golden_artifacts["small"], **arguments)
    assert refusal.value.exit_code == 2
    assert repr(value) in str(refusal.value)


def test_a_closed_generator_is_refused(golden_artifacts: dict[str, pathlib.Path]) -> None:
    with Generator.load(golden_artifacts["small"], threads=1) as generator:
        latents_of(generator, [0])
    with pytest.raises(BackendError, match="closed"):
        latents_of(generator, [0])
    generator.close()  # a second call does nothing


def run_alone(script: str, *arguments: str) -> str:
    command = [sys.executable, "-c", script, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_importing_the_runtime_imports_no_backend_and_no_other_room() -> None:
    script = "import sys; from runtime import Generator; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    imported = set(run_alone(script).split())
    assert {"runtime", "numpy"} <= imported
    assert not imported & {
        "torch",
        "onnx",
        "onnxruntime",
        "openvino",
        "tensorrt",
        "training",
        "mar_export",
        "calibration",
    }


def test_an_image_can_be_generated_without_torch_and_onnx(
    golden_artifacts: dict[str, pathlib.Path],
) -> None:
    script = """
import sys
sys.modules.update(dict.fromkeys(["torch", "onnx", "training", "mar_export", "calibration"]))  # import raises
from runtime import Generator
with Generator.load(sys.argv[1], threads=1) as generator:
    print(generator.generate([0, 1], iterations=2, diffusion_steps="ddim2", cfg_scale=2.0).latents.shape)
"""
    assert run_alone(script, str(golden_artifacts["small"])) == "(2, 8, 4, 4)\n"
