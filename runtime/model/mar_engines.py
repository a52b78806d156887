"""The engines of MAR, whose condition are class labels."""

from __future__ import annotations

from runtime.model.config import ModelConfig
from runtime.model.engine_spec import BACKBONE, FLOAT, INT, EngineSpec, TensorSpec, head_specs, masked_backbone

LABELS = TensorSpec("labels", INT, ("GB",))
"""The condition of the backbone: a class for each image and guidance half."""


def mar_specs(config: ModelConfig) -> tuple[EngineSpec, ...]:
    """Return the specs of the engines of a model with bidirectional attention."""
    return masked_backbone(config, LABELS), *head_specs(config)


def causal_specs(config: ModelConfig) -> tuple[EngineSpec, ...]:
    """Return the specs of the engines of a model with causal attention.

    Its backbone reads new slots, and the keys and values of earlier ones, and returns z of the next token.
    """
    backbone = EngineSpec(
        BACKBONE,
        inputs=(
            TensorSpec("tokens", FLOAT, ("S", "B", config.token_channels)),
            TensorSpec("position_ids", INT, ("S", "B")),
            TensorSpec("next_position_ids", INT, ("S", "B")),
            LABELS,
            TensorSpec("past_key_values", FLOAT, ("P", "GB", config.cache_channels)),
        ),
        outputs=(
            TensorSpec("z", FLOAT, ("GB", config.z_channels)),
            TensorSpec("present_key_values", FLOAT, ("S", "GB", config.cache_channels)),
        ),
    )
    return backbone, *head_specs(config)
