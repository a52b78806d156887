"""The backbone as engines run it: `MAR.predict`, sequence first, with a product for each of queries, keys and values.

Attention then reads what the products wrote where it lies, and nothing is split or copied on the way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from mar_export.graphs.channel_padding import linear, with_spare_channels
from training.models.mar import MAR
from training.models.transformer import Attention, Block


class Backbone(nn.Module):
    """Known tokens and three lists of positions to the vectors z of those predicted now.

    Tokens and positions come once; there is a label for every image and guidance half.
    """

    def __init__(self, model: MAR) -> None:
        super().__init__()
        self.model = with_blocks(model, SequenceBlock)

    def forward(self, tokens: Tensor, visible: Tensor, predict: Tensor, rest: Tensor, labels: Tensor) -> Tensor:
        halves = labels.shape[0] // predict.shape[1]
        known = tokens.shape[0]
        # [V, B, D] -> [V, GB, D], [V, B] -> [V, GB], and so on
        tokens, visible, predict, rest = (
            part.repeat(1, halves, *[1] * (part.dim() - 2)) for part in (tokens, visible, predict, rest)
        )
        memory = self._encode(tokens, visible, labels)  # [buffer + V, GB, C]
        z = self._decode(memory, visible, predict, rest, known)  # [K, GB, C]
        rows = z.unflatten(1, (halves, -1)).transpose(0, 1)  # [G, K, B, C], the rows of the head
        return rows.reshape(labels.shape[0] * predict.shape[0], z.shape[-1])

    def _encode(self, tokens: Tensor, visible: Tensor, labels: Tensor) -> Tensor:
        model, buffer = self.model, self.model.config.buffer_size
        positions = model.encoder_pos_embed_learned[0]  # [buffer + L, E]
        start = model.class_embedding(labels) + positions[:buffer, None]  # [buffer, GB, E]
        x = model.z_proj_ln(torch.cat([start, model.z_proj(tokens) + positions[buffer:][visible]]))
        for block in model.encoder_blocks:
            x = block(x)  # [buffer + V, GB, E]
        return model.decoder_embed(model.encoder_norm(x))

    def _decode(self, memory: Tensor, visible: Tensor, predict: Tensor, rest: Tensor, known: int) -> Tensor:
        model, buffer = self.model, self.model.config.buffer_size
        positions = model.decoder_pos_embed_learned[0]  # [buffer + L, C]
        of_buffer = positions[:buffer, None].expand(-1, memory.shape[1], -1)  # [buffer, GB, C]
        of_memory = torch.cat([of_buffer, positions[buffer:][visible]])
        masked = model.mask_token[0] + positions[buffer:][torch.cat([predict, rest])]  # [K + R, GB, C]
        x = torch.cat([memory + of_memory, masked])  # [buffer + L, GB, C]
        for block in model.decoder_blocks[:-1]:
            x = block(x)
        last = cast(SequenceBlock, model.decoder_blocks[-1])
        x = last.rows(x, buffer + known, predict.shape[0])  # [K, GB, C]
        return model.decoder_norm(x) + model.diffusion_pos_embed_learned[0][predict]


class _SequenceAttention(nn.Module):
    """`Attention` over x [S, B, E].

    A bias of the keys adds the same to every score of a query, which softmax does not see. One of the
    values goes through the mixture as it is, so it is part of the output's bias.
    """

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        queries, keys, values = attention.qkv.weight.detach().chunk(3)
        of_queries, _, of_values = attention.qkv.bias.detach().chunk(3)
        output = attention.proj.weight.detach()
        self.heads, self.attend = attention.heads, attention.attend
        self.q, self.k, self.v = linear(queries, of_queries), linear(keys), linear(values)
        self.proj = linear(output, attention.proj.bias.detach() + output @ of_values)

    def forward(self, x: Tensor, queries: Tensor) -> Tensor:
        """x [S, B, E], and those of its rows that are answered, [K, B, E] -> [K, B, E]."""
        return self.mixed(self.q(queries), self.k(x), self.v(x))

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries [K, B, E], keys and values [S, B, E] -> [K, B, E]."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)).permute(1, 2, 0, 3) for part in (q, k, v))  # [B, H, S, E/H]
        return self.proj(self.attend(q, k, v).permute(2, 0, 1, 3).flatten(2))


class SequenceBlock(nn.Module):
    """`Block` over x [S, B, E]."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.mlp = copy.copy(block.mlp)
        fc1, fc2 = with_spare_channels(block.mlp.fc1, block.mlp.fc2)
        self.mlp._modules = {**block.mlp._modules, "fc1": fc1, "fc2": fc2}
        self.attn = _SequenceAttention(block.attn)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.attn(normed, normed)
        return x + self.mlp(self.norm2(x))

    def rows(self, x: Tensor, start: int, count: int) -> Tensor:
        """The output for rows start..start+count only: [count, B, E]."""
        normed = self.norm1(x)
        wanted = x.narrow(0, start, count) + self.attn(normed, normed.narrow(0, start, count))
        return wanted + self.mlp(self.norm2(wanted))


def with_blocks(model: MAR, kind: Callable[[Block], nn.Module]) -> MAR:
    """A copy of `model` without its head, every block as `kind` makes it; weights stay those of `model`."""
    changed = copy.copy(model)
    changed._modules = {
        name: nn.ModuleList(kind(cast(Block, block)) for block in cast(nn.ModuleList, child))
        if name.endswith("_blocks")
        else child
        for name, child in model._modules.items()
        if name != "diffloss"
    }
    return changed
