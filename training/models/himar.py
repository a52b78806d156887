"""Hi-MAR: a MAR that draws a low-resolution grid first, and the full one with a transformer as head (arXiv 2505.20288).

Parameter names are those of the published code, so its checkpoints load key for key. One transformer does both phases:
scales and gates of its blocks, tables of positions and mask tokens are there once for each. In phase 1 it reads the
known small tokens, and MAR's head draws the next ones. In phase 2 it reads z of all small tokens and the known big
ones, and a diffusion transformer (DiT) denoises all big positions together.

Shapes: B images, S small and L big positions, P = S + L, the small ones first; V known, K predicted and R other
positions of a grid; D channels of a token, C the width of the backbone, W that of the DiT.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.model.himar_config import HimarConfig
from runtime.sampling.noise_schedule import training_schedule
from training.models.diffusion_head import DiffusionLoss, HeadMLP, TimestepEmbedder
from training.models.initialization import initialize_linears
from training.models.mar import patchify
from training.models.transformer import NORM_EPS, Attention, Block, FeedForward

SMALL, BIG = PHASES = (0, 1)
"""The two phases, as the tables of the model count them."""


class TaskBlock(Block):
    """A pre-norm block with a scale and a gate for attention and MLP each, which depend on the phase alone."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, attn_dropout: float, proj_dropout: float) -> None:
        super().__init__(width, heads, mlp_ratio, attn_dropout, proj_dropout)
        self.adaLN_scale = nn.Parameter(torch.zeros(2, 1, 1, 4 * width))
        self.adaLN_shift = nn.Parameter(torch.zeros(2, 1, 1, 4 * width))

    def modulation(self, task: Tensor, phase: int) -> list[Tensor]:
        """Return scale and gate of the attention and of the MLP, [E] each, from the vector `task` [4E] of the phase."""
        return list((task * self.adaLN_scale[phase, 0, 0] + self.adaLN_shift[phase, 0, 0]).chunk(4))

    def forward(self, x: Tensor, task: Tensor, phase: int) -> Tensor:  # type: ignore[override]
        """Return the output for all rows of x [B, S, E]."""
        scale1, gate1, scale2, gate2 = self.modulation(task, phase)
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1))
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2))


class TanhFeedForward(FeedForward):
    """`FeedForward` with the tanh approximation of GELU (arXiv 1606.08415, section 2)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for x [..., E]: [..., E]."""
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x), approximate="tanh"))))


class DiTBlock(nn.Module):
    """A block whose rows have shift, scale and gate of their own (arXiv 2212.09748, section 3.2)."""

    def __init__(self, width: int, heads: int, ratio: float) -> None:
        super().__init__()
        self.attn = Attention(width, heads, 0.0, 0.0, causal=False)
        self.mlp = TanhFeedForward(width, int(width * ratio), 0.0)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, activated: Tensor) -> Tensor:
        """Return the output [B, L, W] for x [B, L, W] and SiLU of the condition of each row, [B, L, W]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation[1](activated).chunk(6, dim=-1)
        x = x + gate1 * self.attn(plain_norm(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(plain_norm(x) * (1 + scale2) + shift2)


class DiTFinalLayer(nn.Module):
    """The last normalization and projection of the DiT."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, activated: Tensor) -> Tensor:
        """Return eps [B, L, D] for x [B, L, W] and SiLU of the condition [B, L, W]."""
        shift, scale = self.adaLN_modulation[1](activated).chunk(2, dim=-1)
        return self.linear(plain_norm(x) * (1 + scale) + shift)


