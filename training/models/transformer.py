"""Transformer blocks with the parameter names of the published code."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """Return which of S keys each of K queries attends to, bool [K, S]; the queries are the last K positions."""
    return torch.arange(keys, device=device) <= torch.arange(queries, device=device)[:, None] + (keys - queries)


class ScaledDotProduct(nn.Module):
    """Scaled dot-product attention (arXiv 1706.03762, equation 1).

    If `causal`, the queries are the last K of S positions, and each attends to itself and to the positions before it.
    """

    def __init__(self, dropout: float, causal: bool = False) -> None:
        super().__init__()
        self.dropout, self.causal = dropout, causal

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return [B, H, K, E/H] for queries [B, H, K, E/H], keys and values [B, H, S, E/H]."""
        mask = causal_mask(q.shape[-2], k.shape[-2], q.device) if self.causal else None
        return F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0)


class Projections(nn.Linear):
    """Several linear projections of one input in one matrix; `part` computes some of them only."""

    def part(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Return output channels start..stop for x [..., E]: [..., stop - start]."""
        return F.linear(x, self.weight[start:stop], self.bias[start:stop])


class Attention(nn.Module):
    """Multi-head self-attention (arXiv 1706.03762, section 3.2.2)."""

    def __init__(self, width: int, heads: int, attn_dropout: float, proj_dropout: float, causal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Projections(width, 3 * width)
        self.attend: nn.Module = ScaledDotProduct(attn_dropout, causal)
        self.proj = nn.Linear(width, width)
        self.proj_drop: nn.Module = nn.Dropout(proj_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for all rows of x [B, S, E]: [B, S, E]."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # [B, S, E] each
        return self.attend_projected(q, k, v)

    def rows(self, x: Tensor, queries: Tensor) -> Tensor:
        """Return the output for queries [B, K, E] alone, with keys and values from all of x [B, S, E]: [B, K, E]."""
        width = x.shape[-1]
        q = self.qkv.part(queries, 0, width)  # [B, K, E]
        k, v = self.qkv.part(x, width, 3 * width).chunk(2, dim=-1)  # [B, S, E] each
        return self.attend_projected(q, k, v)

    def attend_projected(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from projected queries [B, K, E] to projected keys and values [B, S, E]: [B, K, E]."""
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))  # [B, H, S, E/H]
        return self.proj_drop(self.proj(self.attend(q, k, v).transpose(1, 2).flatten(2)))


class FeedForward(nn.Module):
    """Two linear layers with GELU between them, each followed by dropout: [..., E] to [..., E]."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for x [..., E]: [..., E]."""
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


class Block(nn.Module):
    """A pre-norm transformer block (arXiv 2010.11929, equations 2 and 3)."""

    def __init__(
        self, width: int, heads: int, mlp_ratio: float, attn_dropout: float, proj_dropout: float, causal: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, heads, attn_dropout, proj_dropout, causal)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = FeedForward(width, int(width * mlp_ratio), proj_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for all rows of x [B, S, E]: [B, S, E]."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def rows(self, x: Tensor, start: int, count: int) -> Tensor:
        """Return the output for rows start..start+count of x [B, S, E] alone: [B, count, E]."""
        normed = self.norm1(x)
        rows = x.narrow(1, start, count) + self.attn.rows(normed, normed.narrow(1, start, count))
        return rows + self.mlp(self.norm2(rows))
