"""MAR: a bidirectional transformer over masked tokens, with a diffusion head (arXiv 2406.11838).

Parameter names are those of the published code, so its checkpoints load key for key. The forward pass
is written over lists of positions instead of boolean masks: attention does not care about order, only
about which position embedding a token carries, so the tokens that are known come first, then those to
predict, and nothing is scattered.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.config import ModelConfig
from training.flow import FlowLoss
from training.head import DiffusionLoss

NORM_EPS = 1e-6


class ScaledDotProduct(nn.Module):
    """Attention of each head: queries [B, H, K, E/H], keys and values [B, H, S, E/H] -> [B, H, K, E/H]."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)


class Projections(nn.Linear):
    """Several projections of one input side by side, of which some can be asked for."""

    def part(self, x: Tensor, start: int, stop: int) -> Tensor:
        return F.linear(x, self.weight[start:stop], self.bias[start:stop])


class Attention(nn.Module):
    """Multi-head self-attention; `queries` limits the rows that are answered."""

    def __init__(self, width: int, heads: int, attn_dropout: float, proj_dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Projections(width, 3 * width)
        self.attend: nn.Module = ScaledDotProduct(attn_dropout)
        self.proj = nn.Linear(width, width)
        self.proj_drop: nn.Module = nn.Dropout(proj_dropout)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # [B, S, E] each
        return self._merged(q, k, v)

    def rows(self, x: Tensor, queries: Tensor) -> Tensor:
        """x [B, S, E], queries [B, K, E] -> [B, K, E]: keys and values of all, queries of a few."""
        width = x.shape[-1]
        q = self.qkv.part(queries, 0, width)  # [B, K, E]
        k, v = self.qkv.part(x, width, 3 * width).chunk(2, dim=-1)  # [B, S, E] each
        return self._merged(q, k, v)

    def _merged(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))  # [B, H, S, E/H]
        return self.proj_drop(self.proj(self.attend(q, k, v).transpose(1, 2).flatten(2)))


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


class Block(nn.Module):
    """A pre-norm transformer block (arXiv 2010.11929)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, attn_dropout: float, proj_dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, heads, attn_dropout, proj_dropout)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = FeedForward(width, int(width * mlp_ratio), proj_dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def rows(self, x: Tensor, start: int, count: int) -> Tensor:
        """The block's output for rows start..start+count of x [B, S, E] only: [B, count, E]."""
        normed = self.norm1(x)
        wanted = x.narrow(1, start, count) + self.attn.rows(normed, normed.narrow(1, start, count))
        return wanted + self.mlp(self.norm2(wanted))


