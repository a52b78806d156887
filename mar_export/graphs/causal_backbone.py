"""The backbone with causal attention as an engine with a key-value cache: `MAR.predict_next`, some positions at a time.

The engine returns the keys and values of the new positions only, and the sampling loop appends them to its cache, so
that no call copies the cache.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mar_export.graphs.backbone import SequenceBlock, with_blocks
from training.models.mar import MAR


class CausalBackbone(nn.Module):
    """The engine `backbone` of a causal model, over guidance halves of the same tokens."""

    def __init__(self, model: MAR) -> None:
        super().__init__()
        self.model = with_blocks(model, _CachedBlock)
        config = model.config
        self.widths = [2 * config.encoder_embed_dim] * config.encoder_depth
        self.widths += [2 * config.decoder_embed_dim] * config.decoder_depth

    def forward(
        self,
        tokens: Tensor,
        position_ids: Tensor,
        next_position_ids: Tensor,
        labels: Tensor,
        past_key_values: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Compute z of the token after the last new position, and the keys and values of all new positions.

        Args:
            tokens: The tokens [S, B, D] of the new positions; those of the buffer are not read.
            position_ids: The new positions [S, B] of the sequence.
            next_position_ids: The position [S, B] that follows each of them.
            labels: Classes [G*B], for G guidance halves of B images.
            past_key_values: The keys and values [P, G*B, M] of the earlier positions, all blocks side by side.

        Returns:
            z [G*B, C], and present keys and values [S, G*B, M] of the new positions.
        """
        model, buffer = self.model, self.model.config.buffer_size
        halves = labels.shape[0] // position_ids.shape[1]
        embedded = model.z_proj(tokens).repeat(1, halves, 1)  # [S, G*B, E], projected once for all halves
        position_ids = position_ids.repeat(1, halves)  # [S, G*B]
        next_position_ids = next_position_ids.repeat(1, halves)
        past = iter(past_key_values.split(self.widths, dim=-1))  # [P, G*B, 2E] of each block
        new = []

        start = model.class_embedding(labels)  # [G*B, E]
        x = torch.where((position_ids < buffer)[..., None], start, embedded)  # [S, G*B, E]
        x = model.z_proj_ln(x + model.encoder_pos_embed_learned[0][position_ids])
        for block in model.encoder_blocks:
            x, keys_and_values = block(x, next(past))
            new.append(keys_and_values)
        x = model.decoder_embed(model.encoder_norm(x)) + model.decoder_pos_embed_learned[0][next_position_ids]
        for block in model.decoder_blocks:
            x, keys_and_values = block(x, next(past))
            new.append(keys_and_values)
        z = model.decoder_norm(x[-1]) + model.diffusion_pos_embed_learned[0][next_position_ids[-1] - buffer]
        return z, torch.cat(new, dim=-1)


class _CachedBlock(SequenceBlock):
    """A block over new positions x [S, B, E], with the keys and values [P, B, 2E] of the P positions before them."""

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        normed = self.norm1(x)
        new = torch.cat([self.attn.k(normed), self.attn.v(normed)], dim=-1)  # [S, B, 2E]
        keys, values = torch.cat([past, new]).chunk(2, dim=-1)  # [P + S, B, E] each
        x = x + self.attn.attend_projected(self.attn.q(normed), keys, values)
        return x + self.mlp(self.norm2(x)), new
