"""Hi-MAR as engines: a backbone for each of its phases, MAR's small head, and the DiT in two parts.

Scales and gates of the backbone are constants of a phase. A scale becomes part of gain and bias of the normalization
before it, a gate part of the layer after which it stands. What depends only on the model is computed when the modules
are made: tables of positions with mask tokens, and the DiT's positions with the bias of its first layer.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mar_export.graphs.backbone import SequenceAttention, SequenceBlock, padded_mlp
from mar_export.graphs.channel_padding import linear
from mar_export.graphs.diffusion_head import next_state
from training.models.himar import BIG, SMALL, DiTBlock, Himar, TaskBlock, plain_norm
from training.models.transformer import Block


def folded(block: TaskBlock, task: Tensor, phase: int) -> Block:
    """Return a block of a phase without modulation, which computes the same."""
    scale1, gate1, scale2, gate2 = (part.detach() for part in block.modulation(task, phase))
    plain = copy.copy(block)
    attn, mlp = copy.copy(block.attn), copy.copy(block.mlp)
    attn._modules = {**block.attn._modules, "proj": _gated(block.attn.proj, gate1)}
    mlp._modules = {**block.mlp._modules, "fc2": _gated(block.mlp.fc2, gate2)}
    plain._parameters = {}
    plain._modules = {
        "norm1": _scaled(block.norm1, scale1),
        "norm2": _scaled(block.norm2, scale2),
        "attn": attn,
        "mlp": mlp,
    }
    return plain


def _scaled(norm: nn.LayerNorm, scale: Tensor) -> nn.LayerNorm:
    """Return a normalization whose output is multiplied by 1 + scale."""
    result = copy.copy(norm)
    gain = 1 + scale
    result._parameters = {
        "weight": nn.Parameter(norm.weight.detach() * gain),
        "bias": nn.Parameter(norm.bias.detach() * gain),
    }
    return result


def _gated(layer: nn.Linear, gate: Tensor) -> nn.Linear:
    """Return a layer whose output is multiplied by a gate."""
    return linear(layer.weight.detach() * gate[:, None], layer.bias.detach() * gate)


class _PhaseBackbone(nn.Module):
    """The parts of the backbone that both phases have, with the weights and tables of one of them."""

    def __init__(self, model: Himar, phase: int) -> None:
        super().__init__()
        config = model.config
        self.buffer, self.small = config.buffer_size, config.small_tokens
        rows = config.buffer_size + config.positions
        self.norm_in, self.encoder_norm = model.z_proj_ln, model.encoder_norm
        self.decoder_embed, self.decoder_norm = model.decoder_embed, model.decoder_norm
        with torch.no_grad():
            for half in ("encoder", "decoder"):
                blocks, task = getattr(model, f"{half}_blocks"), model.task(half, phase).detach()
                plain = (SequenceBlock(folded(cast(TaskBlock, block), task, phase)) for block in blocks)
                setattr(self, f"{half}_blocks", nn.ModuleList(plain))
            encoder = model.encoder_pos_embed_learned[0, phase * rows : (phase + 1) * rows]
            decoder = model.decoder_pos_embed_learned[0, phase * rows : (phase + 1) * rows]
            mask = model.mask_token[0, phase * config.positions : (phase + 1) * config.positions]
            # The rows of the class buffer depend on the label alone: after the first normalization, one table of them.
            classes = torch.cat([model.class_emb.weight, model.fake_latent])
            constants = {
                "classes": classes,
                "encoder_buffer": encoder[: self.buffer],
                "encoder_positions": encoder[self.buffer :],
                "decoder_buffer": decoder[: self.buffer],
                "decoder_positions": decoder[self.buffer :],
                "masked": mask + decoder[self.buffer :],  # what stands for each unknown position
                "last_positions": model.diffusion_pos_embed_learned[0],
            }
        for name, constant in constants.items():
            self.register_buffer(name, constant.detach().clone())

    def table(self, name: str) -> Tensor:
        """Return a table by name."""
        return cast(Tensor, getattr(self, name))

    def encode(self, content: Tensor, labels: Tensor) -> Tensor:
        """Return the encoder's output [buffer + n, G*B, C] for content with positions [n, G*B, C]."""
        start = self.table("classes")[labels] + self.table("encoder_buffer")[:, None]  # [buffer, G*B, C]
        x = self.norm_in(torch.cat([start, content]))
        for block in cast(nn.ModuleList, self.encoder_blocks):
            x = block(x)
        return self.decoder_embed(self.encoder_norm(x))

    def decode(self, memory: Tensor, places: Tensor, masked: Tensor, first: int, count: int) -> Tensor:
        """Return `count` rows from row `first` of the decoder's output, normalized: [count, G*B, C].

        Args:
            memory: The encoder's output [buffer + n, G*B, C].
            places: The positions of its rows behind the buffer [n, G*B].
            masked: What stands for the other positions [m, G*B, C].
            first: The first row, counted from the class buffer.
            count: The number of rows.
        """
        buffer = self.table("decoder_buffer")[:, None].expand(-1, memory.shape[1], -1)
        positions = torch.cat([buffer, self.table("decoder_positions")[places]])
        x = torch.cat([memory + positions, masked])
        blocks = cast(nn.ModuleList, self.decoder_blocks)
        for block in blocks[:-1]:
            x = block(x)
        return self.decoder_norm(cast(SequenceBlock, blocks[-1]).rows(x, first, count))


