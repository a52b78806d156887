"""NOVA as engines: the condition once for each image, the backbone sequence first, and its head in two parts.

What depends only on the model is computed when the modules are made: the condition of the empty prompt, tables of
positions, and angles of rotations.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mar_export.graphs.backbone import SequenceAttention, padded_mlp
from mar_export.graphs.channel_padding import linear, pad_inputs, pad_layers, pad_outputs, padding_channels
from mar_export.graphs.diffusion_head import next_state
from training.models.diffusion_head import timestep_embedding
from training.models.nova import Block, Encoder, HeadBlock, Nova, TwoLayers, grid_cells, plain_norm, rotary_angles


class _Block(nn.Module):
    """A block over sequence-first inputs [S, B, C], whose queries and keys may be rotated."""

    def __init__(self, block: Block, rotated: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.attn, self.mlp = SequenceAttention(block.attn, rotated), padded_mlp(block.mlp)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
        """Compute the block for all rows of x [S, B, C]."""
        return self.rows(x, x, rotation, rotation)

    def rows(
        self,
        x: Tensor,
        queries: Tensor,
        rotation: tuple[Tensor, Tensor] | None,
        query_rotation: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """Compute the block for some rows of x [S, B, C] only, `queries` [K, B, C]."""
        q, k = self.attn.q(queries), self.attn.k(x)
        if rotation is not None and query_rotation is not None:
            q, k = self._rotated(q, query_rotation), self._rotated(k, rotation)
        output = queries + self.norm1(self.attn.attend_projected(q, k, self.attn.v(x)))
        return output + self.norm2(self.mlp(output))

    def _rotated(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """Rotate neighbouring channels of x [S, B, C] as pairs, in every head alike."""
        cos, sin = (part[:, :, None] for part in rotation)  # [S, B or 1, 1, E/H/2]
        pairs = x.unflatten(-1, (self.attn.heads, -1, 2))  # [S, B, H, E/H/2, 2]
        even, odd = pairs[..., 0], pairs[..., 1]
        return torch.stack([cos * even - sin * odd, sin * even + cos * odd], dim=-1).flatten(2)


def _blocks(encoder: Encoder, rotated: bool) -> nn.ModuleList:
    """Return the blocks of a transformer, sequence first."""
    return nn.ModuleList(_Block(cast(Block, block), rotated) for block in encoder.blocks)


class Condition(nn.Module):
    """The engine `condition`: prompts to the prefix of the backbone, and the prefix of the empty prompt, a constant."""

    empty_prompt: Tensor
    padding: Tensor
    start: Tensor

    def __init__(self, model: Nova) -> None:
        super().__init__()
        config = model.config
        self.rows = config.text_token_len
        self.proj, self.text_norm = model.text_embed.proj, model.text_embed.norm
        self.blocks = _blocks(model.video_encoder, config.rotary)
        self.norm = model.video_encoder.norm
        with torch.no_grad():
            empty = torch.zeros(1, self.rows, config.text_token_dim)
            constants = {
                "padding": cast(Tensor, model.text_embed.weight)[: self.rows].clone(),
                "start": model.condition_start().detach().clone(),  # [Lc, C]
                "empty_prompt": model.condition(empty, torch.zeros(1, dtype=torch.int64))[0],  # [Lc, C]
            }
        for name, constant in constants.items():
            self.register_buffer(name, constant)
        cells = grid_cells(config.condition_shape, torch.device("cpu"))
        self.angles = _Angles(model, torch.cat([cells.new_zeros(self.rows, 2), cells])) if config.rotary else None

    def forward(self, text: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the condition [Q, Lc, C] of prompts, and that of the empty prompt [Lc, C].

        Args:
            text: The rows of the prompts [Q, S, text_token_dim].
            lengths: How many of them each prompt has [Q]; learned rows take the place of the others.
        """
        given = torch.arange(self.rows) < lengths[:, None]  # [Q, S]
        text = torch.where(given[..., None], text, self.padding)
        rows = self.text_norm(self.proj(text)).transpose(0, 1)  # [S, Q, C]
        x = torch.cat([rows, self.start[:, None].expand(-1, rows.shape[1], -1)])  # [S + Lc, Q, C]
        rotation = None if self.angles is None else self.angles.all_rows()
        for block in self.blocks[:-1]:
            x = block(x, rotation)
        condition = x[self.rows :]
        rotation_of_condition = None if rotation is None else (rotation[0][self.rows :], rotation[1][self.rows :])
        last = cast(_Block, self.blocks[-1])
        condition = last.rows(x, condition, rotation, rotation_of_condition)
        return self.norm(condition).transpose(0, 1), self.empty_prompt.clone()


