"""The engines as small modules, each with the inputs and outputs of its spec in `runtime.spec`."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.spec import BACKBONE, CONDITIONING, DENOISE
from training.head import ResidualBlock
from training.model import MAR


class Backbone(nn.Module):
    """`MAR.predict`: known tokens and three lists of positions to the vectors z of those predicted now."""

    def __init__(self, model: MAR) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, visible: Tensor, predict: Tensor, rest: Tensor, labels: Tensor) -> Tensor:
        return self.model.predict(tokens, visible, predict, rest, labels)


class Conditioning(nn.Module):
    """The modulation of every layer of the head for every step and row, in one matrix product.

    adaLN's shift, scale and gate depend on the timestep and on z, never on the noisy token, so they
    leave the diffusion loop, and about 60% of the head's weights leave it with them.
    """

    def __init__(self, model: MAR) -> None:
        super().__init__()
        net = model.diffloss.net
        self.time_embed, self.cond_embed = net.time_embed, net.cond_embed
        projections = [layer.adaLN_modulation[1] for layer in (*net.res_blocks, net.final_layer)]
        self.weight = nn.Parameter(torch.cat([projection.weight for projection in projections]))  # [M, W]
        self.bias = nn.Parameter(torch.cat([projection.bias for projection in projections]))

    def forward(self, z: Tensor, timesteps: Tensor) -> Tensor:
        condition = self.time_embed(timesteps)[:, None] + self.cond_embed(z)  # [T, GN, W]
        return F.linear(F.silu(condition), self.weight, self.bias)  # [T, GN, M]


class Denoise(nn.Module):
    """One diffusion step of any sampler: the head, guidance, and a row of coefficients."""

    def __init__(self, model: MAR) -> None:
        super().__init__()
        net = model.diffloss.net
        self.input_proj, self.final_layer = net.input_proj, net.final_layer
        self.res_blocks = net.res_blocks
        width = model.config.diffloss_w
        self.splits = [3 * width] * len(net.res_blocks) + [2 * width]

    def forward(
        self, x: Tensor, previous_x0: Tensor, noise: Tensor, modulation: Tensor, coefficients: Tensor, guidance: Tensor
    ) -> tuple[Tensor, Tensor]:
        halves = modulation.reshape(-1, x.shape[0], modulation.shape[1])  # [G, N, M]
        *blocks, final = halves.split(self.splits, dim=-1)
        h = self.input_proj(x)[None]  # [1, N, W], the same state under both halves
        for block, shift_scale_gate in zip(self.res_blocks, blocks, strict=True):
            h = cast(ResidualBlock, block).modulated(h, shift_scale_gate)  # [G, N, W]
        eps, v = self.final_layer.modulated(h, final).chunk(2, dim=-1)  # [G, N, D] each
        eps = eps[-1] + guidance * (eps[0] - eps[-1])
        # The rows of runtime.diffusion.COEFFICIENTS, in that order.
        x0_x, x0_eps, x_x, x_x0, x_previous, noise_scale, low, high = coefficients.unbind()
        x0 = x0_x * x + x0_eps * eps
        fraction = (v[0] + 1) / 2  # the variance is the conditional one
        sigma = torch.exp(0.5 * (fraction * high + (1 - fraction) * low))
        next_x = x_x * x + x_x0 * x0 + x_previous * previous_x0 + noise_scale * sigma * noise
        return next_x, x0


GRAPHS: dict[str, type[Backbone] | type[Conditioning] | type[Denoise]] = {
    BACKBONE: Backbone,
    CONDITIONING: Conditioning,
    DENOISE: Denoise,
}
