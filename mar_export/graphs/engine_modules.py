"""The engines as small modules, each with the inputs and outputs of its spec in `runtime.model.engine_spec`."""

from __future__ import annotations

import copy
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mar_export.graphs.backbone import Backbone
from mar_export.graphs.causal_backbone import CausalBackbone
from mar_export.graphs.channel_padding import linear, more_inputs, more_outputs, spare_channels, with_spare_channels
from mar_export.graphs.vq_head import VQConditioning, VQDenoise
from runtime.model.engine_spec import BACKBONE, CONDITIONING, DECODER, DENOISE, ENCODER
from training.models.autoencoder import AutoencoderKL
from training.models.diffusion_head import ResidualBlock
from training.models.mar import MAR


class Conditioning(nn.Module):
    """The modulation of every layer of the head for every step and row, in one matrix product.

    adaLN's shift, scale and gate depend on the timestep and on z, never on the noisy token, so they
    leave the diffusion loop, and about 60% of the head's weights leave it with them. A layer multiplies
    by 1 + scale: the 1 is in the bias here, so that no step has to add it.
    """

    def __init__(self, model: MAR) -> None:
        super().__init__()
        net = model.diffloss.net
        width = model.config.diffloss_w
        spare = spare_channels(width)
        first, activation, last = net.time_embed.mlp
        self.time_embed = copy.copy(net.time_embed)
        self.time_embed._modules = {"mlp": nn.Sequential(first, activation, more_outputs(last, spare))}
        self.cond_embed = more_outputs(net.cond_embed, spare)
        projections = [layer.adaLN_modulation[1] for layer in (*net.res_blocks, net.final_layer)]
        biases = [projection.bias.detach().clone() for projection in projections]
        for bias in biases:
            bias[width : 2 * width] += 1  # shift, scale, and in a block gate
        weights = torch.cat([projection.weight for projection in projections])  # [M, W]
        self.projection = more_inputs(linear(weights, torch.cat(biases)), spare)

    def forward(self, z: Tensor, timesteps: Tensor) -> Tensor:
        condition = self.time_embed(timesteps)[:, None] + self.cond_embed(z)  # [T, GN, W]
        rows = self.projection(F.silu(condition).flatten(0, 1))  # [T GN, M], of two dimensions: the bias in the product
        return rows.unflatten(0, (-1, z.shape[0]))  # [T, GN, M]


class Denoise(nn.Module):
    """One diffusion step of any sampler: the head, guidance, and a row of coefficients.

    Rows stay a matrix of two dimensions, guidance halves one below the other: products with a bias are
    then one operator, and the many small ones around them are what a small model spends its time on.
    """

    def __init__(self, model: MAR) -> None:
        super().__init__()
        net = model.diffloss.net
        self.input_proj, self.final_layer = net.input_proj, net.final_layer
        self.res_blocks = nn.ModuleList(_residual_block(cast(ResidualBlock, block)) for block in net.res_blocks)
        self.width = model.config.diffloss_w

    def forward(
        self, x: Tensor, previous_x0: Tensor, noise: Tensor, modulation: Tensor, coefficients: Tensor, guidance: Tensor
    ) -> tuple[Tensor, Tensor]:
        (rows, channels), halves = x.shape, modulation.shape[0] // x.shape[0]
        of_layers = iter(modulation.split(self.width, dim=-1))  # [GN, W] each; one split, because it copies
        h = self.input_proj(x).expand(halves, -1, -1).reshape(halves * rows, -1)  # [GN, W], the same in both halves
        for block in self.res_blocks:
            shift, scale, gate = next(of_layers), next(of_layers), next(of_layers)
            parts = cast(nn.ModuleDict, block)
            h = h + gate * parts["mlp"](parts["in_ln"](h) * scale + shift)  # [GN, W]
        shift, scale = of_layers
        out = self.final_layer.linear(self.final_layer.norm_final(h) * scale + shift)  # [GN, 2D]
        eps, v = out.reshape(halves, rows, 2 * channels).chunk(2, dim=-1)  # [G, N, D] each
        eps = eps[-1] + guidance * (eps[0] - eps[-1])
        # The columns of runtime.model.coefficients.COEFFICIENTS, in that order, [1] each.
        x0_x, x0_eps, x_x, x_x0, x_previous, noise_scale, low, high = coefficients.split(1)
        x0 = x0_x * x + x0_eps * eps
        fraction = (v[0] + 1) / 2  # the variance is the conditional one
        sigma = torch.exp(0.5 * (fraction * high + (1 - fraction) * low))
        next_x = x_x * x + x_x0 * x0 + x_previous * previous_x0 + noise_scale * sigma * noise
        return next_x, x0


def _residual_block(block: ResidualBlock) -> nn.Module:
    """Its normalisation and layers."""
    first, activation, second = block.mlp
    first, second = with_spare_channels(cast(nn.Linear, first), cast(nn.Linear, second))
    return nn.ModuleDict({"in_ln": block.in_ln, "mlp": nn.Sequential(first, activation, second)})


class Decoder(nn.Module):
    """Latents as the loop leaves them to pixels of about -1..1."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents)


class Encoder(nn.Module):
    """Pixels of -1..1 to the mean of their latents, as the loop knows them."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, image: Tensor) -> Tensor:
        return self.vae.encode(image)


def loop_modules(model: MAR) -> dict[str, nn.Module]:
    """The modules of the engines of the loop, in evaluation mode, by name."""
    causal, codes = model.config.attention == "causal", model.config.head == "vq"
    modules: dict[str, nn.Module] = {
        BACKBONE: CausalBackbone(model) if causal else Backbone(model),
        CONDITIONING: VQConditioning(model) if codes else Conditioning(model),
        DENOISE: VQDenoise(model) if codes else Denoise(model),
    }
    return {name: module.eval() for name, module in modules.items()}


def graph_modules(model: MAR, vae: AutoencoderKL | None, encoder: bool) -> dict[str, nn.Module]:
    """The module of every engine of an artifact, in evaluation mode, by name."""
    modules = loop_modules(model)
    if vae is not None:
        modules[DECODER] = Decoder(vae)
        if encoder:
            modules[ENCODER] = Encoder(vae)
    return {name: module.eval() for name, module in modules.items()}
