"""The cost of a NOVA: a `runtime.cost.operations.IterationCosts`."""

from __future__ import annotations

from runtime.cost.operations import FLOAT_BYTES, Cost, block_operations, block_weights
from runtime.model.config import FREQUENCIES
from runtime.model.engine_spec import BACKBONE, CONDITION, CONDITIONING, DENOISE
from runtime.model.nova_config import NovaConfig
from runtime.sampling.plan import Iteration

_RATIO = 4.0  # the inner width of an MLP over that of its transformer


def nova_costs(config: NovaConfig, iteration: Iteration, batch: int, weight_bytes: int) -> dict[str, tuple[int, Cost]]:
    """Return the cost of one iteration; see `runtime.cost.operations.iteration_costs`.

    The condition is computed once, from one prompt an image: that of the empty prompt is a constant. Its cost is part
    of the iteration in which nothing is known. A text encoder is not counted.
    """
    sequences, steps = batch * (2 if iteration.guided else 1), iteration.table.steps
    tokens = batch * iteration.count
    rows = sequences * iteration.count
    once = {} if iteration.known else {CONDITION: (1, _condition(config, batch, weight_bytes))}
    return {
        **once,
        BACKBONE: (1, _backbone(config, batch, sequences, iteration, weight_bytes)),
        CONDITIONING: (1, _conditioning(config, rows, steps, weight_bytes)),
        DENOISE: (steps, _denoise(config, tokens, rows, weight_bytes)),
    }


def _condition(config: NovaConfig, prompts: int, weight_bytes: int) -> Cost:
    width, every = config.width, config.text_token_len + config.condition_rows
    operations = prompts * (
        2 * config.text_token_len * config.text_token_dim * width
        + (config.condition_depth - 1) * block_operations(width, _RATIO, every, every)
        + block_operations(width, _RATIO, every, config.condition_rows)
    )
    weights = config.condition_depth * block_weights(width, _RATIO) + config.text_token_dim * width
    return Cost(operations, weight_bytes * weights)


def _backbone(config: NovaConfig, batch: int, sequences: int, iteration: Iteration, weight_bytes: int) -> Cost:
    """Return the cost of one call; the known tokens are embedded once for both guidance halves."""
    width, channels, half = config.width, config.token_channels, config.image_depth // 2
    short, long = config.condition_rows + iteration.known, config.condition_rows + config.tokens
    operations = 2 * batch * iteration.known * channels * width + sequences * (
        half * block_operations(width, _RATIO, short, short)
        + (config.image_depth - half - 1) * block_operations(width, _RATIO, long, long)
        + block_operations(width, _RATIO, long, iteration.count)
    )
    return Cost(operations, weight_bytes * (config.image_depth * block_weights(width, _RATIO) + channels * width))


def _conditioning(config: NovaConfig, rows: int, steps: int, weight_bytes: int) -> Cost:
    width, modulation = config.head_width, config.modulation_channels
    of_z, of_time = (config.width + width) * width, (FREQUENCIES + width) * width
    operations = 2 * (steps * rows * width * modulation + rows * of_z + steps * of_time)
    weights = width * modulation + of_z + of_time
    return Cost(operations, weight_bytes * weights + FLOAT_BYTES * steps * rows * modulation)


def _denoise(config: NovaConfig, tokens: int, rows: int, weight_bytes: int) -> Cost:
    """Return the cost of one diffusion step, for N tokens and G*N rows; the head has one output."""
    width, channels = config.head_width, config.token_channels
    shared, per_half = width * channels, width * (2 * config.head_depth * width + channels)
    read = weight_bytes * (shared + per_half) + FLOAT_BYTES * rows * config.modulation_channels
    return Cost(2 * (tokens * shared + rows * per_half), read)
