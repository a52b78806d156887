"""UVA's policy mode as engines: observations to rows, and rows to the vectors of the head, which is that of MAR.

What is the same for all observations is folded when the modules are made: the constant parts of the concatenation
become a bias, and the projections of frames and state become one linear layer each.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mar_export.graphs.backbone import SequenceBlock
from mar_export.graphs.channel_padding import linear
from runtime.model.uva_config import FRAMES, GRID, ROWS
from training.models.transformer import Block
from training.models.uva import Uva


class Condition(nn.Module):
    """The engine `condition`: the rows of the first transformer."""

    def __init__(self, model: Uva) -> None:
        super().__init__()
        config = model.config
        width = config.encoder_embed_dim
        # The parts of the concatenation, in float64: their products are rounded once.
        video, frames, action, *state = model.proj_cond_x_layer.weight.detach().double().split(width, dim=1)
        bias = model.proj_cond_x_layer.bias.detach().double()
        bias = bias + video @ model.fake_latent_x[0].double() + action @ model.fake_action_latent[0].double()
        bias = bias + frames @ model.z_proj_cond.bias.double()
        self.frames = linear((frames @ model.z_proj_cond.weight.double()).float())
        self.state = None
        if state:
            projection = model.proprioception_proj_cond
            bias = bias + state[0] @ projection.bias.double()
            self.state = linear((state[0] @ projection.weight.double()).float())
        places = (model.temporal_pos_embed[0][:, None] + model.spatial_pos_embed[0]).flatten(0, 1)  # [R, E]
        self.register_buffer("places", (places.double() + bias).float().detach())
        self.text = model.text_proj_cond if config.text_dim else None
        self.register_buffer("text_places", model.text_pos_embed[0].detach() if config.text_dim else None)
        self.norm = model.z_proj_ln

    def forward(self, latents: Tensor, text: Tensor | None = None, state: Tensor | None = None) -> Tensor:
        """Compute the rows [B, Lc, E].

        Args:
            latents: Of the frames, [B, 4, 16, 16, 16]: frame, channel, row, column.
            text: Features [B, text_dim], where the model has a text.
            state: [B, 4 or 16, state_dim], where the model has a state.
        """
        tokens = latents.flatten(3).transpose(2, 3).flatten(1, 2)  # [B, R, 16]
        x = self.frames(tokens) + cast(Tensor, self.places)
        if self.state is not None and state is not None:
            steps = self.state(state)[:, :, None]  # [B, S, 1, E], held over the rows of each step
            x = (x.unflatten(1, (steps.shape[1], -1)) + steps).flatten(1, 2)
        if self.text is not None and text is not None:
            x = torch.cat([self.text(text)[:, None] + cast(Tensor, self.text_places), x], dim=1)
        return self.norm(x)


class Backbone(nn.Module):
    """The engine `backbone`: both transformers, sequence first, and what turns their rows into those of the head."""

    def __init__(self, model: Uva) -> None:
        super().__init__()
        self.encoder = _blocks(model.encoder_blocks)
        self.encoder_norm, self.decoder_embed = model.encoder_norm, model.decoder_embed
        self.decoder = _blocks(model.decoder_blocks)
        self.decoder_norm = model.decoder_norm
        self.text_rows = model.text_rows
        self.register_buffer("positions", model.decoder_positions()[0][:, None].detach())  # [Lc, 1, C]
        places = model.diffusion_temporal_embed[0][:, None] + model.diffusion_spatial_embed[0]
        self.register_buffer("places", places.flatten(0, 1)[:, None].detach())  # [R, 1, C]
        head = model.diffactloss
        self.conv, self.fc, self.interpolate, self.refine = head.conv, head.fc, head.interpolate, head.refine

    def forward(self, predict: Tensor, condition: Tensor) -> Tensor:
        """Compute the vectors z [G*N, C] of the actions that are predicted, one row of the head each.

        Args:
            predict: Their steps of the chunk [K, B].
            condition: The rows of the first transformer [G*B, Lc, E].
        """
        x = condition.transpose(0, 1)  # [Lc, G*B, E]
        for block in self.encoder:
            x = block(x)
        x = self.decoder_embed(self.encoder_norm(x)) + cast(Tensor, self.positions)
        for block in self.decoder[:-1]:
            x = block(x)
        last = cast(SequenceBlock, self.decoder[-1])
        x = self.decoder_norm(last.rows(x, self.text_rows, ROWS)) + cast(Tensor, self.places)  # [R, G*B, C]
        rows = self._rows(x)  # [G*B, 16, C]
        halves = rows.shape[0] // predict.shape[1]
        steps = predict.T.repeat(halves, 1)[..., None].expand(-1, -1, rows.shape[-1])  # [G*B, K, C]
        picked = rows.gather(1, steps).unflatten(0, (halves, -1)).transpose(1, 2)  # [G, K, B, C]
        return picked.reshape(-1, rows.shape[-1])

    def _rows(self, x: Tensor) -> Tensor:
        """Compute the rows of the head [B, 16, C] from z [R, B, C]."""
        grids = x.unflatten(0, (FRAMES, GRID, GRID)).permute(3, 0, 4, 1, 2).flatten(0, 1)  # [B*4, C, 16, 16]
        pooled = F.avg_pool2d(F.relu(self.conv(grids)), 4)  # [B*4, C, 4, 4]
        frames = self.fc(pooled.flatten(1)).unflatten(0, (-1, FRAMES))  # [B, 4, C]
        return self.refine(self.interpolate(frames.transpose(1, 2)).transpose(1, 2))


def _blocks(blocks: nn.ModuleList) -> nn.ModuleList:
    return nn.ModuleList(SequenceBlock(cast(Block, block)) for block in blocks)
