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
    leave the diffusion loop, and about 60% of the head's weights leave it with them. A layer multiplies
    by 1 + scale: the 1 is in the bias here, so that no step has to add it.
    """

    def __init__(self, model: MAR) -> None:
        super().__init__()
        net = model.diffloss.net
        self.time_embed, self.cond_embed = net.time_embed, net.cond_embed
        projections = [layer.adaLN_modulation[1] for layer in (*net.res_blocks, net.final_layer)]
        self.weight = nn.Parameter(torch.cat([projection.weight for projection in projections]))  # [M, W]
        width = model.config.diffloss_w
        biases = [projection.bias.detach().clone() for projection in projections]
        for bias in biases:
            bias[width : 2 * width] += 1  # shift, scale, and in a block gate
        self.bias = nn.Parameter(torch.cat(biases))  # [M]

    def forward(self, z: Tensor, timesteps: Tensor) -> Tensor:
        condition = self.time_embed(timesteps)[:, None] + self.cond_embed(z)  # [T, GN, W]
        rows = F.linear(F.silu(condition).flatten(0, 1), self.weight, self.bias)  # [T GN, M], the bias in the product
        return rows.unflatten(0, (-1, z.shape[0]))  # [T, GN, M]


class Denoise(nn.Module):
    """One diffusion step of any sampler: the head, guidance, and a row of coefficients.

    Rows stay a matrix of two dimensions, guidance halves one below the other: products with a bias are
    then one operator, and the many small ones around them are what a small model spends its time on.
    """

    def __init__(self, model: MAR) -> None:
        super().__init__()
        net = model.diffloss.net
        self.input_proj, self.res_blocks, self.final_layer = net.input_proj, net.res_blocks, net.final_layer
        width = model.config.diffloss_w
        self.splits = [3 * width] * len(net.res_blocks) + [2 * width]

    def forward(
        self, x: Tensor, previous_x0: Tensor, noise: Tensor, modulation: Tensor, coefficients: Tensor, guidance: Tensor
    ) -> tuple[Tensor, Tensor]:
        (rows, channels), halves = x.shape, modulation.shape[0] // x.shape[0]
        *blocks, final = modulation.split(self.splits, dim=-1)
        h = self.input_proj(x).expand(halves, -1, -1).reshape(halves * rows, -1)  # [GN, W], the same in both halves
        for block, shift_scale_gate in zip(self.res_blocks, blocks, strict=True):
            shift, scale, gate = shift_scale_gate.chunk(3, dim=-1)
            residual = cast(ResidualBlock, block)
            h = h + gate * residual.mlp(residual.in_ln(h) * scale + shift)  # [GN, W]
        shift, scale = final.chunk(2, dim=-1)
        out = self.final_layer.linear(self.final_layer.norm_final(h) * scale + shift)  # [GN, 2D]
        eps, v = out.reshape(halves, rows, 2 * channels).chunk(2, dim=-1)  # [G, N, D] each
        eps = eps[-1] + guidance * (eps[0] - eps[-1])
        # The columns of runtime.samplers.COEFFICIENTS, in that order, [1] each.
        x0_x, x0_eps, x_x, x_x0, x_previous, noise_scale, low, high = coefficients.split(1)
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
