"""The engines of NOVA, whose condition is a prefix of the backbone."""

from __future__ import annotations

from runtime.model.engine_spec import (
    CONDITION,
    FLOAT,
    INT,
    TEXT_ENCODER,
    EngineSpec,
    TensorSpec,
    head_specs,
    masked_backbone,
)
from runtime.model.nova_config import NovaConfig


def nova_specs(config: NovaConfig) -> tuple[EngineSpec, ...]:
    """Return the specs of the engines of the sampling loop.

    `condition` reads Q prompts: rows of text, and how many of them each prompt has; the rest is not read. Its second
    output, a constant, is the condition of the empty prompt.
    """
    rows = (config.condition_rows, config.width)
    condition = EngineSpec(
        CONDITION,
        inputs=(
            TensorSpec("text", FLOAT, ("Q", config.text_token_len, config.text_token_dim)),
            TensorSpec("lengths", INT, ("Q",)),
        ),
        outputs=(TensorSpec("condition", FLOAT, ("Q", *rows)), TensorSpec("unconditional", FLOAT, rows)),
    )
    prefix = TensorSpec("condition", FLOAT, ("GB", *rows))
    return condition, masked_backbone(config, prefix), *head_specs(config)


def nova_text_specs(config: NovaConfig) -> tuple[EngineSpec, ...]:
    """Return the spec of the text encoder: tokens of Q prompts to a row for each of them.

    It is causal, so a row does not depend on what follows it: shorter prompts are filled up with any token.
    """
    text_encoder = EngineSpec(
        TEXT_ENCODER,
        inputs=(TensorSpec("token_ids", INT, ("Q", "U")),),
        outputs=(TensorSpec("text", FLOAT, ("Q", "U", config.text_token_dim)),),
    )
    return (text_encoder,)