class _PointEmbed(nn.Module):
    """A projection of every position; its weight has the shape of a convolution of 1 x 1, as published."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, 1)

    def forward(self, rows: Tensor) -> Tensor:
        """Return [..., W] for rows [..., D]."""
        return F.linear(rows, self.proj.weight.flatten(1), self.proj.bias)


class DiT(nn.Module):
    """The head of the full grid: it predicts the noise of all positions together, with attention among them."""

    def __init__(self, config: HimarConfig) -> None:
        super().__init__()
        width = config.gdm_w
        # Neither table is trained; `c_pos_embed` is in the files, all zeros, and is never read.
        self.pos_embed = nn.Parameter(sine_table(config.grid, width)[None], requires_grad=False)
        self.c_pos_embed = nn.Parameter(torch.zeros(1, config.tokens, width), requires_grad=False)
        self.x_embedder = _PointEmbed(config.token_channels, width)
        self.t_embedder = TimestepEmbedder(width)
        self.c_embedder = _PointEmbed(config.z_channels, width)
        self.blocks = nn.ModuleList(DiTBlock(width, config.gdm_heads, config.gdm_ratio) for _ in range(config.gdm_d))
        self.final_layer = DiTFinalLayer(width, config.token_channels)

    def initialize(self) -> None:
        """Set the initial weights of training: every block is the identity, and the first guess of eps is zero."""
        initialize_linears(self)
        for embed in (self.x_embedder, self.c_embedder):
            nn.init.xavier_uniform_(embed.proj.weight.view(len(embed.proj.weight), -1))
            nn.init.zeros_(cast(Tensor, embed.proj.bias))
        for layer in self.t_embedder.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
        for block in [*self.blocks, self.final_layer]:
            nn.init.zeros_(cast(nn.Linear, cast(nn.Sequential, block.adaLN_modulation)[1]).weight)
        nn.init.zeros_(self.final_layer.linear.weight)

    def forward(self, x: Tensor, timesteps: Tensor, z: Tensor) -> Tensor:
        """Return eps [B, L, D] for noisy tokens [B, L, D], float timesteps [B] and z [B, L, C], all in raster order."""
        condition = self.t_embedder(timesteps)[:, None] + self.c_embedder(z)  # [B, L, W]
        activated, h = F.silu(condition), self.x_embedder(x) + self.pos_embed
        for block in self.blocks:
            h = block(h, activated)
        return self.final_layer(h, activated)


class _NoiseLoss(nn.Module):
    """The DiT under its published name `cond_diffloss.net`, and its loss: the squared error of the noise."""

    signal: Tensor
    sigma: Tensor

    def __init__(self, config: HimarConfig) -> None:
        super().__init__()
        self.net = DiT(config)
        levels = torch.from_numpy(training_schedule().alphas_cumprod)
        self.register_buffer("signal", levels.sqrt().float(), persistent=False)
        self.register_buffer("sigma", (1 - levels).sqrt().float(), persistent=False)

    def forward(self, target: Tensor, z: Tensor, mask: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """Return the mean loss over all positions; that of known positions is zero.

        Args:
            target: Tokens [B, L, D].
            z: [B, L, C].
            mask: Which positions are masked, bool [B, L].
            timesteps: Int64 [B].
            noise: Standard normal, [B, L, D].
        """
        x = self.signal[timesteps, None, None] * target + self.sigma[timesteps, None, None] * noise
        squares = (self.net(x, timesteps.to(x.dtype), z).float() - noise).square().mean(dim=-1)  # [B, L]
        return (squares * mask).mean()


class SmallDraws(NamedTuple):
    """The random numbers of phase 1 of a training step."""

    order: Tensor
    """A permutation of the small positions of each image, int64 [B, S]. The first K are masked."""
    timesteps: Tensor
    """Q timesteps for each masked token, int64 [Q, B, K]."""
    noise: Tensor
    """Standard normal, float32 [Q, B, K, D]."""


class BigDraws(NamedTuple):
    """The random numbers of phase 2 of a training step."""

    order: Tensor
    """A permutation of the big positions of each image, int64 [B, L]."""
    masked: Tensor
    """How many of the first of them are masked, int64 []; at least one."""
    alone: Tensor
    """Whether phase 2 sees nothing of phase 1, bool [B]."""
    timesteps: Tensor
    """A timestep for all positions of each image, int64 [B]."""
    noise: Tensor
    """Standard normal, by position, float32 [B, L, D]."""


class Himar(nn.Module):
    """The model: backbone, small head and DiT.

    Attributes:
        config: The shape of the model.
        diffloss: The head of the low-resolution grid, which is MAR's, and its loss.
        cond_diffloss: The head of the full grid and its loss; both names are the published ones.
    """

    def __init__(self, **arguments: Any) -> None:
        """Make a model with random weights; the arguments are the fields of `HimarConfig`, and `family`."""
        super().__init__()
        config = self.config = HimarConfig.from_dict(arguments, "Himar")
        width, rows = config.encoder_embed_dim, config.buffer_size + config.positions

        self.class_emb = nn.Embedding(config.class_num, width)
        self.fake_latent = nn.Parameter(torch.zeros(1, width))  # the class of unconditional generation
        self.cond_tokens = nn.Parameter(torch.zeros(1, config.small_tokens, config.token_channels))  # training only
        self.mask_token = nn.Parameter(torch.zeros(1, 2 * config.positions, width))

        self.z_proj = nn.Linear(config.token_channels, width)
        self.z_proj_ln = nn.LayerNorm(width, eps=NORM_EPS)
        self.cond_z_proj = nn.Linear(width, width)
        self.cond_proj = nn.Linear(config.token_channels, width)

        self.encoder_pos_embed_learned = nn.Parameter(torch.zeros(1, 2 * rows, width))
        self.encoder_blocks = self._blocks(config.encoder_depth, config.encoder_num_heads)
        self.encoder_task_emb = nn.Embedding(2, width)
        self.encoder_blocks_ada = nn.Sequential(nn.SiLU(), nn.Linear(width, 4 * width))
        self.encoder_norm = nn.LayerNorm(width, eps=NORM_EPS)

        self.decoder_embed = nn.Linear(width, width)
        self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, 2 * rows, width))
        self.decoder_blocks = self._blocks(config.decoder_depth, config.decoder_num_heads)
        self.decoder_task_emb = nn.Embedding(2, width)
        self.decoder_blocks_ada = nn.Sequential(nn.SiLU(), nn.Linear(width, 4 * width))
        self.decoder_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.diffusion_pos_embed_learned = nn.Parameter(torch.zeros(1, config.positions, width))

        self._initialize()
        self.diffloss = DiffusionLoss(config.token_channels, width, config.diffloss_w, config.diffloss_d)
        self.cond_diffloss = _NoiseLoss(config)
        self.cond_diffloss.net.initialize()

    def _blocks(self, depth: int, heads: int) -> nn.ModuleList:
        config = self.config
        arguments = config.encoder_embed_dim, heads, config.mlp_ratio, config.attn_dropout, config.proj_dropout
        return nn.ModuleList(TaskBlock(*arguments) for _ in range(depth))

    def _initialize(self) -> None:
        initialize_linears(self)
        small = ("class_emb.weight", "fake_latent", "mask_token", "cond_tokens")
        for name, parameter in self.named_parameters():
            if name.endswith("pos_embed_learned") or name in small:
                nn.init.normal_(parameter, std=0.02)
            if name.endswith("adaLN_scale"):
                nn.init.normal_(parameter, std=0.02)
        with torch.no_grad():
            for half in (self.encoder_blocks, self.decoder_blocks):
                for block in half:  # no scale, and open gates: a block begins as MAR's
                    shift = cast(Tensor, block.adaLN_shift)
                    quarter = shift.shape[-1] // 4
                    shift[..., quarter : 2 * quarter] = 1
                    shift[..., 3 * quarter :] = 1

    @property
    def head_network(self) -> HeadMLP:
        """The network of the small head."""
        return self.diffloss.net

    def class_embedding(self, labels: Tensor) -> Tensor:
        """Return the embeddings [B, C] of labels, int64 [B]; class_num stands for no class."""
        return torch.cat([self.class_emb.weight, self.fake_latent])[labels]

    def task(self, half: str, phase: int) -> Tensor:
        """Return the vector [4C] from which the blocks of a half of the backbone take their modulation in a phase."""
        embedding, ada = getattr(self, f"{half}_task_emb"), getattr(self, f"{half}_blocks_ada")
        vector: Tensor = ada(embedding.weight[phase])
        return vector

    def predict_small(self, tokens: Tensor, visible: Tensor, unknown: Tensor, labels: Tensor) -> Tensor:
        """Run the backbone in phase 1.

        Args:
            tokens: The known small tokens, [B, V, D].
            visible: Their positions, int64 [B, V].
            unknown: The other small positions, int64 [B, S - V].
            labels: Int64 [B]; class_num stands for no class.

        Returns:
            The vectors z of the unknown small tokens, [B, S - V, C].
        """
        config = self.config
        big = torch.arange(config.small_tokens, config.positions, device=labels.device).expand(len(labels), -1)
        z = self._rows(SMALL, self.cond_proj(tokens), visible, torch.cat([unknown, big], dim=1), labels)
        return z[:, visible.shape[1] : config.small_tokens]

    def predict_big(self, small: Tensor, tokens: Tensor, visible: Tensor, unknown: Tensor, labels: Tensor) -> Tensor:
        """Run the backbone in phase 2.

        Args:
            small: What the small rows hold, [B, S, C] in raster order: `cond_z_proj` of their z.
            tokens: The known big tokens, [B, V, D].
            visible: Their positions, int64 [B, V], from 0.
            unknown: The other big positions, int64 [B, L - V].
            labels: Int64 [B]; class_num stands for no class.

        Returns:
            The vectors z of all big tokens, [B, L, C]: first the known ones, then the others.
        """
        count = self.config.small_tokens
        places = torch.arange(count, device=labels.device).expand(len(labels), -1)
        content, places = torch.cat([small, self.z_proj(tokens)], dim=1), torch.cat([places, count + visible], dim=1)
        return self._rows(BIG, content, places, count + unknown, labels)[:, count:]

    def _rows(self, phase: int, content: Tensor, places: Tensor, masked: Tensor, labels: Tensor) -> Tensor:
        """Return z [B, n + m, C] of rows with content [B, n, C] at `places` [B, n], and of masked positions [B, m]."""
        config = self.config
        buffer, rows = config.buffer_size, config.buffer_size + config.positions
        of_phase = slice(phase * rows, (phase + 1) * rows)
        encoder, decoder = (
            table[0, of_phase] for table in (self.encoder_pos_embed_learned, self.decoder_pos_embed_learned)
        )
        start = self.class_embedding(labels)[:, None] + encoder[:buffer]  # [B, buffer, C]
        x = self.z_proj_ln(torch.cat([start, content + encoder[buffer:][places]], dim=1))
        task = self.task("encoder", phase)
        for block in self.encoder_blocks:
            x = block(x, task, phase)
        x = self.decoder_embed(self.encoder_norm(x))
        known = torch.cat([decoder[:buffer].expand(len(x), -1, -1), decoder[buffer:][places]], dim=1)
        mask = self.mask_token[0, phase * config.positions :][masked] + decoder[buffer:][masked]  # [B, m, C]
        x, task = torch.cat([x + known, mask], dim=1), self.task("decoder", phase)
        for block in self.decoder_blocks:
            x = block(x, task, phase)
        every = torch.cat([places, masked], dim=1)
        return self.decoder_norm(x)[:, buffer:] + self.diffusion_pos_embed_learned[0][every]

    def forward(self, latents: Tensor, labels: Tensor, of_small: SmallDraws, of_big: BigDraws) -> Tensor:
        """Return the training loss of a batch, a scalar: that of both phases, each weighted by its share of positions.

        The weights are published: 2 for the small head and 0.75 for the DiT.

        Args:
            latents: Pixels [B, c, h, w]; the low-resolution image is made from them.
            labels: Int64 [B]; class_num stands for no class.
            of_small: The random numbers of phase 1.
            of_big: Those of phase 2.
        """
        order, timesteps, noise = of_small
        big_order, big_masked, alone, big_timesteps, big_noise = of_big
        config, (repeats, _, masked) = self.config, timesteps.shape
        small, big = patchify(self.low_resolution(latents), config.patch_size), patchify(latents, config.patch_size)
        unknown, visible = order[:, :masked], order[:, masked:]
        z = self.predict_small(_rows_at(small, visible), visible, unknown, labels)  # [B, K, C]
        target = _rows_at(small, unknown).flatten(0, 1).repeat(repeats, 1)  # [N, D], N = Q B K
        small_loss = self.diffloss(target, z.flatten(0, 1), timesteps.flatten(), noise.flatten(0, 2)).mean()

        nothing = self.cond_proj(self.cond_tokens).expand(len(labels), -1, -1)  # [B, S, C]
        drawn = self.cond_z_proj(z.detach())
        content = nothing.to(drawn.dtype).scatter(1, unknown[..., None].expand_as(drawn), drawn)
        content = torch.where(alone[:, None, None], nothing.to(drawn.dtype), content)
        count = int(big_masked)
        unknown, visible = big_order[:, :count], big_order[:, count:]
        rows = self.predict_big(content, _rows_at(big, visible), visible, unknown, labels)  # [B, L, C]
        places = torch.cat([visible, unknown], dim=1)
        by_position = torch.zeros_like(rows).scatter(1, places[..., None].expand_as(rows), rows)
        mask = torch.zeros(places.shape, dtype=torch.bool, device=places.device).scatter(1, unknown, True)
        big_loss = self.cond_diffloss(big, by_position, mask, big_timesteps, big_noise)
        share = config.small_tokens / config.positions
        return share * 2 * small_loss + (1 - share) * 0.75 * big_loss

    def low_resolution(self, pixels: Tensor) -> Tensor:
        """Return images [B, c, h, w] at the resolution of the small grid (bicubic, antialiased)."""
        size = [side * self.config.patch_size for side in self.config.grids[0]]
        return F.interpolate(pixels.float(), size=size, mode="bicubic", antialias=True, align_corners=False)


def _rows_at(values: Tensor, places: Tensor) -> Tensor:
    """Return values [B, n, E] at `places` [B, K]: [B, K, E]."""
    return torch.gather(values, 1, places[..., None].expand(-1, -1, values.shape[-1]))


def plain_norm(x: Tensor) -> Tensor:
    """Return the layer normalization of x [..., W] without gain and bias."""
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)


def sine_table(grid: int, width: int) -> Tensor:
    """Return the positions [grid^2, W] of a DiT: the first half of the channels tells the column, the other the row."""
    rates = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * rates  # [grid, W/4]
    side = torch.cat([angles.sin(), angles.cos()], dim=1)  # [grid, W/2]
    columns, rows = side.repeat(grid, 1), side.repeat_interleave(grid, dim=0)
    return torch.cat([columns, rows], dim=1).float()
