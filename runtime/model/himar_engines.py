"""The engines of Hi-MAR: those of MAR for the low-resolution grid, and three more for the full one.

`backbone2` reads z of all S small tokens, `small_z`, and the V known big ones; `conditioning2` is the part of the DiT
that no noisy token enters; `denoise2` is one diffusion step of all L tokens of an image together. The known ones take
part in it: the graph puts them in, where `known` is 1, at the noise level of the step and with the noise that the chain
began with. What it makes of them has no meaning. All rows are in generation order, so the known ones come first.
"""

from __future__ import annotations

from runtime.model.coefficients import COEFFICIENTS
from runtime.model.engine_spec import FLOAT, INT, EngineSpec, TensorSpec, head_specs, masked_backbone
from runtime.model.himar_config import HimarConfig
from runtime.model.mar_engines import LABELS

BACKBONE2, CONDITIONING2, DENOISE2 = "backbone2", "conditioning2", "denoise2"
"""The engines of the full grid."""


def himar_specs(config: HimarConfig) -> tuple[EngineSpec, ...]:
    """Return the specs of the engines of the sampling loop."""
    small, channels, width = config.small_tokens, config.token_channels, config.gdm_w
    backbone2 = EngineSpec(
        BACKBONE2,
        inputs=(
            TensorSpec("small_z", FLOAT, (small, "B", config.z_channels)),
            TensorSpec("small_order", INT, (small, "B")),
            TensorSpec("tokens", FLOAT, ("V", "B", channels)),
            TensorSpec("visible", INT, ("V", "B")),
            TensorSpec("rest", INT, ("O", "B")),
            LABELS,
        ),
        outputs=(TensorSpec("z", FLOAT, ("V+O", "GB", config.z_channels)),),  # all L tokens
        phase=1,
    )
    conditioning2 = EngineSpec(
        CONDITIONING2,
        inputs=(
            TensorSpec("z", FLOAT, (config.tokens, "GB", config.z_channels)),
            TensorSpec("timesteps", FLOAT, ("T",)),
        ),
        outputs=(
            TensorSpec("condition", FLOAT, (config.tokens, "GB", width)),
            TensorSpec("times", FLOAT, ("T", width)),
        ),
        phase=1,
    )
    return masked_backbone(config, LABELS), *head_specs(config), backbone2, conditioning2, _denoise2(config)


def _denoise2(config: HimarConfig) -> EngineSpec:
    width, tokens = config.gdm_w, (config.tokens, "B", config.token_channels)
    return EngineSpec(
        DENOISE2,
        inputs=(
            TensorSpec("x", FLOAT, tokens),
            TensorSpec("previous_x0", FLOAT, tokens),
            TensorSpec("noise", FLOAT, tokens),
            TensorSpec("tokens", FLOAT, tokens),
            TensorSpec("first_noise", FLOAT, tokens),
            TensorSpec("known", FLOAT, (config.tokens,)),
            TensorSpec("order", INT, (config.tokens, "B")),
            TensorSpec("condition", FLOAT, (config.tokens, "GB", width)),
            TensorSpec("time", FLOAT, (width,)),
            TensorSpec("coefficients", FLOAT, (len(COEFFICIENTS),)),
            TensorSpec("guidance", FLOAT, (1,)),
        ),
        outputs=(
            TensorSpec("next_x", FLOAT, tokens),
            TensorSpec("x0", FLOAT, tokens),
        ),
        phase=1,
    )
