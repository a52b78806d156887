"""The layers that stay in float32 when a model is exported in lower precision or quantized."""

from __future__ import annotations

# Errors are amplified most in these layers: the timestep embedding, because neighbouring timesteps differ by a fraction
# of a percent; the first projections, which read the sampler's state and the tokens; the last projection of the head,
# whose error the first steps of a chain amplify; and the first and last convolutions of a tokenizer.
_FLOAT32 = ("time_embed", "input_proj", "final_layer.linear", "z_proj", "conv_in", "conv_out")


def stays_in_float32(layer: str) -> bool:
    """Return whether a layer stays in float32.

    Args:
        layer: The path of a module, such as `final_layer.linear`, or `engine/path`.
    """
    return any(name in layer for name in _FLOAT32)
