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
from runtime.model.family_config import FamilyConfig

Axis = str | int
"""A dynamic axis by its letter, a product of several (`K*GB`), or a fixed size."""

AXES = {
    "B": "images",
    "V": "known tokens",
    "K": "predicted tokens",
    "R": "remaining tokens",
    "O": "other tokens: all that are not known",
    "S": "new slots of the sequence",
    "P": "earlier slots",
    "G": "guidance halves",
    "N": "rows of the head (one for each predicted token)",
    "T": "diffusion steps",
    "Q": "prompts",
    "U": "tokens of a prompt",
    "Y": "rows of latents",
    "X": "columns of latents",
    "J": "tokens drawn since the full pass",
    "H": "tokens that later iterations of the group predict",
    "A": "rows of the class buffer computed anew",
    "E": "rows of the encoder's cache",
    "F": "rows of the decoder's cache",
}
"""What the letters of dynamic axes stand for."""

Array = NDArray[Any]

Shapes = tuple[tuple[int, ...], ...]
"""The shapes of the inputs or outputs of a call, in the order of the spec."""

Engine = Callable[..., tuple[Array, ...]]
"""A loaded engine: takes the inputs of its spec by name, returns the outputs in the order of the spec."""

BACKBONE, CONDITIONING, DENOISE = ENGINES = ("backbone", "conditioning", "denoise")
"""The engines of the sampling loop, which every artifact has."""

CONDITION = "condition"
"""The engine that computes what the backbone reads as a prefix, once for each image, in families that have one."""

TEXT_ENCODER = "text_encoder"
"""The engine that turns tokens of a prompt into the rows that `condition` reads; optional."""

DECODER, ENCODER = TOKENIZER_ENGINES = ("decoder", "encoder")
"""The engines of a KL tokenizer; the encoder is optional."""

DEVICE = "device"
"""In reports of times, the name of the complete sampling loop when one device runs all of it."""

FLOAT, INT = "float32", "int64"
"""The dtypes of inputs and outputs."""

_SHAPE_LETTERS = {
    "GB": "G*B",
    "GN": "G*N",
    "K*GB": "G*N",
    "V+O": "L",
}  # axes of the graphs -> products of shape letters


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One input or output of an engine.

    Attributes:
        name: Its name in the graph.
        dtype: Its numpy dtype, `float32` or `int64`.
        shape: Its axes; a text is a dynamic axis, or a sum of products of several and of numbers.
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
            sum(_product(term, axes) for term in axis.split("+")) if isinstance(axis, str) else axis
            for axis in self.shape
        )


def _product(term: str, axes: Mapping[str, int]) -> int:
    """Return the size that a product of axes and numbers stands for."""
    return math.prod(int(name) if name.isdecimal() else axes[name] for name in term.split("*"))


@dataclasses.dataclass(frozen=True)
class EngineSpec:
    """The inputs and outputs of one engine.

    Attributes:
        name: The name of the engine.
        inputs: Its inputs, in the order of the graph.
        outputs: Its outputs, in the order of the graph.
        phase: The number of the grid that it works on, in the order in which a family draws them.
        weights_of: The engine whose file of weights its graph refers to; None: it has one of its own.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    phase: int = 0
    weights_of: str | None = None

    def axes(self, input_shapes: Shapes) -> dict[str, int]:
        """Return the size of every dynamic axis of the inputs, from their shapes in the order of the spec."""
        return {
            axis: size
            for tensor, shape in zip(self.inputs, input_shapes, strict=True)
            for axis, size in zip(tensor.shape, shape, strict=True)
            if isinstance(axis, str)
        }

    def output_shapes(self, input_shapes: Shapes) -> Shapes:
        """Return the shapes of the outputs for inputs of these shapes."""
        axes = self.axes(input_shapes)
        return tuple(tensor.sized(axes) for tensor in self.outputs)

    def to_dict(self) -> dict[str, Any]:
        """Return the inputs and outputs as the manifest stores them."""
        return {
            "inputs": [_tensor_to_dict(tensor) for tensor in self.inputs],
            "outputs": [_tensor_to_dict(tensor) for tensor in self.outputs],
        }


def _tensor_to_dict(tensor: TensorSpec) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}


def masked_backbone(config: FamilyConfig, condition: TensorSpec) -> EngineSpec:
    """Return the spec of a bidirectional backbone: known tokens and positions to z of the predicted tokens.

    Args:
        config: The model.
        condition: The input that says what is drawn, with `GB` as first axis.
    """
    return EngineSpec(
        BACKBONE,
        inputs=(
            TensorSpec("tokens", FLOAT, ("V", "B", config.token_channels)),
            TensorSpec("visible", INT, ("V", "B")),
            TensorSpec("predict", INT, ("K", "B")),
            TensorSpec("rest", INT, ("R", "B")),
            condition,
        ),
        outputs=(TensorSpec("z", FLOAT, ("K*GB", config.z_channels)),),
    )


def head_specs(config: FamilyConfig) -> tuple[EngineSpec, EngineSpec]:
    """Return the specs of the two engines of a head that denoises every token for itself.

    `conditioning` is the part that does not depend on x: z and all timesteps to the modulation of every step.
    `denoise` is one diffusion step: x and the modulation of the step to the next x.
    """
    channels = config.token_channels
    conditioning = EngineSpec(
        CONDITIONING,
        inputs=(
            TensorSpec("z", FLOAT, ("GN", config.z_channels)),
            TensorSpec("timesteps", FLOAT, ("T",)),
        ),
        outputs=(TensorSpec("modulation", FLOAT, ("T", "GN", config.modulation_channels)),),
    )
    denoise = EngineSpec(
        DENOISE,
        inputs=(
            TensorSpec("x", FLOAT, ("N", channels)),
            TensorSpec("previous_x0", FLOAT, ("N", channels)),
            TensorSpec("noise", FLOAT, ("N", channels)),
            TensorSpec("modulation", FLOAT, ("GN", config.modulation_channels)),
            TensorSpec("coefficients", FLOAT, (len(COEFFICIENTS),)),
            TensorSpec("guidance", FLOAT, (1,)),
        ),
        outputs=(
            TensorSpec("next_x", FLOAT, ("N", channels)),
            TensorSpec("x0", FLOAT, ("N", channels)),
        ),
    )
    return conditioning, denoise


def tokenizer_specs(config: FamilyConfig, any_size: bool = False) -> dict[str, EngineSpec]:
    """Return the specs of the engines of a KL tokenizer, by name.

    The decoder turns latents into pixels of -1..1. The encoder turns pixels into the mean of their latents.

    Args:
        config: The model.
        any_size: Whether the decoder reads latents of any size, for a model that draws several grids.
    """
    height, width, _ = config.image_shape
    latents = TensorSpec("latents", FLOAT, ("B", *config.latent_shape))
    image = TensorSpec("image", FLOAT, ("B", 3, height, width))
    decoded, decoder_image = latents, image
    if any_size:
        stride = height // config.latent_shape[1]
        decoded = TensorSpec("latents", FLOAT, ("B", config.latent_shape[0], "Y", "X"))
        decoder_image = TensorSpec("image", FLOAT, ("B", 3, f"{stride}*Y", f"{stride}*X"))
    return {
        DECODER: EngineSpec(DECODER, inputs=(decoded,), outputs=(decoder_image,)),
        ENCODER: EngineSpec(ENCODER, inputs=(image,), outputs=(latents,)),
    }
