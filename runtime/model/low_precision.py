"""What lower precision leaves alone, whether graphs are exported in it or calibrated for it."""

from __future__ import annotations

# Where an error is amplified most: the embedding of timesteps, whose neighbours are a fraction of a percent apart; the
# first projections, which read the sampler's state and the tokens; the head's last one, whose error the first steps of
# a chain amplify; and the first and last convolutions of a tokenizer.
_FLOAT32 = ("time_embed", "input_proj", "final_layer.linear", "z_proj", "conv_in", "conv_out")


def stays_in_float32(layer: str) -> bool:
    """Whether `layer`, a module's path such as "final_layer.linear" or "engine/path", is one of them or part of one."""
    return any(name in layer for name in _FLOAT32)
