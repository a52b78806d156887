"""The cost of a plan: operations and bytes of every call of every engine, and the least time they can take.

Operations are the floating-point operations of the matrix products; a multiplication and its addition count as two.
Bytes are those of an engine's weights, which every call reads once, and of the modulation, the only activation that is
as large as the weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from runtime.model.config import FREQUENCIES, ModelConfig
from runtime.model.engine_spec import BACKBONE, CONDITIONING, DENOISE
from runtime.model.families import family_of, imported
from runtime.model.family_config import FamilyConfig
from runtime.model.recap_engines import FULL, LOCAL
from runtime.sampling.plan import Iteration, Plan

FLOAT_BYTES = 4
"""The bytes of a weight in float32."""


IterationCosts = Callable[[Any, Iteration, int, int], "dict[str, tuple[int, Cost]]"]
"""Returns the cost of one iteration of a model of a family, with the arguments and the result of `iteration_costs`."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """The measured peak performance of a machine.

    Attributes:
        operations: Operations per second in large float32 matrix products.
        bytes: Bytes read from memory per second.
    """

    operations: float
    bytes: float


@dataclasses.dataclass(frozen=True)
class Cost:
    """The work of one call of an engine, or of several calls together.

    Attributes:
        operations: Floating-point operations.
        bytes: Bytes of weights and modulation that are read or written.
    """

    operations: float
    bytes: float

    def seconds(self, machine: Machine) -> float:
        """Return the least seconds on a machine: the time of the operations or of the bytes, whichever is longer."""
        return max(self.operations / machine.operations, self.bytes / machine.bytes)


def iteration_costs(
    config: FamilyConfig, iteration: Iteration, batch: int, weight_bytes: int = FLOAT_BYTES
) -> dict[str, tuple[int, Cost]]:
    """Return the cost of one iteration, by the function that the family of the model names.

    Args:
        config: The model's sizes.
        iteration: The iteration.
        batch: The number of images generated together.
        weight_bytes: Bytes of a weight.

    Returns:
        For each engine by name: the number of its calls, and the cost of one call.
    """
    costs_of: IterationCosts = imported(family_of(config).costs)
    return costs_of(config, iteration, batch, weight_bytes)


def masked_costs(
    config: ModelConfig, iteration: Iteration, batch: int, weight_bytes: int
) -> dict[str, tuple[int, Cost]]:
    """Return the cost of one iteration of a MAR; see `iteration_costs`."""
    sequences = batch * (2 if iteration.guided else 1)
    rows, steps = sequences * iteration.count, iteration.table.steps
    return {
        **_pass_cost(config, iteration, batch, weight_bytes),
        CONDITIONING: (1, conditioning_cost(config, rows, steps, weight_bytes)),
        DENOISE: (steps, denoise_cost(config, batch * iteration.count, rows, weight_bytes)),
    }


def _pass_cost(config: ModelConfig, iteration: Iteration, batch: int, weight_bytes: int) -> dict[str, tuple[int, Cost]]:
    """Return the cost of the backbone of one iteration, by the engine that runs it; a pass that is kept has none."""
    if iteration.of_class:
        return {}
    halves = iteration.backbone_halves
    if iteration.group is None or not iteration.local:
        full = backbone_cost(config, batch, halves, iteration.known, iteration.count, weight_bytes)
        if iteration.group is None:
            return {BACKBONE: (1, full)}
        sequences = batch * halves
        written = sequences * (config.buffer_size + iteration.known) * config.encoder_cache_channels
        written += sequences * (config.buffer_size + config.tokens) * config.decoder_cache_channels
        return {FULL: (1, Cost(full.operations, full.bytes + FLOAT_BYTES * written))}
    sizes = iteration.group.sizes(iteration.known, iteration.count, config.tokens, config.buffer_size)
    return {LOCAL: (1, local_cost(config, batch, halves, sizes, weight_bytes))}


def plan_costs(config: FamilyConfig, plan: Plan, batch: int = 1, weight_bytes: int = FLOAT_BYTES) -> dict[str, Cost]:
    """Return the cost of each engine over a whole plan for `batch` images; a weight has `weight_bytes` bytes."""
    totals: dict[str, Cost] = {}
    for iteration in plan.iterations:
        for name, (calls, cost) in iteration_costs(config, iteration, batch, weight_bytes).items():
            total = totals.get(name, Cost(0.0, 0.0))
            totals[name] = Cost(total.operations + calls * cost.operations, total.bytes + calls * cost.bytes)
    return totals


def roofline_seconds(config: FamilyConfig, plan: Plan, machine: Machine, batch: int = 1) -> dict[str, float]:
    """Return the least seconds of each engine over a whole plan, by the roofline model (Williams et al., CACM 2009)."""
    totals: dict[str, float] = {}
    for iteration in plan.iterations:
        for name, (calls, cost) in iteration_costs(config, iteration, batch).items():
            totals[name] = totals.get(name, 0.0) + calls * cost.seconds(machine)
    return totals


def backbone_cost(
    config: ModelConfig, images: int, halves: int, known: int, count: int, weight_bytes: int = FLOAT_BYTES
) -> Cost:
    """Return the cost of one call of the backbone.

    Args:
        config: The model's sizes.
        images: B, the number of images.
        halves: G, the guidance halves of each.
        known: V, the known tokens of an image.
        count: K, the tokens of an image that are predicted.
        weight_bytes: Bytes of a weight.
    """
    encoded, decoded = config.buffer_size + known, config.buffer_size + config.tokens  # slots of a sequence
    operations = images * (_projection(config, known) + halves * _operations(config, encoded, decoded, count))
    return Cost(operations, weight_bytes * _weights(config))


def local_cost(
    config: ModelConfig, images: int, halves: int, sizes: Mapping[str, int], weight_bytes: int = FLOAT_BYTES
) -> Cost:
    """Return the cost of one local pass of ReCAP.

    Args:
        config: The model's sizes.
        images: B, the number of images.
        halves: G, the guidance halves of each.
        sizes: What `runtime.sampling.recap.Group.sizes` returns for the iteration.
        weight_bytes: Bytes of a weight.
    """
    encoded = sizes["A"] + sizes["J"]
    decoded = encoded + sizes["K"] + sizes["H"]
    pass_operations = _operations(config, encoded, decoded, sizes["K"], sizes["E"], sizes["F"])
    operations = images * (_projection(config, sizes["J"]) + halves * pass_operations)
    read = sizes["E"] * config.encoder_cache_channels + sizes["F"] * config.decoder_cache_channels
    return Cost(operations, weight_bytes * _weights(config) + FLOAT_BYTES * images * halves * read)


def _projection(config: ModelConfig, tokens: int) -> float:
    """Return the operations that project the known tokens of an image, which its guidance halves share."""
    return 2 * tokens * config.token_channels * config.encoder_embed_dim


def _operations(
    config: ModelConfig,
    encoded: int,
    decoded: int,
    count: int,
    encoder_kept: int = 0,
    decoder_kept: int = 0,
) -> float:
    """Return the operations of a pass over one sequence, without those of `_projection`.

    Args:
        config: The model's sizes.
        encoded: The rows of the encoder.
        decoded: The rows of the decoder.
        count: The rows of the decoder's last block.
        encoder_kept: The rows of the encoder whose keys and values are kept.
        decoder_kept: The same of the decoder.
    """
    encoder, decoder, ratio = config.encoder_embed_dim, config.decoder_embed_dim, config.mlp_ratio
    return (
        config.encoder_depth * block_operations(encoder, ratio, encoded, encoded, encoder_kept)
        + 2 * encoded * encoder * decoder
        + (config.decoder_depth - 1) * block_operations(decoder, ratio, decoded, decoded, decoder_kept)
        + block_operations(decoder, ratio, decoded, count, decoder_kept)
    )


def _weights(config: ModelConfig) -> float:
    """Return the weights of the matrices of a backbone."""
    encoder, decoder = config.encoder_embed_dim, config.decoder_embed_dim
    return (
        config.encoder_depth * block_weights(encoder, config.mlp_ratio)
        + config.decoder_depth * block_weights(decoder, config.mlp_ratio)
        + encoder * decoder
        + config.token_channels * encoder
    )


def conditioning_cost(config: ModelConfig, rows: int, steps: int, weight_bytes: int = FLOAT_BYTES) -> Cost:
    """Return the cost of one call of the conditioning engine, for `rows` rows (G*N) and `steps` timesteps (T)."""
    width, modulation = config.diffloss_w, config.modulation_channels
    operations = 2 * (
        steps * rows * width * modulation
        + rows * config.decoder_embed_dim * width
        + steps * (FREQUENCIES + width) * width
    )
    weights = width * modulation + config.decoder_embed_dim * width + (FREQUENCIES + width) * width
    return Cost(operations, weight_bytes * weights + FLOAT_BYTES * steps * rows * modulation)


def denoise_cost(config: ModelConfig, tokens: int, rows: int, weight_bytes: int = FLOAT_BYTES) -> Cost:
    """Return the cost of one diffusion step.

    Args:
        config: The model's sizes.
        tokens: N, the tokens; both guidance halves share the state of a token.
        rows: G*N, the tokens times the guidance halves.
        weight_bytes: Bytes of a weight.
    """
    width, channels = config.diffloss_w, config.token_channels
    shared, per_half = width * channels, width * (2 * config.diffloss_d * width + 2 * channels)
    read = weight_bytes * (shared + per_half) + FLOAT_BYTES * rows * config.modulation_channels
    return Cost(2 * (tokens * shared + rows * per_half), read)


def block_operations(width: int, mlp_ratio: float, sequence: int, queries: int, kept: int = 0) -> float:
    """Return the operations of a transformer block on a sequence, which computes the output of `queries` slots.

    It attends to `kept` other slots too, whose keys and values are there.
    """
    keys_and_values = 2 * 2 * sequence * width * width
    attention = 2 * 2 * queries * (kept + sequence) * width
    rest = 2 * queries * width * (2 * width + 2 * int(width * mlp_ratio))  # query, projection, and the MLP
    return keys_and_values + attention + rest


def block_weights(width: int, mlp_ratio: float) -> float:
    """Return the weights of the matrices of a transformer block."""
    return 4 * width * width + 2 * width * int(width * mlp_ratio)