class SmallBackbone(_PhaseBackbone):
    """The engine `backbone`: phase 1, in whose decoder all big positions are mask tokens."""

    def __init__(self, model: Himar) -> None:
        super().__init__(model, SMALL)
        self.z_proj = model.cond_proj

    def forward(self, tokens: Tensor, visible: Tensor, predict: Tensor, rest: Tensor, labels: Tensor) -> Tensor:
        """Compute z [G*N, C] of the small tokens that are predicted now; the inputs are those of MAR's backbone."""
        halves = labels.shape[0] // predict.shape[1]
        known, count = tokens.shape[0], predict.shape[0]
        content = self.z_proj(tokens) + self.table("encoder_positions")[visible]  # [V, B, C]
        memory = self.encode(content.repeat(1, halves, 1), labels)  # [buffer + V, G*B, C]
        small = self.table("masked")[torch.cat([predict, rest])].repeat(1, halves, 1)  # [K + R, G*B, C]
        big = self.table("masked")[self.small :, None].expand(-1, labels.shape[0], -1)  # [L, G*B, C]
        places, masked = visible.repeat(1, halves), torch.cat([small, big])
        z = self.decode(memory, places, masked, self.buffer + known, count)  # [K, G*B, C]
        z = z + self.table("last_positions")[predict].repeat(1, halves, 1)
        rows = z.unflatten(1, (halves, -1)).transpose(0, 1)  # [G, K, B, C], the rows of the head
        return rows.reshape(labels.shape[0] * count, z.shape[-1])


class BigBackbone(_PhaseBackbone):
    """The engine `backbone2`: phase 2, whose small rows hold z of phase 1, the same in both guidance halves."""

    def __init__(self, model: Himar) -> None:
        super().__init__(model, BIG)
        self.z_proj, self.small_proj = model.z_proj, model.cond_z_proj

    def forward(
        self, small_z: Tensor, small_order: Tensor, tokens: Tensor, visible: Tensor, rest: Tensor, labels: Tensor
    ) -> Tensor:
        """Compute z of all big tokens [L, G*B, C], those of the known ones first.

        Args:
            small_z: The conditional z of the small tokens [S, B, C].
            small_order: Their positions [S, B].
            tokens: Known big tokens [V, B, D].
            visible: Their positions [V, B], from 0.
            rest: The other big positions [O, B].
            labels: Classes [G*B].
        """
        halves = labels.shape[0] // rest.shape[1]
        places = torch.cat([small_order, self.small + visible])
        content = torch.cat([self.small_proj(small_z), self.z_proj(tokens)]) + self.table("encoder_positions")[places]
        memory = self.encode(content.repeat(1, halves, 1), labels)  # [buffer + S + V, G*B, C]
        unknown = self.small + rest
        masked = self.table("masked")[unknown].repeat(1, halves, 1)
        count = visible.shape[0] + rest.shape[0]  # L, which TensorRT must not take as a constant: V and U vary
        z = self.decode(memory, places.repeat(1, halves), masked, self.buffer + self.small, count)
        every = torch.cat([self.small + visible, unknown])
        return z + self.table("last_positions")[every].repeat(1, halves, 1)