class MAR(nn.Module):
    """The published model. Arguments: the fields of `ModelConfig`, by name."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        config = self.config = ModelConfig(**arguments)
        encoder, decoder, sequence = (
            config.encoder_embed_dim,
            config.decoder_embed_dim,
            config.tokens + config.buffer_size,
        )

        self.class_emb = nn.Embedding(config.class_num, encoder)
        self.fake_latent = nn.Parameter(torch.zeros(1, encoder))  # the class of unconditional generation

        self.z_proj = nn.Linear(config.token_channels, encoder)
        self.z_proj_ln = nn.LayerNorm(encoder, eps=NORM_EPS)
        self.encoder_pos_embed_learned = nn.Parameter(torch.zeros(1, sequence, encoder))
        self.encoder_blocks = self._blocks("encoder")
        self.encoder_norm = nn.LayerNorm(encoder, eps=NORM_EPS)

        self.decoder_embed = nn.Linear(encoder, decoder)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder))
        self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, sequence, decoder))
        self.decoder_blocks = self._blocks("decoder")
        self.decoder_norm = nn.LayerNorm(decoder, eps=NORM_EPS)
        self.diffusion_pos_embed_learned = nn.Parameter(torch.zeros(1, config.tokens, decoder))

        self._initialize()
        loss = FlowLoss if config.head == "flow" else DiffusionLoss
        self.diffloss: DiffusionLoss | FlowLoss = loss(
            config.token_channels, decoder, config.diffloss_w, config.diffloss_d
        )

    def _blocks(self, half: str) -> nn.ModuleList:
        config = self.config
        width, depth, heads = (getattr(config, f"{half}_{name}") for name in ("embed_dim", "depth", "num_heads"))
        return nn.ModuleList(
            Block(width, heads, config.mlp_ratio, config.attn_dropout, config.proj_dropout) for _ in range(depth)
        )

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for name, parameter in self.named_parameters():
            if name.endswith("pos_embed_learned") or name in ("class_emb.weight", "fake_latent", "mask_token"):
                nn.init.normal_(parameter, std=0.02)

    def class_embedding(self, labels: Tensor) -> Tensor:
        """int64 labels [B], class_num standing for no class -> [B, E]."""
        return torch.cat([self.class_emb.weight, self.fake_latent])[labels]

    def predict(self, tokens: Tensor, visible: Tensor, predict: Tensor, rest: Tensor, labels: Tensor) -> Tensor:
        """One pass of the backbone: the vectors z of the tokens to predict, [B, K, C].

        tokens [B, V, D] are the known tokens and visible [B, V] their positions; predict [B, K] and
        rest [B, R] are the positions of the masked tokens, those wanted now and those that only take
        part; labels int64 [B], class_num standing for no class. V + K + R = L; V and R may be 0.
        """
        memory = self._encode(tokens, visible, self.class_embedding(labels))  # [B, buffer + V, C]
        return self._decode(memory, visible, predict, rest)

    def _encode(self, tokens: Tensor, visible: Tensor, class_embedding: Tensor) -> Tensor:
        buffer = self.config.buffer_size
        positions = self.encoder_pos_embed_learned[0]  # [buffer + L, E]
        x = torch.cat(
            [class_embedding[:, None] + positions[:buffer], self.z_proj(tokens) + positions[buffer:][visible]], dim=1
        )  # [B, buffer + V, E]
        x = self.z_proj_ln(x)
        for block in self.encoder_blocks:
            x = block(x)
        return self.decoder_embed(self.encoder_norm(x))

    def _decode(self, memory: Tensor, visible: Tensor, predict: Tensor, rest: Tensor) -> Tensor:
        buffer = self.config.buffer_size
        positions = self.decoder_pos_embed_learned[0]  # [buffer + L, C]
        known = memory.shape[1]
        masked = self.mask_token[0] + positions[buffer:][torch.cat([predict, rest], dim=1)]  # [B, K + R, C]
        known_positions = torch.cat(
            [positions[:buffer].expand(memory.shape[0], -1, -1), positions[buffer:][visible]], dim=1
        )
        x = torch.cat([memory + known_positions, masked], dim=1)  # [B, buffer + L, C]
        for block in self.decoder_blocks[:-1]:
            x = block(x)
        last = cast(Block, self.decoder_blocks[-1])
        x = last.rows(x, known, predict.shape[1])  # [B, K, C]
        return self.decoder_norm(x) + self.diffusion_pos_embed_learned[0][predict]

    def patchify(self, latents: Tensor) -> Tensor:
        """[B, c, H, W] -> tokens [B, L, D], channels outermost within a token as published."""
        p = self.config.patch_size
        rows = latents.unflatten(3, (-1, p)).unflatten(2, (-1, p))  # [B, c, h, p, w, p]
        return rows.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def forward(self, latents: Tensor, labels: Tensor, order: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """The training loss of one batch, a scalar.

        latents [B, c, H, W]; labels int64 [B], class_num standing for no class; order int64 [B, L], a
        permutation of the positions of each image, the first K of them masked and predicted from the
        others; timesteps [R, B, K] and noise [R, B, K, D], R times for each masked token. The head
        runs on the masked tokens only: the published code runs it on all and multiplies by the mask.
        """
        tokens = self.patchify(latents)  # [B, L, D]
        repeats, _, masked = timesteps.shape
        predict, visible = order[:, :masked], order[:, masked:]

        def gather(positions: Tensor) -> Tensor:
            return tokens.gather(1, positions[..., None].expand(-1, -1, tokens.shape[-1]))

        z = self.predict(gather(visible), visible, predict, predict[:, :0], labels)  # [B, K, C]
        target = gather(predict).flatten(0, 1).repeat(repeats, 1)  # [N, D], N = R B K
        return self.diffloss(target, z.flatten(0, 1), timesteps.flatten(), noise.flatten(0, 2)).mean()
