"""The surfaces whose inputs are arguments: the Python interface, and the options of commands."""

from __future__ import annotations

import pathlib
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from runtime.cli.group import mar
from runtime.generator import Generator
from runtime.requests.inpainting import Edit
from tests.fuzz.mutations import WEIRD_VALUES
from tests.fuzz.surface import WrongResultError
from tests.helpers.tiny_runs import TINY

_SETTINGS = (
    "preset", "iterations", "mask_schedule", "token_order", "cfg_scale", "cfg_schedule", "cfg_interval", "sampler",
    "diffusion_steps", "last_diffusion_steps", "step_schedule", "start_timestep", "temperature", "eta", "sampling",
    "unknown",
)  # fmt: skip
_OPTIONS = (
    "--preset", "--iterations", "--mask-schedule", "--token-order", "--cfg-scale", "--cfg-schedule", "--cfg-interval",
    "--sampler", "--diffusion-steps", "--last-diffusion-steps", "--step-schedule", "--start-timestep", "--temperature",
    "--eta", "--threads", "--backend", "--device", "--class", "--count", "--seed", "--batch-size", "--unknown",
)  # fmt: skip
_TEXTS = (
    "", "0", "-1", "1", "3", "1.5", "nan", "inf", "-inf", "1e400", "9" * 4000, "0x10", "1_0", " 2 ", "a", "exact",
    "fast", "ddim5", "ddim", "ddim0", "ddim-1", "2,3", "2,", ",", "0.2,0.8", "--", "-", "\udcff", "\n", "é", "name:a",
    "index:1", "index:", "raster", "cosine", "True", "{}", "/", "../..", "cpu", "cuda", "openvino", "\u0661",
    "x" * 5000,
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    *WEIRD_VALUES, b"", b"3", 1j, object(), np.float32(2), np.int64(3), np.uint8(1), np.bool_(True), np.array(2),
    np.array([1, 2]), np.array([]), np.array([[0]]), np.array(["a"]), np.array([None]), np.array([np.nan]), (0.1, 0.9),
    (1, 2), {1, 2}, range(2), np.datetime64("2020"), torch.tensor(1), torch.tensor([1, 0]), "exact", "fast", "ddim3", 2,
)  # fmt: skip


def api_call(generator: Generator) -> Callable[[random.Random], bytes]:
    """A call of `Generator.generate` with one to three arguments that do not belong there."""
    random_ = np.random.default_rng(0)
    order = random_.permuted(np.tile(np.arange(TINY.tokens), (2, 1)), axis=1)
    noise = random_.standard_normal((3, 2, TINY.tokens, TINY.token_channels)).astype(np.float32)
    images = random_.integers(0, 256, (2, TINY.img_size, TINY.img_size, 1), dtype=np.uint8)
    mask = np.zeros((TINY.img_size, TINY.img_size), np.bool_)
    mask[:4] = True

    def call(random_: random.Random) -> bytes:
        arguments: dict[str, Any] = {"labels": [0, 1], "seed": 0, "iterations": 2, "diffusion_steps": 2}
        for _ in range(random_.choice((1, 1, 2, 3))):
            name = random_.choice(("labels", "seed", "index", "order", "noise", "edit", "decode_batch", *_SETTINGS))
            arguments[name] = _value(random_, {"order": order, "noise": noise}.get(name))
            if name == "edit" and random_.random() < 0.9:
                known, region = _value(random_, images), _value(random_, mask)
                arguments[name] = Edit(*((known, mask) if random_.random() < 0.5 else (images, region)))
        labels = arguments.pop("labels")
        result = generator.generate(labels, **arguments)
        images_, count = result.images, len(list(labels))
        shape = (count, TINY.img_size, TINY.img_size, 1)
        if arguments.get("decode_batch") == 0:  # no images are asked for
            right = images_ is None
        else:
            right = images_ is not None and images_.shape == shape and images_.dtype == np.uint8
        if not right:
            raise WrongResultError(f"images of another form for {count} labels")
        if not np.isfinite(result.latents).all():
            raise WrongResultError("latents that are not finite")
        return b""

    return call


def _value(random_: random.Random, array: Any) -> Any:
    """Any value, or the right array with a change of its dtype, shape or numbers."""
    if array is None or random_.random() < 0.3:
        return random_.choice(_VALUES)
    changed = array.copy()
    action = random_.randrange(6)
    if action == 0:
        dtype = random_.choice((np.float64, np.int8, np.float16, np.complex64, object, np.bool_, "U3", ">f4", ">i8"))
        with np.errstate(all="ignore"):
            return changed.astype(dtype)
    if action == 1:
        return random_.choice((changed[0], changed[None], changed[:1], changed.T, changed[..., :-1], changed[:0]))
    if action == 2:
        return random_.choice((changed.tolist(), torch.from_numpy(changed), changed[::-1], np.asfortranarray(changed)))
    if action == 3:
        changed.reshape(-1)[random_.randrange(changed.size)] = random_.choice((0, 1, 3, 100))
    elif action == 4 and changed.dtype.kind == "f":
        changed.reshape(-1)[random_.randrange(changed.size)] = random_.choice((np.nan, np.inf, 1e38))
    return changed


def option_call(artifact: pathlib.Path, out: pathlib.Path) -> Callable[[random.Random], bytes]:
    """A call of `mar plan` or `mar generate` with options that do not belong there."""

    def call(random_: random.Random) -> bytes:
        command = random_.choice(("plan", "generate"))
        line = [command, str(artifact)]
        if command == "generate":
            line += ["--out", str(out / "grid.png"), "--threads", "1", "--count", "2"]
        for _ in range(random_.choice((1, 2, 3))):
            option, text = random_.choice(_OPTIONS), random_.choice(_TEXTS)
            line += random_.choice(([option, text], [f"{option}={text}"], [option], [text]))
        if "--count" in line[7:]:  # a legitimate count of images can take long
            return b""
        mar(line, prog_name="mar", standalone_mode=False)
        return b""

    return call
