"""A request for images as named tensors: the inputs and outputs by which inference servers know a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.checks import truncate
from runtime.errors import RequestError
from runtime.service.drawing import Drawing
from runtime.service.served_model import ServedModel, random_seed

IMAGE = "IMAGE"
"""The name of the output: the images, UINT8 [-1, H, W, c]."""


@dataclasses.dataclass(frozen=True)
class TensorInput:
    """An input.

    Attributes:
        name: Its name.
        datatype: Its type in the Open Inference Protocol.
        meaning: What it holds, for people.
    """

    name: str
    datatype: str
    meaning: str


INPUTS = (
    TensorInput("LABEL", "INT32", "the class of each image by number; give LABEL or PROMPT"),
    TensorInput(
        "PROMPT", "BYTES", "the class of each image by name or number; of a model that draws from text, its prompt"
    ),
    TensorInput(
        "NEGATIVE_PROMPT", "BYTES", "optional: what each image should not show, for a model that draws from text"
    ),
    TensorInput("SEED", "UINT64", "optional: the seed of each image; drawn at random without it"),
    TensorInput("INDEX", "UINT64", "optional: the number of each image in the sequence of its seed, 0 without it"),
    TensorInput("GUIDANCE", "FP32", "optional: the scale of classifier-free guidance"),
    TensorInput("STEPS", "INT32", "optional: the number of iterations"),
    TensorInput("PRESET", "BYTES", "optional: the preset of each image"),
)
"""The inputs. Each has one value for every image, in the shape [-1] or [-1, 1]."""

DTYPES: Mapping[str, Any] = {"INT32": np.int32, "UINT64": np.uint64, "FP32": np.float32, "UINT8": np.uint8}
"""The numpy dtype of each type; a tensor of BYTES is an array of `bytes` objects."""


def drawings(
    model: ServedModel, tensors: Mapping[str, NDArray[Any]], most: int, deadline: float | None = None
) -> list[Drawing]:
    """Return a request for each image that the tensors ask for.

    Args:
        model: The model.
        tensors: The inputs by name, each with the dtype of `INPUTS`.
        most: The most images.
        deadline: The time on `time.monotonic` by which they must be done.

    Raises:
        RequestError: An input is missing, unknown, or has a wrong shape or value.
    """
    known = {each.name for each in INPUTS}
    unknown = sorted(tensors.keys() - known)
    if unknown:
        raise RequestError(f"unknown input {truncate(unknown[0])}; known: {', '.join(each.name for each in INPUTS)}")
    if ("LABEL" in tensors) == ("PROMPT" in tensors):
        raise RequestError("give one of the inputs LABEL and PROMPT")
    count = len(tensors["LABEL" if "LABEL" in tensors else "PROMPT"])
    if not 1 <= count <= most:
        raise RequestError(f"a request may have 1 to {most} images, found {count}")
    columns = {name: _column(name, tensor, count) for name, tensor in tensors.items()}
    return [_drawing(model, {name: values[row] for name, values in columns.items()}, deadline) for row in range(count)]


def _column(name: str, tensor: NDArray[Any], count: int) -> list[Any]:
    """Return the value of each image."""
    if tensor.shape not in ((count,), (count, 1)):
        raise RequestError(f"the input {name} must have the shape [{count}, 1], found {list(tensor.shape)}")
    values = tensor.reshape(-1)
    if tensor.dtype == np.float32:
        return [float(str(value)) for value in values]  # 1.7 as it was written, not 1.7000000476837158
    try:
        return [value.decode() if isinstance(value, bytes) else value for value in values.tolist()]
    except UnicodeDecodeError:
        raise RequestError(f"the input {name} holds a text that is not UTF-8") from None


def _drawing(model: ServedModel, values: Mapping[str, Any], deadline: float | None) -> Drawing:
    preset = values.get("PRESET") or model.default_preset
    prompt = values["LABEL"] if "LABEL" in values else values["PROMPT"]
    return Drawing(
        subjects=[model.subject(prompt, values.get("NEGATIVE_PROMPT"))],
        seeds=[values.get("SEED", random_seed())],
        indices=[values.get("INDEX", 0)],
        sampling=model.sampling(preset, iterations=values.get("STEPS"), cfg_scale=values.get("GUIDANCE")),
        preset=preset,
        deadline=deadline,
    )
