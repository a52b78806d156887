"""UVA in policy mode: frames, a text and the robot's state to a chunk of actions (arXiv 2503.00200).

Parameter names are those of the published code, so the tensors of a checkpoint load key for key. It starts from MAR's
weights and has its blocks and its head, but neither masks nor an order: all rows pass both transformers once.

Published inference has dropout in its attention, by a defect of timm 0.9.7. Here is none, as with later versions of it.

Shapes: B robots, R rows of the frames (4 x 256), E and C the widths of the transformers, A the values of an action.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.model.families import parse_config
from runtime.model.uva_config import CHUNK, FRAMES, GRID, TEXT_ROWS, UvaConfig
from training.models.diffusion_head import DiffusionLoss, HeadMLP
from training.models.transformer import NORM_EPS, Block

MLP_RATIO = 4.0
SIZES = {
    name: {"embed_dim": width, "depth": depth, "num_heads": heads}
    for name, width, depth, heads in (
        ("mar_tiny", 768, 3, 6),
        ("mar_small", 768, 6, 6),
        ("mar_base", 768, 12, 12),
        ("mar_large", 1024, 16, 16),
        ("mar_huge", 1280, 20, 16),
    )
}
"""The size of each of the two transformers, by its published name."""

_POOL = 4  # cells along a side of the squares whose mean is taken


class ActionHead(DiffusionLoss):
    """z of all rows to one vector for each action, and the head of MAR that denoises actions, with its loss."""

    def __init__(self, config: UvaConfig) -> None:
        width = config.decoder_embed_dim
        super().__init__(config.action_dim, width, config.diffloss_act_w, config.diffloss_act_d)
        self.conv = nn.Sequential(nn.Conv2d(width, width, 3, padding=1))
        cells = (GRID // _POOL) ** 2
        self.fc = nn.Sequential(nn.Linear(cells * width, width), nn.ReLU(), nn.Linear(width, width))
        self.interpolate = nn.Linear(FRAMES, CHUNK)
        self.refine = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def rows(self, z: Tensor) -> Tensor:
        """Return what the head is given, [B, 16, C], for z [B, R, C]."""
        grids = z.unflatten(1, (FRAMES, GRID, GRID)).flatten(0, 1).permute(0, 3, 1, 2)  # [B*4, C, 16, 16]
        pooled = F.avg_pool2d(F.relu(self.conv(grids)), _POOL)  # [B*4, C, 4, 4]
        frames = self.fc(pooled.flatten(1)).unflatten(0, (-1, FRAMES))  # [B, 4, C]
        return self.refine(self.interpolate(frames.transpose(1, 2)).transpose(1, 2))


class Uva(nn.Module):
    """A UVA in policy mode.

    Attributes:
        config: The shape of the model.
        diffactloss: What turns z into actions; the name is the published one.
    """

    def __init__(self, **arguments: Any) -> None:
        """Make a model with random weights; the arguments are those of `UvaConfig.to_dict`."""
        super().__init__()
        config = self.config = cast(UvaConfig, parse_config(arguments, "model"))
        encoder, decoder = config.encoder_embed_dim, config.decoder_embed_dim
        self.fake_latent_x = _table(1, encoder)
        self.fake_action_latent = _table(1, encoder)
        self.z_proj_cond = nn.Linear(config.latent_shape[0], encoder)
        if config.state_dim:
            self.proprioception_proj_cond = nn.Linear(config.state_dim, encoder)
        self.proj_cond_x_layer = nn.Linear((4 if config.state_dim else 3) * encoder, encoder)
        if config.text_dim:
            self.text_proj_cond = nn.Linear(config.text_dim, encoder)
            self.text_pos_embed = _table(1, TEXT_ROWS, encoder)
            self.decoder_text_pos_embed = _table(1, TEXT_ROWS, decoder)
        self.temporal_pos_embed = _table(1, FRAMES, encoder)
        self.spatial_pos_embed = _table(1, GRID**2, encoder)
        self.z_proj_ln = nn.LayerNorm(encoder, eps=NORM_EPS)
        self.encoder_blocks = _blocks(encoder, config.encoder_depth, config.encoder_num_heads)
        self.encoder_norm = nn.LayerNorm(encoder, eps=NORM_EPS)
        self.decoder_embed = nn.Linear(encoder, decoder)
        self.decoder_temporal_pos_embed = _table(1, FRAMES, decoder)
        self.decoder_spatial_pos_embed = _table(1, GRID**2, decoder)
        self.decoder_blocks = _blocks(decoder, config.decoder_depth, config.decoder_num_heads)
        self.decoder_norm = nn.LayerNorm(decoder, eps=NORM_EPS)
        self.diffusion_temporal_embed = _table(1, FRAMES, decoder)
        self.diffusion_spatial_embed = _table(1, GRID**2, decoder)
        self.diffactloss = ActionHead(config)

    def embed(self, latents: Tensor, text: Tensor | None, state: Tensor | None) -> Tensor:
        """Return the rows of the first transformer, [B, Lc, E]: those of the text, then those of the frames.

        Args:
            latents: Of the frames, [B, 4, 16, 16, 16]: frame, channel, row, column.
            text: Features [B, text_dim]; None for a model without text.
            state: [B, 4 or 16, state_dim]; None for a model without state.
        """
        tokens = latents.flatten(3).transpose(2, 3).flatten(1, 2)  # [B, R, 16]
        like = (*tokens.shape[:2], -1)
        parts = [self.fake_latent_x.expand(like), self.z_proj_cond(tokens), self.fake_action_latent.expand(like)]
        if state is not None:
            held = self.proprioception_proj_cond(state)
            parts.append(held.repeat_interleave(tokens.shape[1] // held.shape[1], dim=1))
        x = self.proj_cond_x_layer(torch.cat(parts, dim=-1)) + _places(self.temporal_pos_embed, self.spatial_pos_embed)
        if text is not None:
            x = torch.cat([self.text_proj_cond(text)[:, None] + self.text_pos_embed, x], dim=1)
        return self.z_proj_ln(x)

    def transform(self, x: Tensor) -> Tensor:
        """Return z [B, R, C] for the rows of the first transformer [B, Lc, E]."""
        for block in self.encoder_blocks:
            x = block(x)
        x = self.decoder_embed(self.encoder_norm(x)) + self.decoder_positions()
        for block in self.decoder_blocks:
            x = block(x)
        x = self.decoder_norm(x)[:, self.text_rows :]
        return x + _places(self.diffusion_temporal_embed, self.diffusion_spatial_embed)

    def rows(self, latents: Tensor, text: Tensor | None, state: Tensor | None) -> Tensor:
        """Return what the head is given, [B, 16, C]; the arguments are those of `embed`."""
        return self.diffactloss.rows(self.transform(self.embed(latents, text, state)))

    @property
    def text_rows(self) -> int:
        """The rows of the text, before those of the frames."""
        return TEXT_ROWS if self.config.text_dim else 0

    def decoder_positions(self) -> Tensor:
        """Return the positions of the second transformer, [1, Lc, C]."""
        places = _places(self.decoder_temporal_pos_embed, self.decoder_spatial_pos_embed)
        return torch.cat([self.decoder_text_pos_embed, places], dim=1) if self.text_rows else places

    @property
    def head_network(self) -> HeadMLP:
        """The network of the head."""
        return self.diffactloss.net

    def forward(
        self,
        latents: Tensor,
        text: Tensor | None,
        state: Tensor | None,
        actions: Tensor,
        timesteps: Tensor,
        noise: Tensor,
    ) -> Tensor:
        """Return the loss of a batch of recorded chunks, a scalar: that of MAR's head on every action.

        Args:
            latents: As of `embed`.
            text: As of `embed`.
            state: As of `embed`.
            actions: Normalized, [B, 16, A].
            timesteps: Int64 [Q * B * 16] in 0..999: Q of each action.
            noise: Standard normal, [Q * B * 16, A].
        """
        rows, target = self.rows(latents, text, state).flatten(0, 1), actions.flatten(0, 1)
        return self.diffactloss(target.repeat(len(noise) // len(target), 1), rows, timesteps, noise).mean()


def _table(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape).normal_(std=0.02))


def _blocks(width: int, depth: int, heads: int) -> nn.ModuleList:
    return nn.ModuleList(Block(width, heads, MLP_RATIO, 0.0, 0.0) for _ in range(depth))


def _places(temporal: Tensor, spatial: Tensor) -> Tensor:
    """Return the sum of a table of frames [1, 4, E] and one of places [1, 256, E] for every row: [1, R, E]."""
    return (temporal[:, :, None] + spatial[:, None]).flatten(1, 2)
