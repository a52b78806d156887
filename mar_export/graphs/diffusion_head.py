"""The diffusion head as two engines: conditioning once for each iteration, denoise once for each diffusion step."""

from __future__ import annotations

import copy
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mar_export.graphs.channel_padding import linear, pad_inputs, pad_layers, pad_outputs, padding_channels
from training.models.diffusion_head import ResidualBlock
from training.models.mar import MAR
from training.models.uva import Uva


class Conditioning(nn.Module):
    """The engine `conditioning`: the modulation of every layer of the head, for every timestep and row at once.

    The shift, scale and gate of adaLN depend on the timestep and on z, but not on the noisy token. They are therefore
    computed before the diffusion loop, in one matrix product, and about 60% of the head's weights are read outside the
    loop. A layer multiplies by 1 + scale: the 1 is part of the bias here, so that no diffusion step has to add it.
    """

    def __init__(self, model: MAR | Uva) -> None:
        super().__init__()
        net = model.head_network
        width = net.input_proj.out_features
        padding = padding_channels(width)
        first, activation, last = net.time_embed.mlp
        self.time_embed = copy.copy(net.time_embed)
        self.time_embed._modules = {
            "mlp": nn.Sequential(first, activation, pad_outputs(cast(nn.Linear, last), padding))
        }
        self.cond_embed = pad_outputs(net.cond_embed, padding)
        projections = [layer.adaLN_modulation[1] for layer in (*net.res_blocks, net.final_layer)]
        biases = [projection.bias.detach().clone() for projection in projections]
        for bias in biases:
            bias[width : 2 * width] += 1  # shift, scale, and in a block gate
        weights = torch.cat([projection.weight for projection in projections])  # [M, W]
        self.projection = pad_inputs(linear(weights, torch.cat(biases)), padding)

    def forward(self, z: Tensor, timesteps: Tensor) -> Tensor:
        """Compute the modulation [T, G*N, M] for vectors z [G*N, C] and timesteps [T]."""
        condition = self.time_embed(timesteps)[:, None] + self.cond_embed(z)  # [T, G*N, W]
        rows = self.projection(
            F.silu(condition).flatten(0, 1)
        )  # [T*G*N, M]: with two dimensions, the bias is part of the product
        return rows.unflatten(0, (-1, z.shape[0]))  # [T, G*N, M]


class Denoise(nn.Module):
    """The engine `denoise`: one step of any diffusion sampler, with the head, guidance and the sampler's arithmetic.

    All rows form one matrix, with the guidance halves below each other. With two dimensions, a product and its bias
    are one operator, which matters for small models: there, the many small operators take most of the time.
    """

    def __init__(self, model: MAR | Uva) -> None:
        super().__init__()
        net = model.head_network
        self.input_proj, self.final_layer = net.input_proj, net.final_layer
        self.res_blocks = nn.ModuleList(_residual_block(cast(ResidualBlock, block)) for block in net.res_blocks)
        self.width = net.input_proj.out_features

    def forward(
        self, x: Tensor, previous_x0: Tensor, noise: Tensor, modulation: Tensor, coefficients: Tensor, guidance: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute the next noisy tokens and the predicted clean tokens, [N, D] each.

        Args:
            x: Noisy tokens [N, D].
            previous_x0: The clean tokens [N, D] that the previous step predicted; multistep samplers use them.
            noise: Standard normal noise [N, D] of this step.
            modulation: A step's modulation [G*N, M], from `Conditioning`.
            coefficients: A row of the sampler's table, in the order of `runtime.model.coefficients.COEFFICIENTS`.
            guidance: The guidance scale [1].
        """
        (rows, channels), halves = x.shape, modulation.shape[0] // x.shape[0]
        layer_modulation = iter(modulation.split(self.width, dim=-1))  # [G*N, W] each; one split, because it copies
        h = self.input_proj(x).expand(halves, -1, -1).reshape(halves * rows, -1)  # [G*N, W], the same in both halves
        for block in self.res_blocks:
            shift, scale, gate = next(layer_modulation), next(layer_modulation), next(layer_modulation)
            parts = cast(nn.ModuleDict, block)
            h = h + gate * parts["mlp"](parts["in_ln"](h) * scale + shift)  # [G*N, W]
        shift, scale = layer_modulation
        out = self.final_layer.linear(self.final_layer.norm_final(h) * scale + shift)  # [G*N, 2D]
        eps, v = out.reshape(halves, rows, 2 * channels).chunk(2, dim=-1)  # [G, N, D] each
        eps = eps[-1] + guidance * (eps[0] - eps[-1])
        return next_state(x, eps, previous_x0, noise, coefficients, v[0])  # the variance is the conditional one


def next_state(
    x: Tensor, eps: Tensor, previous_x0: Tensor, noise: Tensor, coefficients: Tensor, v: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Apply one row of a sampler's table; see `runtime.sampling.samplers` for the formulas.

    Args:
        x: Noisy tokens [N, D].
        eps: The guided first output of the head [N, D].
        previous_x0: The clean tokens [N, D] that the previous step predicted.
        noise: Standard normal noise [N, D].
        coefficients: The row, in the order of `runtime.model.coefficients.COEFFICIENTS`.
        v: The second output of the head [N, D]. None: the head has one output, and the sampler sets the variance.

    Returns:
        The next noisy tokens, and the predicted clean ones, [N, D] each.
    """
    x0_x, x0_eps, x_x, x_x0, x_previous, noise_scale, low, high, x0_low, x0_high = coefficients.split(1)  # [1] each
    x0 = torch.minimum(torch.maximum(x0_x * x + x0_eps * eps, x0_low), x0_high)
    fresh = noise_scale * noise
    if v is not None:
        fraction = (v + 1) / 2
        fresh = noise_scale * torch.exp(0.5 * (fraction * high + (1 - fraction) * low)) * noise
    return x_x * x + x_x0 * x0 + x_previous * previous_x0 + fresh, x0


def _residual_block(block: ResidualBlock) -> nn.Module:
    """Return the normalization and the padded MLP of a block; its modulation is computed by `Conditioning`."""
    first, activation, second = block.mlp
    first, second = pad_layers(cast(nn.Linear, first), cast(nn.Linear, second))
    return nn.ModuleDict({"in_ln": block.in_ln, "mlp": nn.Sequential(first, activation, second)})