class BigConditioning(nn.Module):
    """The engine `conditioning2`: what no noisy token enters, for every row and for every timestep.

    Their sum passes SiLU before the modulation of the blocks is made of it, so that this is all that can be computed
    ahead: the modulation is different for each row in each step.
    """

    def __init__(self, model: Himar) -> None:
        super().__init__()
        net = model.cond_diffloss.net
        projection = net.c_embedder.proj
        self.time_embed = net.t_embedder
        self.condition = linear(projection.weight.detach().flatten(1), cast(Tensor, projection.bias).detach())

    def forward(self, z: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the condition [L, G*B, W] of z [L, G*B, C], and the embeddings [T, W] of timesteps [T]."""
        return self.condition(z), self.time_embed(timesteps)


class BigDenoise(nn.Module):
    """The engine `denoise2`: one step of a sampler for all tokens of an image together, with the DiT and guidance.

    All rows form one matrix, with the tokens outermost; only attention sees the images apart.
    """

    def __init__(self, model: Himar) -> None:
        super().__init__()
        net, width = model.cond_diffloss.net, model.config.gdm_w
        self.blocks = nn.ModuleList(_DiTRows(cast(DiTBlock, block)) for block in net.blocks)
        self.modulation = _plus_one(cast(nn.Linear, net.final_layer.adaLN_modulation[1]), width, (1,))
        self.final_layer = nn.ModuleDict({"linear": net.final_layer.linear})
        projection = net.x_embedder.proj
        self.input_proj = linear(projection.weight.detach().flatten(1))
        positions = net.pos_embed[0].detach() + cast(Tensor, projection.bias).detach()
        self.register_buffer("positions", positions.clone())

    def forward(
        self,
        x: Tensor,
        previous_x0: Tensor,
        noise: Tensor,
        tokens: Tensor,
        first_noise: Tensor,
        known: Tensor,
        order: Tensor,
        condition: Tensor,
        time: Tensor,
        coefficients: Tensor,
        guidance: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Compute the next noisy tokens and the predicted clean tokens, [L, B, D] each; those of known ones are unused.

        Args:
            x: Noisy tokens [L, B, D]; those of known ones are not read.
            previous_x0: The clean tokens [L, B, D] that the previous step predicted.
            noise: Standard normal noise [L, B, D] of this step.
            tokens: Tokens [L, B, D], of which the known ones are read.
            first_noise: The noise [L, B, D] with which the chain began.
            known: 1 for a known token, otherwise 0 [L].
            order: The position of each row [L, B].
            condition: What the rows are conditioned on [L, G*B, W], from `BigConditioning`, as is `time` [W].
            time: The embedding of the timestep [W].
            coefficients: A row of the sampler's table, in the order of `runtime.model.coefficients.COEFFICIENTS`.
            guidance: The guidance scale [1].
        """
        batch, sequences = x.shape[1], condition.shape[1]
        halves = sequences // batch
        x0_from_x, x0_from_eps = coefficients[0:1], coefficients[1:2]
        renewed = (tokens - x0_from_eps * first_noise) / x0_from_x  # at the noise level of this step
        x = torch.where(known[:, None, None] > 0, renewed, x)
        h = self.input_proj(x) + cast(Tensor, self.positions)[order]
        h = h.repeat(1, halves, 1).flatten(0, 1)  # [L*G*B, W]
        activated = F.silu(condition + time).flatten(0, 1)  # [L*G*B, W]
        for block in self.blocks:
            h = block(h, activated, sequences)
        shift, scale = self.modulation(activated).chunk(2, dim=-1)
        out = self.final_layer["linear"](plain_norm(h) * scale + shift)  # [L*G*B, D]
        eps = out.reshape(x.shape[0], halves, batch, x.shape[-1])
        conditional, other = eps[:, 0], eps[:, -1]
        return next_state(x, other + guidance * (conditional - other), previous_x0, noise, coefficients)


class _DiTRows(nn.Module):
    """A block of the DiT over rows [S*G*B, W]."""

    def __init__(self, block: DiTBlock) -> None:
        super().__init__()
        self.attn, self.mlp = SequenceAttention(block.attn), padded_mlp(block.mlp)
        self.modulation = _plus_one(cast(nn.Linear, block.adaLN_modulation[1]), block.attn.proj.in_features, (1, 4))

    def forward(self, h: Tensor, activated: Tensor, sequences: int) -> Tensor:
        """Compute the block for all rows."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(activated).chunk(6, dim=-1)
        x = plain_norm(h) * scale1 + shift1
        q, k, v = (part.unflatten(0, (-1, sequences)) for part in (self.attn.q(x), self.attn.k(x), self.attn.v(x)))
        h = h + gate1 * self.attn.attend_projected(q, k, v).flatten(0, 1)
        return h + gate2 * self.mlp(plain_norm(h) * scale2 + shift2)


def _plus_one(layer: nn.Linear, width: int, scales: tuple[int, ...]) -> nn.Linear:
    """Return a projection to shifts, scales and gates whose `scales` have the 1 of `1 + scale` in their bias."""
    bias = layer.bias.detach().clone()
    for number in scales:
        bias[number * width : (number + 1) * width] += 1
    return linear(layer.weight.detach(), bias)
