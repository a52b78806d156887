"""The engines of ReCAP: a backbone that also leaves the keys and values of all rows, and one that reads some of them.

Attention does not depend on the order of rows, only on their positions, which are given by index. So rows lie where
they make what is read a prefix of what was left; see `runtime.model.recap_engines`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mar_export.graphs.backbone import SequenceBlock, with_blocks
from training.models.mar import MAR

KeysAndValues = tuple[Tensor, Tensor]
"""Keys and values [P, G*B, E] each, of P rows in one block."""


class _ReusingBlock(SequenceBlock):
    """A block over new rows, which may attend to kept keys and values too."""

    def forward(  # type: ignore[override]
        self, x: Tensor, kept: KeysAndValues | None, part: tuple[int, int] | None = None
    ) -> tuple[Tensor, KeysAndValues]:
        """Compute the block for all rows of x [S, B, E], or for `part` of them: the first one and their number.

        Returns:
            These rows [K, B, E], and the keys and values of all rows of x.
        """
        normed = self.norm1(x)
        asking = normed if part is None else normed.narrow(0, *part)
        queries = self.attn.q(asking)  # first: calibration then finds the layers of `Backbone` under the same names
        new = self.attn.k(normed), self.attn.v(normed)
        keys, values = new if kept is None else (torch.cat([old, own]) for old, own in zip(kept, new, strict=True))
        x = (x if part is None else x.narrow(0, *part)) + self.attn.attend_projected(queries, keys, values)
        return x + self.mlp(self.norm2(x)), new


class _RecapBackbone(nn.Module):
    """What both engines have in common: how rows begin, and their way through all blocks."""

    def __init__(self, model: MAR) -> None:
        super().__init__()
        self.model = with_blocks(model, _ReusingBlock)

    def _encode(
        self, embedded: Tensor, positions: Tensor, buffer: Tensor, labels: Tensor, cache: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return what the decoder reads of V tokens and A rows of the class buffer, and their keys and values.

        Args:
            embedded: The tokens, projected [V, G*B, E].
            positions: Their positions [V, G*B].
            buffer: The rows of the class buffer [A].
            labels: Classes [G*B].
            cache: Keys and values [E, G*B, Ze] of other rows; None for none.

        Returns:
            [V + A, G*B, C] and [V + A, G*B, Ze].
        """
        model, first = self.model, self.model.config.buffer_size
        table = model.encoder_pos_embed_learned[0]  # [buffer + L, E]
        of_tokens = embedded + table[first:][positions]
        of_buffer = model.class_embedding(labels) + table[:first][buffer][:, None]
        x, left = model.z_proj_ln(torch.cat([of_tokens, of_buffer])), list[Tensor]()
        for block, kept in zip(model.encoder_blocks, _by_block(cache, model.encoder_blocks), strict=True):
            x, new = block(x, kept)
            left += new
        return model.decoder_embed(model.encoder_norm(x)), torch.cat(left, dim=-1)

    def _decode(self, x: Tensor, predict: Tensor, before: int, cache: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return z of the rows to predict, and the keys and values of all rows.

        Args:
            x: [S, G*B, C].
            predict: The positions [K, G*B] of K rows of x.
            before: The number of rows before these.
            cache: Keys and values [F, G*B, Zd] of other rows; None for none.

        Returns:
            [K, G*B, C] and [S, G*B, Zd].
        """
        model, left = self.model, list[Tensor]()
        last = len(model.decoder_blocks) - 1
        kept_of_blocks = _by_block(cache, model.decoder_blocks)
        for number, (block, kept) in enumerate(zip(model.decoder_blocks, kept_of_blocks, strict=True)):
            x, new = block(x, kept, (before, predict.shape[0]) if number == last else None)
            left += new
        return model.decoder_norm(x) + model.diffusion_pos_embed_learned[0][predict], torch.cat(left, dim=-1)

    def _tables(self) -> tuple[Tensor, Tensor]:
        """Return the decoder's positions of the class buffer [buffer, C] and of tokens [L, C]."""
        first = self.model.config.buffer_size
        return self.model.decoder_pos_embed_learned[0, :first], self.model.decoder_pos_embed_learned[0, first:]


class FullBackbone(_RecapBackbone):
    """The engine `backbone_full`: `Backbone` in another order of rows, which leaves its keys and values."""

    def forward(
        self, tokens: Tensor, visible: Tensor, predict: Tensor, later: Tensor, rest: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the vectors z [G*N, C] of the tokens that are predicted now, one row of the head each.

        Args:
            tokens: Known tokens [V, B, D].
            visible: Their positions [V, B].
            predict: Positions [K, B] that are predicted now.
            later: Positions [H, B] that local passes predict.
            rest: Positions [R, B] that are predicted after the group.
            labels: Classes [G*B].

        Returns:
            z, and the keys and values of the encoder [V + buffer, G*B, Ze] and the decoder [buffer + L, G*B, Zd].
        """
        halves, known = labels.shape[0] // predict.shape[1], tokens.shape[0]
        embedded = self.model.z_proj(tokens)  # [V, B, E], once for all halves
        embedded, visible, predict, later, rest = _repeated(halves, embedded, visible, predict, later, rest)
        of_buffer, of_tokens = self._tables()
        buffer = torch.arange(self.model.config.buffer_size, device=labels.device)
        memory, encoder_cache = self._encode(embedded, visible, buffer, labels, None)
        rows = [
            memory[:known] + of_tokens[visible],
            self.model.mask_token[0] + of_tokens[rest],
            memory[known:] + of_buffer[:, None],
            self.model.mask_token[0] + of_tokens[torch.cat([predict, later])],
        ]
        before = known + rest.shape[0] + of_buffer.shape[0]
        z, decoder_cache = self._decode(torch.cat(rows), predict, before, None)
        return _rows_of_head(z, halves), encoder_cache, decoder_cache


class LocalBackbone(_RecapBackbone):
    """The engine `backbone_local`: rows of the tokens of a group, which attend to what a full pass left."""

    def forward(
        self,
        tokens: Tensor,
        drawn: Tensor,
        predict: Tensor,
        later: Tensor,
        buffer: Tensor,
        labels: Tensor,
        encoder_cache: Tensor,
        decoder_cache: Tensor,
    ) -> Tensor:
        """Compute the vectors z [G*N, C] of the tokens that are predicted now, one row of the head each.

        Args:
            tokens: The tokens of the group that are drawn [J, B, D].
            drawn: Their positions [J, B].
            predict: Positions [K, B] that are predicted now.
            later: Positions [H, B] that later local passes predict.
            buffer: The rows of the class buffer [A] that are computed anew: all or none.
            labels: Classes [G*B].
            encoder_cache: Keys and values [E, G*B, Ze] of the encoder's other rows.
            decoder_cache: Keys and values [F, G*B, Zd] of the decoder's other rows.
        """
        halves, count = labels.shape[0] // predict.shape[1], tokens.shape[0]
        embedded = self.model.z_proj(tokens)  # [J, B, E], once for all halves
        embedded, drawn, predict, later = _repeated(halves, embedded, drawn, predict, later)
        of_buffer, of_tokens = self._tables()
        memory, _ = self._encode(embedded, drawn, buffer, labels, encoder_cache)
        rows = [
            memory[:count] + of_tokens[drawn],
            memory[count:] + of_buffer[buffer][:, None],
            self.model.mask_token[0] + of_tokens[torch.cat([predict, later])],
        ]
        z, _ = self._decode(torch.cat(rows), predict, count + buffer.shape[0], decoder_cache)
        return _rows_of_head(z, halves)


def _by_block(cache: Tensor | None, blocks: nn.ModuleList) -> Iterator[KeysAndValues | None]:
    """Yield the kept keys and values [P, G*B, E] of each block, from those [P, G*B, Z] of all; None without a cache."""
    if cache is None:
        yield from [None] * len(blocks)
        return
    parts = iter(cache.split(cache.shape[-1] // (2 * len(blocks)), dim=-1))
    yield from zip(parts, parts, strict=True)


def _repeated(halves: int, *parts: Tensor) -> tuple[Tensor, ...]:
    """Return tensors [S, B, ...] repeated for each guidance half: [S, G*B, ...]."""
    return tuple(part.repeat(1, halves, *[1] * (part.dim() - 2)) for part in parts)


def _rows_of_head(z: Tensor, halves: int) -> Tensor:
    """Return z [K, G*B, C] as rows of the head [G*N, C]."""
    return z.unflatten(1, (halves, -1)).transpose(0, 1).reshape(z.shape[0] * z.shape[1], z.shape[2])
