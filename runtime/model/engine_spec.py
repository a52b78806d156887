"""The inputs and outputs of every engine: the one description that the exporter, the manifest and the runtime use.

Dynamic axes: B images; V known tokens, K tokens predicted in this iteration, R remaining tokens; N = K B rows of the
head, one for each predicted token; T diffusion steps. With guidance, labels and rows are there twice, the conditional
half first: G*B labels and G*N rows, where G is 2 with guidance and 1 without. The graphs name these axes `GB` and `GN`.
All other sizes are fixed by the model.

Under causal attention the backbone reads a sequence in parts, first the class buffer and then the tokens: S slots
of the sequence in this call, P slots in earlier calls. `position_ids` are the positions of the S slots, and
`next_position_ids` the positions of the slots that follow each of them; the position of a token is counted from the
end of the class buffer. `past_key_values` are the keys and values of the P earlier slots in every block, and
`present_key_values` those of the S slots.

The sequence is the first axis of tokens and positions. In generation order, the known tokens are then the beginning of
one buffer and the predicted tokens are a contiguous slice of it.

Inputs and outputs are float32 or int64, whatever precision an engine computes in.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from runtime.model.coefficients import COEFFICIENTS
from runtime.model.config import ModelConfig

Axis = str | int
"""A dynamic axis by its letter, a product of several (`K*GB`), or a fixed size."""

Array = NDArray[Any]

Engine = Callable[..., tuple[Array, ...]]
"""A loaded engine: takes the inputs of its spec by name, returns the outputs in the order of the spec."""

BACKBONE, CONDITIONING, DENOISE = ENGINES = ("backbone", "conditioning", "denoise")
"""The engines of the sampling loop, which every artifact has."""

DECODER, ENCODER = TOKENIZER_ENGINES = ("decoder", "encoder")
"""The engines of a KL tokenizer; the encoder is optional."""

DEVICE = "device"
"""In reports of times, the name of the complete sampling loop when one device runs all of it."""

_FLOAT, _INT = "float32", "int64"

_SHAPE_LETTERS = {"GB": "G*B", "GN": "G*N", "K*GB": "G*N"}  # axes of the graphs -> products of shape letters


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One input or output of an engine.

    Attributes:
        name: Its name in the graph.
        dtype: Its numpy dtype, `float32` or `int64`.
        shape: Its axes; a text is a dynamic axis or a product of several.
    """

    name: str
    dtype: str
    shape: tuple[Axis, ...]

    def shape_letters(self) -> str:
        """Return the shape in the shape letters of the documentation, such as `G*B, 16`."""
        return ", ".join(_SHAPE_LETTERS.get(axis, axis) if isinstance(axis, str) else str(axis) for axis in self.shape)

    def sized(self, axes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape in numbers, for the sizes of the dynamic axes in `axes`."""
        return tuple(
            math.prod(axes[name] for name in axis.split("*")) if isinstance(axis, str) else axis for axis in self.shape
        )


@dataclasses.dataclass(frozen=True)
class EngineSpec:
    """The inputs and outputs of one engine.

    Attributes:
        name: The name of the engine.
        inputs: Its inputs, in the order of the graph.
        outputs: Its outputs, in the order of the graph.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the inputs and outputs as the manifest stores them."""
        return {
            "inputs": [_tensor_to_dict(tensor) for tensor in self.inputs],
            "outputs": [_tensor_to_dict(tensor) for tensor in self.outputs],
        }


def _tensor_to_dict(tensor: TensorSpec) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}


def engine_specs(config: ModelConfig) -> dict[str, EngineSpec]:
    """Return the specs of the engines of the sampling loop for a model, by name."""
    backbone = _causal_backbone(config) if config.attention == "causal" else _backbone(config)
    return {spec.name: spec for spec in (backbone, _conditioning(config), _denoise(config))}


def _backbone(config: ModelConfig) -> EngineSpec:
    """The bidirectional backbone: known tokens and positions to z of the predicted tokens."""
    return EngineSpec(
        BACKBONE,
        inputs=(
            TensorSpec("tokens", _FLOAT, ("V", "B", config.token_channels)),
            TensorSpec("visible", _INT, ("V", "B")),
            TensorSpec("predict", _INT, ("K", "B")),
            TensorSpec("rest", _INT, ("R", "B")),
            TensorSpec("labels", _INT, ("GB",)),
        ),
        outputs=(TensorSpec("z", _FLOAT, ("K*GB", config.decoder_embed_dim)),),
    )


def _causal_backbone(config: ModelConfig) -> EngineSpec:
    """The causal backbone: new slots and the keys and values of earlier ones to z of the next token."""
    return EngineSpec(
        BACKBONE,
        inputs=(
            TensorSpec("tokens", _FLOAT, ("S", "B", config.token_channels)),
            TensorSpec("position_ids", _INT, ("S", "B")),
            TensorSpec("next_position_ids", _INT, ("S", "B")),
            TensorSpec("labels", _INT, ("GB",)),
            TensorSpec("past_key_values", _FLOAT, ("P", "GB", config.cache_channels)),
        ),
        outputs=(
            TensorSpec("z", _FLOAT, ("GB", config.decoder_embed_dim)),
            TensorSpec("present_key_values", _FLOAT, ("S", "GB", config.cache_channels)),
        ),
    )


def _conditioning(config: ModelConfig) -> EngineSpec:
    """The part of the head that does not depend on x: z and all timesteps to the modulation of every step."""
    return EngineSpec(
        CONDITIONING,
        inputs=(
            TensorSpec("z", _FLOAT, ("GN", config.decoder_embed_dim)),
            TensorSpec("timesteps", _FLOAT, ("T",)),
        ),
        outputs=(TensorSpec("modulation", _FLOAT, ("T", "GN", config.modulation_channels)),),
    )


def _denoise(config: ModelConfig) -> EngineSpec:
    """One diffusion step: x and the modulation of the step to the next x."""
    channels = config.token_channels
    return EngineSpec(
        DENOISE,
        inputs=(
            TensorSpec("x", _FLOAT, ("N", channels)),
            TensorSpec("previous_x0", _FLOAT, ("N", channels)),
            TensorSpec("noise", _FLOAT, ("N", channels)),
            TensorSpec("modulation", _FLOAT, ("GN", config.modulation_channels)),
            TensorSpec("coefficients", _FLOAT, (len(COEFFICIENTS),)),
            TensorSpec("guidance", _FLOAT, (1,)),
        ),
        outputs=(
            TensorSpec("next_x", _FLOAT, ("N", channels)),
            TensorSpec("x0", _FLOAT, ("N", channels)),
        ),
    )


def tokenizer_specs(config: ModelConfig) -> dict[str, EngineSpec]:
    """Return the specs of the engines of a KL tokenizer, by name.

    The decoder turns latents into pixels of -1..1. The encoder turns pixels into the mean of their latents.
    """
    side = config.img_size // config.vae_stride
    latents = TensorSpec("latents", _FLOAT, ("B", config.vae_embed_dim, side, side))
    image = TensorSpec("image", _FLOAT, ("B", 3, config.img_size, config.img_size))
    return {
        DECODER: EngineSpec(DECODER, inputs=(latents,), outputs=(image,)),
        ENCODER: EngineSpec(ENCODER, inputs=(image,), outputs=(latents,)),
    }
