"""The engines of UVA's policy mode, whose condition are the rows of its first transformer."""

from __future__ import annotations

from runtime.model.engine_spec import (
    BACKBONE,
    CONDITION,
    FLOAT,
    INT,
    EngineSpec,
    TensorSpec,
    head_specs,
)
from runtime.model.uva_config import FRAMES, UvaConfig


def uva_specs(config: UvaConfig) -> tuple[EngineSpec, ...]:
    """Return the specs of the engines of the sampling loop.

    `condition` reads the latents of the frames of B robots and, where the model has them, the features of a text and
    the state. `backbone` reads no tokens, since all actions are predicted in one iteration.
    """
    inputs = [TensorSpec("latents", FLOAT, ("B", FRAMES, *config.latent_shape))]
    if config.text_dim:
        inputs.append(TensorSpec("text", FLOAT, ("B", config.text_dim)))
    if config.state_dim:
        inputs.append(TensorSpec("state", FLOAT, ("B", config.state_steps, config.state_dim)))
    rows = (config.condition_rows, config.encoder_embed_dim)
    condition = EngineSpec(CONDITION, tuple(inputs), (TensorSpec("condition", FLOAT, ("B", *rows)),))
    backbone = EngineSpec(
        BACKBONE,
        inputs=(TensorSpec("predict", INT, ("K", "B")), TensorSpec("condition", FLOAT, ("GB", *rows))),
        outputs=(TensorSpec("z", FLOAT, ("K*GB", config.z_channels)),),
    )
    return condition, backbone, *head_specs(config)
