"""Observations as the subjects of a request: what B robots see, of which a UVA draws a chunk of actions each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from runtime.checks import check_finite, pluralize, truncate
from runtime.errors import BackendError, RequestError
from runtime.model.engine_spec import CONDITION, Array
from runtime.model.family_config import FamilyConfig
from runtime.model.uva_config import FRAMES, UvaConfig
from runtime.requests.prompt_tokenizer import PromptTokenizer
from runtime.requests.subjects import ConditionEngines
from runtime.requests.validation import MAX_BATCH, as_array, finite_float32
from runtime.sampling.plan import Condition

FRAMES_KEY, LATENTS_KEY = "frames", "latents"
"""The keys of an observation of which it has one."""

_HISTORY = 16  # the frames of an observation in published data, of which every fourth is taken


@dataclasses.dataclass(frozen=True)
class Observations:
    """What B robots see; a `runtime.requests.subjects.Subjects`.

    Attributes:
        arrays: The inputs of the engine `condition` by name, float32, with B as first axis.
    """

    arrays: Mapping[str, NDArray[np.float32]]

    def __len__(self) -> int:
        return len(self.arrays[LATENTS_KEY])

    def part(self, images: slice) -> Observations:
        """Return the observations of some of the robots."""
        return Observations({name: array[images] for name, array in self.arrays.items()})

    def condition(self, engines: ConditionEngines, guided: bool) -> Condition:
        """Return the rows of the first transformer [B, Lc, E]; there is no guidance."""
        if engines.condition is None:
            raise BackendError("the engine condition is missing, which a model that reads observations needs")
        (rows,) = engines.condition(**self.arrays)
        check_finite(rows, f"engine {CONDITION}")
        return rows

    def given(self, place: int) -> dict[str, Array]:
        """Return what one of the robots sees."""
        return {name: array[place] for name, array in self.arrays.items()}

    def record(self, place: int) -> dict[str, Any]:
        """Return number and name of no class."""
        return {"class_number": 0, "class_name": ""}


def example_observations(config: UvaConfig, count: int) -> dict[str, Any]:
    """Return a request of `count` random observations; a `runtime.requests.subjects.ExampleRequest`."""
    random = np.random.default_rng(0)
    observation = {LATENTS_KEY: random.standard_normal((count, FRAMES, *config.latent_shape), np.float32)}
    if config.text_dim:
        observation["text"] = random.standard_normal((count, config.text_dim), np.float32)
    if config.state_dim:
        observation["state"] = random.standard_normal((count, config.state_steps, config.state_dim), np.float32)
    return {"observation": observation}


def check_observations(
    inputs: Mapping[str, Any], config: FamilyConfig, names: Sequence[str], tokenizer: PromptTokenizer | None
) -> Observations:
    """Check the observation of a request; a `runtime.requests.subjects.CheckSubjects`. Its frames must be latents.

    Raises:
        RequestError: It is missing or wrong; see `check_observation`.
    """
    uva = cast(UvaConfig, config)
    for name in inputs.keys() - {"observation"}:
        if inputs[name] is not None:
            raise RequestError(
                f"this model drives a robot; call runtime.Policy, or give observation, found {name} "
                f"{truncate(inputs[name])}"
            )
    if inputs.get("observation") is None:
        raise RequestError("observation is missing; this model drives a robot, call runtime.Policy")
    arrays = check_observation(inputs["observation"], uva)
    if FRAMES_KEY in arrays:
        raise RequestError("observation: frames are encoded by runtime.Policy; call that, or give latents")
    return Observations(cast(Mapping[str, NDArray[np.float32]], arrays))


def check_observation(observation: Any, config: UvaConfig) -> dict[str, Array]:
    """Return the arrays of an observation of B robots by name, float32 but for frames of uint8.

    Args:
        observation: A mapping with either `frames`, [B, 4, H, W, 3] as uint8 or as floating point of 0..1, or
            `latents`, [B, 4, 16, 16, 16] (frame, channel, row, column); with `text` [B, text_dim] where the model has a
            text, and with `state` [B, 4 or 16, state_dim] where it has a state.
        config: The config of the model.

    Raises:
        RequestError: A key is missing or unknown, or an array has another shape or dtype, or values that are not
            finite.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    if config.text_dim:
        shapes["text"] = (config.text_dim,)
    if config.state_dim:
        shapes["state"] = (config.state_steps, config.state_dim)
    if not isinstance(observation, Mapping):
        raise RequestError(f"observation must be a mapping of arrays by name, found {truncate(observation)}")
    seen = [name for name in (FRAMES_KEY, LATENTS_KEY) if name in observation]
    expected = {*shapes, *(seen or [FRAMES_KEY])}
    missing, unknown = sorted(expected - observation.keys()), sorted(map(str, observation.keys() - expected))
    if missing or unknown or len(seen) != 1:
        problems = ["both frames and latents"] if len(seen) == 2 else []
        problems += [f"no {', '.join(missing)}"] if missing else []
        problems += [f"{truncate(', '.join(unknown))}, which this model does not read"] if unknown else []
        raise RequestError(
            f"observation must have {' and '.join(['frames or latents', *shapes])}, found {' and '.join(problems)}"
        )
    arrays = {name: as_array(f"observation: {name}", values) for name, values in observation.items()}
    if seen == [FRAMES_KEY]:
        count = _check_frames(arrays[FRAMES_KEY])
        checked: dict[str, Array] = {FRAMES_KEY: arrays[FRAMES_KEY]}
    else:
        shapes = {LATENTS_KEY: (FRAMES, *config.latent_shape), **shapes}
        count, checked = _robots(LATENTS_KEY, arrays[LATENTS_KEY]), {}
    for name, shape in shapes.items():
        checked[name] = _check_floats(f"observation: {name}", arrays[name], (count, *shape))
    return checked


def _robots(name: str, array: Array) -> int:
    """Return B, the number of robots that an array is of."""
    count = len(array) if array.ndim else 0
    if not 1 <= count <= MAX_BATCH:
        raise RequestError(f"observation: {name} must be of 1 to {MAX_BATCH} robots, found shape {list(array.shape)}")
    return count


def _check_frames(frames: Array) -> int:
    """Return the number of robots whose frames these are."""
    hint = ""
    if frames.ndim == 5 and frames.shape[1] == _HISTORY:
        hint = f"; of {_HISTORY} frames give every fourth, frames[:, 3::4]"
    if frames.ndim != 5 or frames.shape[1] != FRAMES or frames.shape[-1] != 3 or not frames.size:
        raise RequestError(
            f"observation: frames must have the shape [B, {FRAMES}, H, W, 3], found {list(frames.shape)}{hint}"
        )
    if frames.dtype != np.uint8 and frames.dtype.kind != "f":
        raise RequestError(f"observation: frames must be uint8, or floating point of 0..1, found {frames.dtype}")
    if frames.dtype.kind == "f" and not (frames.min() >= 0 and frames.max() <= 1):
        raise RequestError(
            f"observation: frames of {frames.dtype} must lie in 0..1, found {frames.min():.4g}..{frames.max():.4g}; "
            "give pixels of 0..255 as uint8"
        )
    return _robots(FRAMES_KEY, frames)


def _check_floats(name: str, array: Array, shape: tuple[int, ...]) -> Array:
    if array.shape != shape or array.dtype.kind != "f":
        raise RequestError(
            f"{name} must be floating point of shape {list(shape)} ({pluralize(shape[0], 'robot')} first), found "
            f"{array.dtype} {list(array.shape)}"
        )
    return finite_float32(name, array)