class _Angles(nn.Module):
    """Cosines and sines of the rotations at some cells of a grid, as tables [n, E/H/2]."""

    cos: Tensor
    sin: Tensor

    def __init__(self, model: Nova, cells: Tensor) -> None:
        super().__init__()
        angles = rotary_angles(cells, model.config.width // model.config.heads)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def all_rows(self) -> tuple[Tensor, Tensor]:
        """Return the tables for one sequence, [n, 1, E/H/2] each."""
        return self.cos[:, None], self.sin[:, None]

    def at(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows of the tables at `places` [n, B], [n, B, E/H/2] each."""
        return self.cos[places], self.sin[places]


class Backbone(nn.Module):
    """The engine `backbone`, over guidance halves of the same tokens; the condition has an entry for each half."""

    def __init__(self, model: Nova) -> None:
        super().__init__()
        config, encoder = model.config, model.image_encoder
        self.first_half, self.prefix_rows = config.image_depth // 2, config.condition_rows
        self.z_proj = linear(encoder.patch_embed.proj.weight.flatten(1), encoder.patch_embed.proj.bias)
        self.blocks = _blocks(encoder, config.rotary)
        self.norm = encoder.norm
        with torch.no_grad():
            mask = model.mask_embed.mask_token[0]
            positions = (
                torch.zeros(config.tokens, config.width) if config.rotary else model.positions(config.grid_shape)
            )
            self.register_buffer("positions", positions.clone())
            self.register_buffer("masked", (positions + mask).clone())  # what stands for each unknown token
        # The condition has position 0; its row is the last one of the table.
        cells = grid_cells(config.grid_shape, torch.device("cpu"))
        self.angles = _Angles(model, torch.cat([cells, cells.new_zeros(1, 2)])) if config.rotary else None
        self.origin = config.tokens

    def forward(self, tokens: Tensor, visible: Tensor, predict: Tensor, rest: Tensor, condition: Tensor) -> Tensor:
        """Compute the vectors z [G*N, C] of the tokens that are predicted now, one row of the head each.

        Args:
            tokens: Known tokens [V, B, D].
            visible: Their positions [V, B].
            predict: Positions [K, B] that are predicted now.
            rest: Positions [R, B] that are predicted later.
            condition: The prefix [G*B, Lc, C].
        """
        halves = condition.shape[0] // predict.shape[1]
        known, count = self.prefix_rows + tokens.shape[0], predict.shape[0]
        embedded = self.z_proj(tokens) + cast(Tensor, self.positions)[visible]  # [V, B, C]
        unknown = cast(Tensor, self.masked)[torch.cat([predict, rest])].repeat(1, halves, 1)  # [K + R, G*B, C]
        x = torch.cat([condition.transpose(0, 1), embedded.repeat(1, halves, 1)])  # [Lc + V, G*B, C]
        first, second = self._rotations(visible, torch.cat([predict, rest]), halves)
        for block in self.blocks[: self.first_half]:
            x = block(x, first)
        x = torch.cat([x, unknown])  # [Lc + L, G*B, C]
        for block in self.blocks[self.first_half : -1]:
            x = block(x, second)
        last = cast(_Block, self.blocks[-1])
        queries = None if second is None else (second[0].narrow(0, known, count), second[1].narrow(0, known, count))
        z = self.norm(last.rows(x, x.narrow(0, known, count), second, queries))  # [K, G*B, C]
        rows = z.unflatten(1, (halves, -1)).transpose(0, 1)  # [G, K, B, C], the rows of the head
        return rows.reshape(condition.shape[0] * count, z.shape[-1])

    def _rotations(
        self, visible: Tensor, unknown: Tensor, halves: int
    ) -> tuple[tuple[Tensor, Tensor] | None, tuple[Tensor, Tensor] | None]:
        """Return the rotations of the rows of the first and of the second half of the blocks."""
        if self.angles is None:
            return None, None
        prefix = torch.full((1, 1), self.origin).expand(self.prefix_rows, visible.shape[1])
        first = torch.cat([prefix, visible]).repeat(1, halves)
        second = torch.cat([prefix, visible, unknown]).repeat(1, halves)
        return self.angles.at(first), self.angles.at(second)


class Conditioning(nn.Module):
    """The engine `conditioning`: scale, shift and gate of every layer of the head, for every timestep and row at once.

    A layer multiplies by 1 + scale: the 1 is part of the bias here, as in MAR's.
    """

    def __init__(self, model: Nova) -> None:
        super().__init__()
        head, width = model.image_decoder, model.config.head_width
        padding = padding_channels(width)
        self.condition_proj = _padded(head.time_cond_embed.condition_proj, padding)
        self.time_embed = _padded(head.time_cond_embed.timestep_proj, padding)
        layers = [*(cast(HeadBlock, block).norm1.proj for block in head.blocks), head.norm.proj]
        biases = [layer.bias.detach().clone() for layer in layers]
        for bias in biases:
            bias[:width] += 1  # scale, shift, and in a block gate
        weights = torch.cat([layer.weight for layer in layers])  # [M, W]
        self.projection = pad_inputs(linear(weights, torch.cat(biases)), padding)

    def forward(self, z: Tensor, timesteps: Tensor) -> Tensor:
        """Compute the modulation [T, G*N, M] for vectors z [G*N, C] and timesteps [T]."""
        times = self.time_embed(timestep_embedding(timesteps))  # [T, W]
        condition = F.silu(times[:, None] + self.condition_proj(z))  # [T, G*N, W]
        return self.projection(condition.flatten(0, 1)).unflatten(0, (-1, z.shape[0]))


class Denoise(nn.Module):
    """The engine `denoise`: one step of a sampler, with the head, guidance and the sampler's arithmetic."""

    def __init__(self, model: Nova) -> None:
        super().__init__()
        head = model.image_decoder
        self.input_proj = linear(head.patch_embed.proj.weight.flatten(1), head.patch_embed.proj.bias)
        self.blocks = nn.ModuleList(_head_block(cast(HeadBlock, block)) for block in head.blocks)
        self.final_layer = nn.ModuleDict({"linear": head.head})
        self.width = model.config.head_width

    def forward(
        self, x: Tensor, previous_x0: Tensor, noise: Tensor, modulation: Tensor, coefficients: Tensor, guidance: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute the next noisy tokens and the predicted clean tokens, [N, D] each; the inputs are those of MAR's."""
        (rows, channels), halves = x.shape, modulation.shape[0] // x.shape[0]
        layer_modulation = iter(modulation.split(self.width, dim=-1))  # [G*N, W] each
        h = self.input_proj(x).expand(halves, -1, -1).reshape(halves * rows, -1)  # [G*N, W], the same in both halves
        for block in self.blocks:
            scale, shift, gate = next(layer_modulation), next(layer_modulation), next(layer_modulation)
            parts = cast(nn.ModuleDict, block)
            h = h + gate * parts["norm"](parts["mlp"](plain_norm(h) * scale + shift))
        scale, shift = layer_modulation
        out = self.final_layer["linear"](plain_norm(h) * scale + shift)  # [G*N, D]
        prediction = out.reshape(halves, rows, channels)
        prediction = prediction[-1] + guidance * (prediction[0] - prediction[-1])
        return next_state(x, prediction, previous_x0, noise, coefficients)


def _padded(layers: TwoLayers, padding: int) -> nn.Sequential:
    """Return two layers with `padding` more outputs, which are zero."""
    first, second = pad_layers(layers.fc1, layers.fc2)
    return nn.Sequential(first, nn.SiLU(), pad_outputs(second, padding))


def _head_block(block: HeadBlock) -> nn.Module:
    """Return the MLP and the last normalization of a block; its modulation is computed by `Conditioning`."""
    return nn.ModuleDict({"mlp": _padded(block.proj, 0), "norm": block.norm2})
