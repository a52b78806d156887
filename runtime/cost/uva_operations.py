"""The cost of a UVA: a `runtime.cost.operations.IterationCosts`. Frames that are encoded are not counted."""

from __future__ import annotations

from runtime.cost.operations import Cost, block_operations, block_weights, conditioning_cost, denoise_cost
from runtime.model.config import ModelConfig
from runtime.model.engine_spec import BACKBONE, CONDITION, CONDITIONING, DENOISE
from runtime.model.uva_config import CHUNK, FRAMES, GRID, ROWS, UvaConfig
from runtime.sampling.plan import Iteration

_RATIO = 4.0  # the inner width of an MLP over that of its transformer
_CELLS = 16  # of a frame after pooling


def uva_costs(config: UvaConfig, iteration: Iteration, batch: int, weight_bytes: int) -> dict[str, tuple[int, Cost]]:
    """Return the cost of the one iteration of a chunk; see `runtime.cost.operations.iteration_costs`."""
    rows, steps, head = batch * iteration.count, iteration.table.steps, _same_head(config)
    return {
        CONDITION: (1, _condition(config, batch, weight_bytes)),
        BACKBONE: (1, _backbone(config, batch, weight_bytes)),
        CONDITIONING: (1, conditioning_cost(head, rows, steps, weight_bytes)),
        DENOISE: (steps, denoise_cost(head, rows, rows, weight_bytes)),
    }


def _same_head(config: UvaConfig) -> ModelConfig:
    """Return the config of a MAR with the same head: its tokens are actions."""
    return ModelConfig(
        vae_embed_dim=config.action_dim,
        patch_size=1,
        decoder_embed_dim=config.decoder_embed_dim,
        decoder_num_heads=config.decoder_num_heads,
        diffloss_w=config.diffloss_act_w,
        diffloss_d=config.diffloss_act_d,
    )


def _condition(config: UvaConfig, batch: int, weight_bytes: int) -> Cost:
    """Return the cost of the linear layers of frames, text and state."""
    width = config.encoder_embed_dim
    layers = [(ROWS, config.latent_shape[0]), (1, config.text_dim), (config.state_steps, config.state_dim)]
    operations = 2 * batch * sum(rows * inputs * width for rows, inputs in layers)
    return Cost(operations, weight_bytes * sum(inputs * width for _, inputs in layers))


def _backbone(config: UvaConfig, batch: int, weight_bytes: int) -> Cost:
    """Return the cost of both transformers, and of what turns their rows into those of the head."""
    encoder, decoder, rows = config.encoder_embed_dim, config.decoder_embed_dim, config.condition_rows
    convolution, pooled, square = 9 * decoder**2, (_CELLS + 1) * decoder**2, decoder**2
    head = FRAMES * (GRID**2 * convolution + pooled) + FRAMES * CHUNK * decoder + CHUNK * 2 * square
    operations = batch * (
        config.encoder_depth * block_operations(encoder, _RATIO, rows, rows)
        + 2 * rows * encoder * decoder
        + (config.decoder_depth - 1) * block_operations(decoder, _RATIO, rows, rows)
        + block_operations(decoder, _RATIO, rows, ROWS)
        + 2 * head
    )
    blocks = config.encoder_depth * block_weights(encoder, _RATIO) + config.decoder_depth * block_weights(
        decoder, _RATIO
    )
    weights = blocks + encoder * decoder + convolution + pooled + FRAMES * CHUNK + 2 * square
    return Cost(operations, weight_bytes * weights)
