"""What a plan costs: operations and bytes of every call of every engine, and the least time they can take.

Operations are those of the matrix products, two a multiplication with its addition. Bytes are the weights
of an engine, once a call, and the modulation, which is the only activation as large as weights.
"""

from __future__ import annotations

import dataclasses

from runtime.model.config import FREQUENCIES, ModelConfig
from runtime.model.engine_spec import BACKBONE, CONDITIONING, DENOISE, ENGINES
from runtime.sampling.plan import Iteration, Plan

_FLOAT = 4  # bytes


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a machine reaches: operations of large float32 matrix products, bytes read, each a second."""

    operations: float
    bytes: float


@dataclasses.dataclass(frozen=True)
class Cost:
    """The work of one call of an engine, or of many."""

    operations: float
    bytes: float

    def seconds(self, machine: Machine) -> float:
        """The least time: whichever of the two takes longer."""
        return max(self.operations / machine.operations, self.bytes / machine.bytes)


def iteration_costs(
    config: ModelConfig, iteration: Iteration, batch: int, weight_bytes: int = _FLOAT
) -> dict[str, tuple[int, Cost]]:
    """For each engine how often an iteration calls it for `batch` images, and what a call costs."""
    sequences = batch * (2 if iteration.guided else 1)
    rows, steps = sequences * iteration.count, iteration.table.steps
    return {
        BACKBONE: (1, backbone_cost(config, sequences, iteration.known, iteration.count, weight_bytes)),
        CONDITIONING: (1, conditioning_cost(config, rows, steps, weight_bytes)),
        DENOISE: (steps, denoise_cost(config, batch * iteration.count, rows, weight_bytes)),
    }


def plan_costs(config: ModelConfig, plan: Plan, batch: int = 1, weight_bytes: int = _FLOAT) -> dict[str, Cost]:
    """The work of each engine over a whole plan, where a weight takes `weight_bytes`."""
    totals = {name: Cost(0.0, 0.0) for name in ENGINES}
    for iteration in plan.iterations:
        for name, (calls, cost) in iteration_costs(config, iteration, batch, weight_bytes).items():
            total = totals[name]
            totals[name] = Cost(total.operations + calls * cost.operations, total.bytes + calls * cost.bytes)
    return totals


def roofline_seconds(config: ModelConfig, plan: Plan, machine: Machine, batch: int = 1) -> dict[str, float]:
    """The least time of each engine over a whole plan, call by call (Williams et al., CACM 2009)."""
    totals = dict.fromkeys(ENGINES, 0.0)
    for iteration in plan.iterations:
        for name, (calls, cost) in iteration_costs(config, iteration, batch).items():
            totals[name] += calls * cost.seconds(machine)
    return totals


def backbone_cost(config: ModelConfig, sequences: int, known: int, count: int, weight_bytes: int = _FLOAT) -> Cost:
    """One pass over `sequences` images of V known tokens, of which K are answered."""
    encoder, decoder = config.encoder_embed_dim, config.decoder_embed_dim
    seen, every = config.buffer_size + known, config.buffer_size + config.tokens
    operations = sequences * (
        2 * known * config.token_channels * encoder
        + config.encoder_depth * _block_operations(encoder, config.mlp_ratio, seen, seen)
        + 2 * seen * encoder * decoder
        + (config.decoder_depth - 1) * _block_operations(decoder, config.mlp_ratio, every, every)
        + _block_operations(decoder, config.mlp_ratio, every, count)
    )
    weights = (
        config.encoder_depth * _block_weights(encoder, config.mlp_ratio)
        + config.decoder_depth * _block_weights(decoder, config.mlp_ratio)
        + encoder * decoder
        + config.token_channels * encoder
    )
    return Cost(operations, weight_bytes * weights)


def conditioning_cost(config: ModelConfig, rows: int, steps: int, weight_bytes: int = _FLOAT) -> Cost:
    """The modulation of `rows` rows at `steps` timesteps: computed, and written."""
    width, modulation = config.diffloss_w, config.modulation_channels
    operations = 2 * (
        steps * rows * width * modulation
        + rows * config.decoder_embed_dim * width
        + steps * (FREQUENCIES + width) * width
    )
    weights = width * modulation + config.decoder_embed_dim * width + (FREQUENCIES + width) * width
    return Cost(operations, weight_bytes * weights + _FLOAT * steps * rows * modulation)


def denoise_cost(config: ModelConfig, tokens: int, rows: int, weight_bytes: int = _FLOAT) -> Cost:
    """One diffusion step of N tokens, whose state both guidance halves share, in GN rows."""
    width, channels = config.diffloss_w, config.token_channels
    shared, own = width * channels, width * (2 * config.diffloss_d * width + 2 * channels)
    read = weight_bytes * (shared + own) + _FLOAT * rows * config.modulation_channels
    return Cost(2 * (tokens * shared + rows * own), read)


def _block_operations(width: int, mlp_ratio: float, sequence: int, queries: int) -> float:
    """A transformer block over a sequence, answering `queries` of its rows."""
    keys_and_values = 2 * 2 * sequence * width * width
    attention = 2 * 2 * queries * sequence * width
    rest = 2 * queries * width * (2 * width + 2 * int(width * mlp_ratio))  # query, projection, and the MLP
    return keys_and_values + attention + rest


def _block_weights(width: int, mlp_ratio: float) -> float:
    return 4 * width * width + 2 * width * int(width * mlp_ratio)
