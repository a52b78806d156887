"""The backbone as an engine: `MAR.predict`, sequence first, with separate products for queries, keys and values.

Attention then reads the results of the products in place, without splitting or copying them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from mar_export.graphs.channel_padding import linear, pad_layers
from training.models.mar import MAR
from training.models.nova import Attention as NovaAttention
from training.models.transformer import Attention, Block, FeedForward


class Backbone(nn.Module):
    """The engine `backbone` of a model with bidirectional attention, over guidance halves of the same tokens.

    Tokens and positions are inputs once, while there is a label for every image and guidance half: G halves of B
    images.
    """

    def __init__(self, model: MAR) -> None:
        super().__init__()
        self.model = with_blocks(model, SequenceBlock)

    def forward(self, tokens: Tensor, visible: Tensor, predict: Tensor, rest: Tensor, labels: Tensor) -> Tensor:
        """Compute the vectors z [G*N, C] of the tokens that are predicted now, one row of the head each.

        Args:
            tokens: Known tokens [V, B, D].
            visible: Their positions [V, B].
            predict: Positions [K, B] that are predicted now.
            rest: Positions [R, B] that are predicted later.
            labels: Classes [G*B].
        """
        halves = labels.shape[0] // predict.shape[1]
        known = tokens.shape[0]
        embedded = self.model.z_proj(tokens)  # [V, B, E], once for all halves
        # [V, B, E] -> [V, G*B, E], [V, B] -> [V, G*B], and so on
        embedded, visible, predict, rest = (
            part.repeat(1, halves, *[1] * (part.dim() - 2)) for part in (embedded, visible, predict, rest)
        )
        memory = self._encode(embedded, visible, labels)  # [buffer + V, G*B, C]
        z = self._decode(memory, visible, predict, rest, known)  # [K, G*B, C]
        rows = z.unflatten(1, (halves, -1)).transpose(0, 1)  # [G, K, B, C], the rows of the head
        return rows.reshape(labels.shape[0] * predict.shape[0], z.shape[-1])

    def _encode(self, embedded: Tensor, visible: Tensor, labels: Tensor) -> Tensor:
        model, buffer = self.model, self.model.config.buffer_size
        positions = model.encoder_pos_embed_learned[0]  # [buffer + L, E]
        start = model.class_embedding(labels) + positions[:buffer, None]  # [buffer, G*B, E]
        x = model.z_proj_ln(torch.cat([start, embedded + positions[buffer:][visible]]))
        for block in model.encoder_blocks:
            x = block(x)  # [buffer + V, G*B, E]
        return model.decoder_embed(model.encoder_norm(x))

    def _decode(self, memory: Tensor, visible: Tensor, predict: Tensor, rest: Tensor, known: int) -> Tensor:
        model, buffer = self.model, self.model.config.buffer_size
        positions = model.decoder_pos_embed_learned[0]  # [buffer + L, C]
        buffer_positions = positions[:buffer, None].expand(-1, memory.shape[1], -1)  # [buffer, G*B, C]
        memory_positions = torch.cat([buffer_positions, positions[buffer:][visible]])
        masked = model.mask_token[0] + positions[buffer:][torch.cat([predict, rest])]  # [K + R, G*B, C]
        x = torch.cat([memory + memory_positions, masked])  # [buffer + L, G*B, C]
        for block in model.decoder_blocks[:-1]:
            x = block(x)
        last = cast(SequenceBlock, model.decoder_blocks[-1])
        x = last.rows(x, buffer + known, predict.shape[0])  # [K, G*B, C]
        return model.decoder_norm(x) + model.diffusion_pos_embed_learned[0][predict]


class SequenceAttention(nn.Module):
    """`Attention` over x [S, B, E].

    The bias of the keys adds the same number to every score of a query, which softmax cancels, so it is left out. The
    bias of the values passes the weighted sum unchanged, so it becomes part of the output's bias.

    Where keys are rotated by their positions, their bias adds another number for each of them, and stays.
    """

    def __init__(self, attention: Attention | NovaAttention, rotated: bool = False) -> None:
        super().__init__()
        queries, keys, values = attention.qkv.weight.detach().chunk(3)
        query_bias, key_bias, value_bias = attention.qkv.bias.detach().chunk(3)
        output = attention.proj.weight.detach()
        self.heads, self.attend = attention.heads, attention.attend
        self.q, self.v = linear(queries, query_bias), linear(values)
        self.k = linear(keys, key_bias if rotated else None)
        self.proj = linear(output, attention.proj.bias.detach() + output @ value_bias)

    def forward(self, x: Tensor, queries: Tensor) -> Tensor:
        """Attend from `queries` [K, B, E] to x [S, B, E]: [K, B, E]."""
        return self.attend_projected(self.q(queries), self.k(x), self.v(x))

    def attend_projected(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from projected queries [K, B, E] to projected keys and values [S, B, E]: [K, B, E]."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)).permute(1, 2, 0, 3) for part in (q, k, v))  # [B, H, S, E/H]
        return self.proj(self.attend(q, k, v).permute(2, 0, 1, 3).flatten(2))


class SequenceBlock(nn.Module):
    """A transformer block, `training.models.transformer.Block`, over sequence-first inputs [S, B, E]."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.mlp = padded_mlp(block.mlp)
        self.attn = SequenceAttention(block.attn)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block for all rows of x [S, B, E]."""
        normed = self.norm1(x)
        x = x + self.attn(normed, normed)
        return x + self.mlp(self.norm2(x))

    def rows(self, x: Tensor, start: int, count: int) -> Tensor:
        """Compute the block for the rows start to start + count - 1 of x [S, B, E] only: [count, B, E]."""
        normed = self.norm1(x)
        output = x.narrow(0, start, count) + self.attn(normed, normed.narrow(0, start, count))
        return output + self.mlp(self.norm2(output))


def padded_mlp(mlp: FeedForward) -> FeedForward:
    """Return a copy of the MLP of a block with a padded inner width; weights are shared where nothing is padded."""
    padded = copy.copy(mlp)
    fc1, fc2 = pad_layers(mlp.fc1, mlp.fc2)
    padded._modules = {**mlp._modules, "fc1": fc1, "fc2": fc2}
    return padded


def with_blocks(model: MAR, kind: Callable[[Block], nn.Module]) -> MAR:
    """Return a copy of a model without its head, and with `kind(block)` in place of each block; weights are shared."""
    replaced = copy.copy(model)
    replaced._modules = {
        name: nn.ModuleList(kind(cast(Block, block)) for block in cast(nn.ModuleList, child))
        if name.endswith("_blocks")
        else child
        for name, child in model._modules.items()
        if name != "diffloss"
    }
    return replaced
