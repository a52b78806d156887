"""The engines of ReCAP: a backbone whose full pass leaves keys and values, and one whose local pass reads them.

A *group* of iterations has a full pass and then local ones, see `runtime.sampling.recap`. K tokens are predicted in
this iteration and H in later ones of the group; before a local pass, J were drawn since the full pass. A local pass
computes A rows of the class buffer anew: all of them or none.

The keys and values of a row are those of all blocks side by side, of the encoder or of the decoder. Rows are laid out
so that what a local pass reads is a prefix of what the full pass left. The encoder leaves the V known tokens and then
the buffer. The decoder leaves the known tokens, the R tokens outside the group, the buffer, and the group's tokens.
"""

from __future__ import annotations

from runtime.model.config import ModelConfig
from runtime.model.engine_spec import BACKBONE, FLOAT, INT, EngineSpec, TensorSpec
from runtime.model.mar_engines import LABELS

FULL, LOCAL = RECAP_ENGINES = ("backbone_full", "backbone_local")
"""The engines of an artifact that can reuse keys and values. Their weights are those of `backbone`."""

RECAP_AXES = "JHAEF"
"""The dynamic axes that only these engines have."""


def recap_specs(config: ModelConfig) -> tuple[EngineSpec, ...]:
    """Return the specs of the engines of ReCAP for a model with bidirectional attention."""
    tokens, buffer = config.token_channels, config.buffer_size
    predict, later = TensorSpec("predict", INT, ("K", "B")), TensorSpec("later", INT, ("H", "B"))
    z = TensorSpec("z", FLOAT, ("K*GB", config.z_channels))
    full = EngineSpec(
        FULL,
        inputs=(
            TensorSpec("tokens", FLOAT, ("V", "B", tokens)),
            TensorSpec("visible", INT, ("V", "B")),
            predict,
            later,
            TensorSpec("rest", INT, ("R", "B")),
            LABELS,
        ),
        outputs=(
            z,
            TensorSpec("encoder_cache", FLOAT, (f"V+{buffer}", "GB", config.encoder_cache_channels)),
            TensorSpec("decoder_cache", FLOAT, (f"V+K+H+R+{buffer}", "GB", config.decoder_cache_channels)),
        ),
        weights_of=BACKBONE,
    )
    local = EngineSpec(
        LOCAL,
        inputs=(
            TensorSpec("tokens", FLOAT, ("J", "B", tokens)),
            TensorSpec("drawn", INT, ("J", "B")),
            predict,
            later,
            TensorSpec("buffer", INT, ("A",)),
            LABELS,
            TensorSpec("encoder_cache", FLOAT, ("E", "GB", config.encoder_cache_channels)),
            TensorSpec("decoder_cache", FLOAT, ("F", "GB", config.decoder_cache_channels)),
        ),
        outputs=(z,),
        weights_of=BACKBONE,
    )
    return full, local
