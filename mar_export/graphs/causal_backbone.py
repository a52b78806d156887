"""The backbone under causal attention: new slots of the sequence and what those before them left, to z of the next.

`MAR.predict_next`, a part of the sequence at a time. What a slot leaves to later ones is its keys and values in
every block: the backbone returns those of the new slots only, and the loop keeps them, so nothing is copied
that is there already.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mar_export.graphs.backbone import SequenceBlock, with_blocks
from training.models.mar import MAR


class CausalBackbone(nn.Module):
    """Inputs and outputs as in `runtime.model.engine_spec`; there is a label for every image and guidance half."""

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
        """Compute z of the last slot, and the keys and values of every new slot; `engine_spec` has the shapes."""
        model, buffer = self.model, self.model.config.buffer_size
        halves = labels.shape[0] // position_ids.shape[1]
        # [S, B, D] -> [S, GB, D], [S, B] -> [S, GB]
        tokens, position_ids = tokens.repeat(1, halves, 1), position_ids.repeat(1, halves)
        next_position_ids = next_position_ids.repeat(1, halves)
        before = iter(past_key_values.split(self.widths, dim=-1))  # [P, GB, 2E] of each block
        new = []

        start = model.class_embedding(labels)  # [GB, E]
        x = torch.where((position_ids < buffer)[..., None], start, model.z_proj(tokens))  # [S, GB, E]
        x = model.z_proj_ln(x + model.encoder_pos_embed_learned[0][position_ids])
        for block in model.encoder_blocks:
            x, keys_and_values = block(x, next(before))
            new.append(keys_and_values)
        x = model.decoder_embed(model.encoder_norm(x)) + model.decoder_pos_embed_learned[0][next_position_ids]
        for block in model.decoder_blocks:
            x, keys_and_values = block(x, next(before))
            new.append(keys_and_values)
        z = model.decoder_norm(x[-1]) + model.diffusion_pos_embed_learned[0][next_position_ids[-1] - buffer]
        return z, torch.cat(new, dim=-1)


class _CachedBlock(SequenceBlock):
    """`Block` over new rows x [S, B, E] of a sequence whose P rows before left keys and values [P, B, 2E]."""

    def forward(self, x: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        normed = self.norm1(x)
        new = torch.cat([self.attn.k(normed), self.attn.v(normed)], dim=-1)  # [S, B, 2E]
        keys, values = torch.cat([before, new]).chunk(2, dim=-1)  # [P + S, B, E] each
        x = x + self.attn.mixed(self.attn.q(normed), keys, values)
        return x + self.mlp(self.norm2(x)), new
