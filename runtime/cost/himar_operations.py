"""The cost of Hi-MAR: a `runtime.cost.operations.IterationCosts`."""

from __future__ import annotations

from runtime.cost.operations import (
    FLOAT_BYTES,
    Cost,
    block_operations,
    block_weights,
    conditioning_cost,
    denoise_cost,
)
from runtime.model.config import FREQUENCIES
from runtime.model.engine_spec import BACKBONE, CONDITIONING, DENOISE
from runtime.model.himar_config import HimarConfig
from runtime.model.himar_engines import BACKBONE2, CONDITIONING2, DENOISE2
from runtime.sampling.plan import Iteration


def himar_costs(
    config: HimarConfig, iteration: Iteration, batch: int, weight_bytes: int
) -> dict[str, tuple[int, Cost]]:
    """Return the cost of one iteration of either grid; see `runtime.cost.operations.iteration_costs`."""
    sequences, steps = batch * (2 if iteration.guided else 1), iteration.table.steps
    known, count = iteration.known, iteration.count
    if iteration.phase == 0:
        rows = sequences * count
        return {
            BACKBONE: (1, _backbone(config, sequences, known, count, weight_bytes)),
            CONDITIONING: (1, conditioning_cost(config, rows, steps, weight_bytes)),
            DENOISE: (steps, denoise_cost(config, batch * count, rows, weight_bytes)),
        }
    return {
        BACKBONE2: (1, _backbone(config, sequences, config.small_tokens + known, config.tokens, weight_bytes)),
        CONDITIONING2: (1, _conditioning(config, sequences, steps, weight_bytes)),
        DENOISE2: (steps, _dit(config, sequences, weight_bytes)),
    }


def _backbone(config: HimarConfig, sequences: int, content: int, count: int, weight_bytes: int) -> Cost:
    """Return the cost of one call of the backbone with `content` rows besides the class buffer, and `count` results.

    The decoder has the positions of both grids in either phase.
    """
    width, ratio = config.encoder_embed_dim, config.mlp_ratio
    encoded, decoded = config.buffer_size + content, config.buffer_size + config.positions
    operations = sequences * (
        2 * content * config.token_channels * width
        + config.encoder_depth * block_operations(width, ratio, encoded, encoded)
        + 2 * encoded * width * width
        + (config.decoder_depth - 1) * block_operations(width, ratio, decoded, decoded)
        + block_operations(width, ratio, decoded, count)
    )
    blocks = config.encoder_depth + config.decoder_depth
    return Cost(operations, weight_bytes * (blocks * block_weights(width, ratio) + width * width))


def _conditioning(config: HimarConfig, sequences: int, steps: int, weight_bytes: int) -> Cost:
    width, channels = config.gdm_w, config.z_channels
    embedding = (FREQUENCIES + width) * width
    operations = 2 * (sequences * config.tokens * channels * width + steps * embedding)
    return Cost(operations, weight_bytes * (channels * width + embedding))


def _dit(config: HimarConfig, sequences: int, weight_bytes: int) -> Cost:
    """Return the cost of one diffusion step of the full grid."""
    width, ratio, length, channels = config.gdm_w, config.gdm_ratio, config.tokens, config.token_channels
    modulation = (6 * config.gdm_d + 2) * width**2
    blocks = config.gdm_d * block_operations(width, ratio, length, length)
    operations = sequences * (blocks + 2 * length * (modulation + 2 * width * channels))
    weights = config.gdm_d * block_weights(width, ratio) + modulation + 2 * width * channels
    return Cost(operations, weight_bytes * weights + FLOAT_BYTES * sequences * length * width)
