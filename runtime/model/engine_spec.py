"""What each engine takes and gives: one description that exporter, manifest, runtime and tests all read.

Axes: B images; V tokens known, K predicted now, R the rest; N rows of the head, one a token, K B of them;
GB and GN as many labels and rows for each guidance half (2, or 1 without guidance), the conditional half
first, so that GN = GB K; T diffusion steps. Other sizes are numbers of the model.

Under causal attention the backbone reads a sequence in parts, first the class buffer and then the tokens: S slots
of the sequence in this call, P slots in earlier calls. `position_ids` are the positions of the S slots, and
`next_position_ids` the positions of the slots that follow each of them; the position of a token is counted from the
end of the class buffer. `past_key_values` are the keys and values of the P earlier slots in every block, and
`present_key_values` those of the S slots.

Tokens and positions are sequence first: in generation order, what is known so far is then the beginning of
a buffer, and what is predicted now a part of it without gaps.

Whatever precision an engine computes in, its inputs and outputs are float32.
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
Array = NDArray[Any]

# An engine takes its spec's inputs by name and returns its outputs in the spec's order.
Engine = Callable[..., tuple[Array, ...]]

BACKBONE, CONDITIONING, DENOISE = ENGINES = ("backbone", "conditioning", "denoise")  # those of the loop
DECODER, ENCODER = TOKENIZER_ENGINES = ("decoder", "encoder")  # those of a KL tokenizer, the second on request
DEVICE = "device"  # in times of an image: all of its loop, where that runs on a device in one piece


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One input or output: its name, numpy dtype, and shape, where text is a dynamic axis or a product of some."""

    name: str
    dtype: str
    shape: tuple[Axis, ...]

    def sized(self, axes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape where every dynamic axis has its size in `axes`."""
        return tuple(
            math.prod(axes[name] for name in axis.split("*")) if isinstance(axis, str) else axis for axis in self.shape
        )


@dataclasses.dataclass(frozen=True)
class EngineSpec:
    """One engine."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def to_dict(self) -> dict[str, Any]:
        """What the manifest holds of it."""
        return {
            "inputs": [_tensor_to_dict(tensor) for tensor in self.inputs],
            "outputs": [_tensor_to_dict(tensor) for tensor in self.outputs],
        }


def _tensor_to_dict(tensor: TensorSpec) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}


def engine_specs(config: ModelConfig) -> dict[str, EngineSpec]:
    """The specs of the engines of the loop, which every model of this config has, by name."""
    channels, z_channels, modulation = config.token_channels, config.decoder_embed_dim, config.modulation_channels
    float_, int_ = "float32", "int64"
    backbone = EngineSpec(
        BACKBONE,
        inputs=(
            TensorSpec("tokens", float_, ("V", "B", channels)),
            TensorSpec("visible", int_, ("V", "B")),
            TensorSpec("predict", int_, ("K", "B")),
            TensorSpec("rest", int_, ("R", "B")),
            TensorSpec("labels", int_, ("GB",)),
        ),
        outputs=(TensorSpec("z", float_, ("K*GB", z_channels)),),
    )
    causal = EngineSpec(
        BACKBONE,
        inputs=(
            TensorSpec("tokens", float_, ("S", "B", channels)),
            TensorSpec("position_ids", int_, ("S", "B")),
            TensorSpec("next_position_ids", int_, ("S", "B")),
            TensorSpec("labels", int_, ("GB",)),
            TensorSpec("past_key_values", float_, ("P", "GB", config.cache_channels)),
        ),
        outputs=(
            TensorSpec("z", float_, ("GB", z_channels)),
            TensorSpec("present_key_values", float_, ("S", "GB", config.cache_channels)),
        ),
    )
    specs = (
        causal if config.attention == "causal" else backbone,
        EngineSpec(
            CONDITIONING,
            inputs=(
                TensorSpec("z", float_, ("GN", z_channels)),
                TensorSpec("timesteps", float_, ("T",)),
            ),
            outputs=(TensorSpec("modulation", float_, ("T", "GN", modulation)),),
        ),
        EngineSpec(
            DENOISE,
            inputs=(
                TensorSpec("x", float_, ("N", channels)),
                TensorSpec("previous_x0", float_, ("N", channels)),
                TensorSpec("noise", float_, ("N", channels)),
                TensorSpec("modulation", float_, ("GN", modulation)),
                TensorSpec("coefficients", float_, (len(COEFFICIENTS),)),
                TensorSpec("guidance", float_, (1,)),
            ),
            outputs=(
                TensorSpec("next_x", float_, ("N", channels)),
                TensorSpec("x0", float_, ("N", channels)),
            ),
        ),
    )
    return {spec.name: spec for spec in specs}


def tokenizer_specs(config: ModelConfig) -> dict[str, EngineSpec]:
    """The specs of the engines of a KL tokenizer, by name: latents to pixels of -1..1, and back to their mean."""
    side = config.img_size // config.vae_stride
    latents = TensorSpec("latents", "float32", ("B", config.vae_embed_dim, side, side))
    image = TensorSpec("image", "float32", ("B", 3, config.img_size, config.img_size))
    return {
        DECODER: EngineSpec(DECODER, inputs=(latents,), outputs=(image,)),
        ENCODER: EngineSpec(ENCODER, inputs=(image,), outputs=(latents,)),
    }
