"""The head that the paper compares with: a token is one vector of a codebook, trained by cross-entropy.

It is as deep and as wide as the diffusion head, with z as its input in place of a noisy token, and so without
what modulates that by z: what is compared is then the loss, and hardly the size of what it trains.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_COLDEST = 1e-4  # a temperature of 0 is this: the likeliest code, but for ties in float32


class CodeBlock(nn.Module):
    """x + MLP(LayerNorm(x)): a block of the diffusion head without its modulation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.in_ln(x))


class VQHeadMLP(nn.Module):
    """Vectors z [N, C] -> logits of the codes, [N, codes]."""

    def __init__(self, z_channels: int, width: int, depth: int, codes: int) -> None:
        super().__init__()
        self.cond_embed = nn.Linear(z_channels, width)
        self.res_blocks = nn.ModuleList(CodeBlock(width) for _ in range(depth))
        self.norm_final = nn.LayerNorm(width, eps=1e-6)
        self.linear = nn.Linear(width, codes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.zeros_(self.linear.weight)  # every code as likely as any other

    def forward(self, z: Tensor) -> Tensor:
        x = self.cond_embed(z)
        for block in self.res_blocks:
            x = block(x)
        return self.linear(self.norm_final(x))


class VQLoss(nn.Module):
    """Cross-entropy of the code nearest to each token.

    `codebook` [codes, D] is made of the training tokens before the first step (`training.data.codebook`). It is a
    parameter that nothing trains, so that it is wherever the weights are: in checkpoints, averages, states.
    """

    def __init__(self, token_channels: int, z_channels: int, width: int, depth: int, codes: int) -> None:
        super().__init__()
        self.net = VQHeadMLP(z_channels, width, depth, codes)
        self.codebook = nn.Parameter(torch.zeros(codes, token_channels), requires_grad=False)

    def forward(self, target: Tensor, z: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """The loss of each token, [N]: target [N, D], z [N, C]; the draws of a diffusion chain are not looked at."""
        return F.cross_entropy(self.net(z).float(), nearest(target, self.codebook), reduction="none")


def nearest(tokens: Tensor, codebook: Tensor) -> Tensor:
    """The code nearest to each token [N, D] in a codebook [codes, D]: int64 [N]."""
    with torch.autocast(tokens.device.type, enabled=False):
        return (codebook.square().sum(dim=1) - 2 * tokens @ codebook.T).argmin(dim=1)


def sample_codes(logits: Tensor, guidance: Tensor | float, temperature: Tensor | float, normal: Tensor) -> Tensor:
    """Codes int64 [N] for logits [G N, codes], guidance halves one below the other, and standard normals [N].

    Halves are mixed as those of eps are; the normal's own share of a distribution, Phi, is the share of the
    codes' distribution that lies before the code that is drawn.
    """
    halves = logits.reshape(-1, len(normal), logits.shape[-1])  # [G, N, codes]
    mixed = halves[-1] + guidance * (halves[0] - halves[-1])
    temperature = torch.as_tensor(temperature, dtype=mixed.dtype).clamp(min=_COLDEST)
    below = (mixed / temperature).softmax(dim=-1).cumsum(dim=-1)  # [N, codes]
    share = 0.5 + 0.5 * torch.erf(normal / math.sqrt(2.0))
    return (below[:, :-1] <= share[:, None]).sum(dim=-1)
