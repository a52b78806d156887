"""The Python interface: any value in place of any argument is used, or refused in one line."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from runtime import Edit, Generator, Sampling
from runtime.artifact.manifest import Manifest
from runtime.errors import RequestError
from runtime.model.config import ModelConfig

MODEL = ModelConfig(
    img_size=8,
    vae_stride=1,
    patch_size=2,
    vae_embed_dim=1,
    class_num=3,
    encoder_embed_dim=16,
    encoder_depth=1,
    encoder_num_heads=2,
    decoder_embed_dim=16,
    decoder_depth=1,
    decoder_num_heads=2,
)
SETTINGS = ("iterations", "mask_schedule", "token_order", "cfg_scale", "cfg_schedule", "cfg_interval", "sampler")
SETTINGS += ("diffusion_steps", "last_diffusion_steps", "step_schedule", "start_timestep", "temperature", "eta")


class _Hostile:
    """Nothing about it works: it cannot be printed, compared, measured or counted."""

    def __repr__(self) -> str:
        raise ValueError("no text")

    def __eq__(self, other: object) -> bool:
        raise TypeError("no comparison")

    __hash__ = None  # type: ignore[assignment]


def _values() -> list[Any]:
    numbers = [True, -1, 0, 1, 3, 2**63, 2**64, 10**400, 10**5000, 0.5, -0.0, float("nan"), float("inf"), 1e308, 1j]
    texts = ["", "3", "ddim5", "x" * 1000, "a\nb", "a\0b", "\ud800", "9" * 5000, b"3"]
    containers = [[], [1], [1, 2], [[1], [2, 3]], [10**400], (), ((),), {}, {"a": 1}, {1}, range(2), [None], ["a"]]
    arrays = [np.array(1), np.array([1, 2]), np.zeros((2, 2)), np.array(["x"]), np.array([], object)]
    arrays += [np.array([1, 2]) > 1, np.full((2, 2), np.nan), np.ma.masked_array([1, 2], [0, 1])]
    scalars = [np.float16(1), np.int8(2), np.uint64(2**63), np.bool_(True), np.datetime64("2020"), np.str_("fast")]
    others = [
        None,
        object(),
        len,
        int,
        itertools.count(),
        iter([1]),
        _Hostile(),
        [_Hostile()],
        Sampling(),
        memoryview(b"12"),
    ]
    return [*numbers, *texts, *containers, *arrays, *scalars, *others]


VALUES = _values()


@pytest.fixture(scope="module")
def generator() -> Generator:
    """Its loop generates zeros at once."""
    manifest = Manifest(
        MODEL, "pixel", ("a", "b", "c"), Sampling(diffusion_steps=4, iterations=2), "fp32", {}, {}, {}, {}
    )

    def loop(plan: Any, labels: Any, order: Any, noise: Any, known: Any, progress: Any) -> Any:
        return np.zeros((MODEL.tokens, len(labels), MODEL.token_channels), np.float32)

    return Generator(manifest, None, "zeros", loop=loop)  # type: ignore[arg-type]


def _check(call: Callable[[], Any], what: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call()
        except RequestError as error:
            assert "\n" not in str(error), what
            assert len(str(error)) < 1000, what
        except Exception as error:
            pytest.fail(f"{what}: {type(error).__name__}: {error}")


@pytest.mark.parametrize("name", [*SETTINGS, "preset", "sampling"])
def test_sampling_settings(generator: Generator, name: str) -> None:
    for number, value in enumerate(VALUES):
        for preset in (None, "fast"):
            overrides = {"preset": preset, name: value} if preset and name != "preset" else {name: value}
            _check(lambda overrides=overrides: generator.plan(**overrides), f"value {number} with {preset}")
        if name in SETTINGS:
            _check(lambda value=value: generator.plan(sampling=Sampling(**{name: value})), f"Sampling, value {number}")


@pytest.mark.parametrize("name", ["labels", "seed", "index", "order", "noise", "edit", "decode_batch", "progress"])
def test_arguments_of_generate(generator: Generator, name: str) -> None:
    for number, value in enumerate(VALUES):
        arguments: dict[str, Any] = {"labels": [0, 1], name: value}
        _check(lambda arguments=arguments: generator.generate(**arguments), f"value {number}")
        if name != "edit":
            _check(lambda a=arguments: list(generator.generate_batches(batch_size=1, **a)), f"batches, value {number}")


def test_the_size_of_batches_and_the_number_of_known_tokens(generator: Generator) -> None:
    for number, value in enumerate(VALUES):
        _check(lambda value=value: list(generator.generate_batches([0, 1], value)), f"value {number}")
        _check(lambda value=value: generator.plan(known_tokens=value), f"value {number}")


@pytest.mark.parametrize("name", ["known", "mask", "dilate", "paste"])
def test_fields_of_an_edit(generator: Generator, name: str) -> None:
    fields: dict[str, Any] = {"known": np.zeros((8, 8, 1), np.uint8), "mask": np.eye(4) > 0}
    for number, value in enumerate(VALUES):
        edit = Edit(**{**fields, name: value})
        _check(lambda edit=edit: generator.generate([0], edit=edit), f"value {number}")


@pytest.mark.parametrize("name", ["artifact", "backend", "device", "threads", "cuda_graphs"])
def test_arguments_of_load(name: str, tmp_path: Any) -> None:
    from runtime.backends import open_backend
    from runtime.errors import ArtifactError, BackendError

    for value in VALUES:
        arguments: dict[str, Any] = {"artifact": tmp_path, name: value}
        with pytest.raises((RequestError, ArtifactError)):  # a path is told as it is
            Generator.load(**arguments)
        if name in ("backend", "device", "threads"):
            arguments = {"name": "tensorrt", "device": None, "threads": 1, {"backend": "name"}.get(name, name): value}
            with pytest.raises((RequestError, BackendError)) as failed:  # TensorRT needs a GPU
                open_backend(**arguments)
            assert "\n" not in str(failed.value)
