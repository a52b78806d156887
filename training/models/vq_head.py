"""The VQ head: a token is one vector of a codebook, predicted by a classifier that is trained by cross-entropy.

It is the baseline of arXiv 2406.11838, section 5. It has the depth and width of the diffusion head; its input is z in
place of a noisy token, so it needs no modulation by z. A comparison of the two is then one of their losses.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.models.initialization import initialize_linears

_MIN_TEMPERATURE = 1e-4  # used in place of 0; it chooses the likeliest code, except for ties in float32


class CodeBlock(nn.Module):
    """x + MLP(LayerNorm(x)) of x [N, W]: a block of the diffusion head without its modulation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, [N, W]."""
        return x + self.mlp(self.in_ln(x))


class VQHeadMLP(nn.Module):
    """A residual MLP from vectors z [N, C] to logits over the codes of the codebook, [N, codes]."""

    def __init__(self, z_channels: int, width: int, depth: int, codes: int) -> None:
        super().__init__()
        self.cond_embed = nn.Linear(z_channels, width)
        self.res_blocks = nn.ModuleList(CodeBlock(width) for _ in range(depth))
        self.norm_final = nn.LayerNorm(width, eps=1e-6)
        self.linear = nn.Linear(width, codes)
        initialize_linears(self)
        nn.init.zeros_(self.linear.weight)  # all codes are equally likely at first

    def forward(self, z: Tensor) -> Tensor:
        """Return logits [N, codes] for z [N, C]."""
        x = self.cond_embed(z)
        for block in self.res_blocks:
            x = block(x)
        return self.linear(self.norm_final(x))


class VQLoss(nn.Module):
    """The cross-entropy of the code nearest to each token.

    Attributes:
        net: The classifier.
        codebook: The vectors of the codes, [codes, D], fitted to training tokens before the first step
            (`training.data.codebook`). It is a parameter that is not trained, so that checkpoints contain it.
    """

    def __init__(self, token_channels: int, z_channels: int, width: int, depth: int, codes: int) -> None:
        super().__init__()
        self.net = VQHeadMLP(z_channels, width, depth, codes)
        self.codebook = nn.Parameter(torch.zeros(codes, token_channels), requires_grad=False)

    def forward(self, target: Tensor, z: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """Return the loss of each token, [N], for targets [N, D] and z [N, C]; timesteps and noise are not used."""
        return F.cross_entropy(self.net(z).float(), nearest_codes(target, self.codebook), reduction="none")


def nearest_codes(tokens: Tensor, codebook: Tensor) -> Tensor:
    """Return the code nearest to each token [N, D] in a codebook [codes, D], by Euclidean distance: int64 [N]."""
    with torch.autocast(tokens.device.type, enabled=False):
        return (codebook.square().sum(dim=1) - 2 * tokens @ codebook.T).argmin(dim=1)


def sample_codes(logits: Tensor, guidance: Tensor | float, temperature: Tensor | float, normal: Tensor) -> Tensor:
    """Sample codes by inverting the CDF of the softmax distribution at Phi(normal), which is uniform in 0..1.

    Args:
        logits: [G N, codes]; with guidance G = 2, the conditional half first, otherwise G = 1.
        guidance: The scale of classifier-free guidance: unconditional + scale * (conditional - unconditional).
        temperature: Divides the logits; 0 chooses the likeliest code.
        normal: Standard normal numbers, [N].

    Returns:
        Codes, int64 [N].
    """
    halves = logits.reshape(-1, len(normal), logits.shape[-1])  # [G, N, codes]
    guided = halves[-1] + guidance * (halves[0] - halves[-1])
    temperature = torch.as_tensor(temperature, dtype=guided.dtype).clamp(min=_MIN_TEMPERATURE)
    cdf = (guided / temperature).softmax(dim=-1).cumsum(dim=-1)  # [N, codes]
    uniform = 0.5 + 0.5 * torch.erf(normal / math.sqrt(2.0))  # Phi(normal)
    return (cdf[:, :-1] <= uniform[:, None]).sum(dim=-1)
