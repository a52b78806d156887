"""ReCAP in eager PyTorch, as its released sampler computes it: rows in raster order, chosen by boolean masks.

Parity reports and tests compare the engines with it. See `runtime.sampling.recap` for groups of iterations.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from runtime.sampling.plan import Iteration
from training.models.mar import MAR
from training.models.transformer import Block

KeysAndValues = tuple[Tensor, Tensor]
"""Keys and values [B, S, E] each, of S rows in one block."""


class ReusedContext:
    """The keys and values of a full pass, which the local passes of its group read.

    Attributes:
        encoder: Those of each block of the encoder: the class buffer if it is kept, then tokens in raster order.
        decoder: The same of the decoder.
    """

    def __init__(self, model: MAR) -> None:
        self.encoder: list[KeysAndValues] = []
        self.decoder: list[KeysAndValues] = []
        self._model = model

    def predict(self, iteration: Iteration, tokens: Tensor, masked: Tensor, union: Tensor, labels: Tensor) -> Tensor:
        """Run the pass of an iteration of a group; a full one keeps the keys and values of all rows but the union's.

        Args:
            iteration: The iteration.
            tokens: [B, L, D].
            masked: The positions that are not known, bool [B, L].
            union: The positions that the group predicts, bool [B, L].
            labels: Int64 [B]; class_num stands for no class.

        Returns:
            z of all positions, [B, L, C]; those outside the union have no meaning after a local pass.
        """
        assert iteration.group is not None
        reused = iteration.group.cache_buffer
        if iteration.local:
            return self._pass(tokens, union & ~masked, union, labels, not reused, self.encoder, self.decoder)[0]
        z, encoder, decoder = self._pass(tokens, ~masked, torch.ones_like(masked), labels, True, [], [])
        of_buffer = masked.new_full((len(masked), self._model.config.buffer_size), reused)
        of_encoder = torch.cat([of_buffer, masked.new_ones(len(masked), iteration.known)], dim=1)
        of_decoder = torch.cat([of_buffer, ~union], dim=1)
        self.encoder = [(_rows(keys, of_encoder), _rows(values, of_encoder)) for keys, values in encoder]
        self.decoder = [(_rows(keys, of_decoder), _rows(values, of_decoder)) for keys, values in decoder]
        return z

    def _pass(
        self,
        tokens: Tensor,
        read: Tensor,
        decoded: Tensor,
        labels: Tensor,
        with_buffer: bool,
        encoder: list[KeysAndValues],
        decoder: list[KeysAndValues],
    ) -> tuple[Tensor, list[KeysAndValues], list[KeysAndValues]]:
        """Return z [B, L, C], and the keys and values of all rows of encoder and decoder.

        Args:
            tokens: [B, L, D].
            read: The positions that the encoder reads, bool [B, L].
            decoded: Those of the decoder's rows, bool [B, L].
            labels: Int64 [B].
            with_buffer: Whether there are rows of the class buffer.
            encoder: Kept keys and values of the encoder, or none.
            decoder: Those of the decoder.
        """
        model, buffer = self._model, read.new_full((len(read), self._model.config.buffer_size), with_buffer)
        start = model.class_embedding(labels)[:, None].expand(-1, buffer.shape[1], -1)
        x = torch.cat([start, model.z_proj(tokens)], dim=1) + model.encoder_pos_embed_learned
        in_encoder, in_decoder = torch.cat([buffer, read], dim=1), torch.cat([buffer, decoded], dim=1)
        x, of_encoder = _through(model.encoder_blocks, _rows(model.z_proj_ln(x), in_encoder), encoder)
        x = model.decoder_embed(model.encoder_norm(x))
        padded = model.mask_token.repeat(len(x), in_encoder.shape[1], 1)
        padded[in_encoder] = x.flatten(0, 1)
        x = _rows(padded + model.decoder_pos_embed_learned, in_decoder)
        x, of_decoder = _through(model.decoder_blocks, x, decoder)
        z = torch.zeros_like(padded)
        z[in_decoder] = model.decoder_norm(x).flatten(0, 1)
        return z[:, buffer.shape[1] :] + model.diffusion_pos_embed_learned, of_encoder, of_decoder


def _rows(x: Tensor, chosen: Tensor) -> Tensor:
    """Return the rows of x [B, S, E] that bool [B, S] chooses, as many in each image: [B, K, E]."""
    return x[chosen].reshape(len(x), -1, x.shape[-1])


def _through(blocks: nn.ModuleList, x: Tensor, kept: list[KeysAndValues]) -> tuple[Tensor, list[KeysAndValues]]:
    """Return rows [B, S, E] after all blocks, where they attend to each other and to what is kept, and their own."""
    own = list[KeysAndValues]()
    for number, block in enumerate(cast(Iterable[Block], blocks)):
        q, k, v = block.attn.qkv(block.norm1(x)).chunk(3, dim=-1)
        own.append((k, v))
        if kept:
            k, v = torch.cat([kept[number][0], k], dim=1), torch.cat([kept[number][1], v], dim=1)
        x = x + block.attn.attend_projected(q, k, v)
        x = x + block.mlp(block.norm2(x))
    return x, own
