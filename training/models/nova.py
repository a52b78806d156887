"""NOVA for still images: a masked autoregressive model that draws from text (arXiv 2412.14169).

Parameter names are those of the published code, so its checkpoints load key for key. A transformer turns the rows of a
prompt into the condition c. In each iteration c passes through the first half of the backbone together with the known
tokens, and through the second half together with all positions. A small MLP denoises each token.

Shapes: B images, S rows of a prompt, Lc rows of the condition, L positions, K positions to predict, V known and R other
unknown ones, D channels of a token, C the width of both transformers, W that of the head, H heads.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.model.config import FREQUENCIES
from runtime.model.families import parse_config
from runtime.model.nova_config import NovaConfig
from training.models.diffusion_head import timestep_embedding
from training.models.initialization import initialize_linears
from training.models.mar import patchify
from training.models.nova_loss import noisy_and_target
from training.models.transformer import FeedForward, ScaledDotProduct

EPS = 1e-5
"""Of all normalizations but those that the head modulates, which have `HEAD_EPS`."""

HEAD_EPS = 1e-6

TEXT_ROWS = 512
"""The learned rows of padding that a checkpoint has; the first S are used."""

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines of the angles of each row, float32 [S, E/H/2] each."""


class Attention(nn.Module):
    """Multi-head self-attention (arXiv 1706.03762) whose queries and keys may be rotated by the positions of rows."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.attend: nn.Module = ScaledDotProduct(0.0)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        """Return the output for all rows of x [B, S, E]: [B, S, E]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [B, H, S, E/H] each
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        return self.proj(self.attend(q, k, v).transpose(1, 2).flatten(2))


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Return x [..., S, E/H] with neighbouring channels rotated as pairs, by angles of each row (arXiv 2104.09864)."""
    cos, sin = rotation
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([cos * even - sin * odd, sin * even + cos * odd], dim=-1).flatten(-2)


class Block(nn.Module):
    """A transformer block that normalizes at the end of its residual branches: x + LN(f(x))."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=EPS), nn.LayerNorm(width, eps=EPS)
        self.attn = Attention(width, heads)
        self.mlp = FeedForward(width, 4 * width, 0.0)

    def forward(self, x: Tensor, rotation: Rotation | None = None) -> Tensor:
        """Return the output for all rows of x [B, S, C]: [B, S, C]."""
        x = x + self.norm1(self.attn(x, rotation))
        return x + self.norm2(self.mlp(x))


class _PatchEmbed(nn.Module):
    """The embedding of patches of latents. As a convolution it has the published shape; it is applied to patches."""

    def __init__(self, channels: int, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch_size, stride=patch_size)

    def forward(self, patches: Tensor) -> Tensor:
        """Return [..., width] for patches [..., D], in which channels are outermost."""
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class Encoder(nn.Module):
    """The embedding of patches, the blocks, and the last normalization of one of the two transformers."""

    def __init__(self, config: NovaConfig, depth: int, patch_size: int) -> None:
        super().__init__()
        self.patch_embed = _PatchEmbed(config.image_dim, config.width, patch_size)
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(depth))
        self.norm = nn.LayerNorm(config.width, eps=EPS)


class TextEmbed(nn.Module):
    """Rows of a prompt to the width of the transformers, with learned rows behind a short prompt."""

    def __init__(self, config: NovaConfig) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(TEXT_ROWS, config.text_token_dim))
        self.proj = nn.Linear(config.text_token_dim, config.width)
        self.norm = nn.LayerNorm(config.width, eps=EPS)

    def forward(self, text: Tensor, lengths: Tensor) -> Tensor:
        """Return [B, S, C] for rows [B, S, text_token_dim], of which image i has the first `lengths[i]`."""
        given = torch.arange(text.shape[1], device=text.device) < lengths[:, None]  # [B, S]
        padding = cast(Tensor, self.weight)[: text.shape[1]]
        return self.norm(self.proj(torch.where(given[..., None], text, padding)))


class TimeEmbed(nn.Module):
    """The vector of the time of a frame; of a still image it is a constant."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.time_proj = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.norm = nn.LayerNorm(width, eps=EPS)

    def forward(self) -> Tensor:
        """Return the vector [C] of the first frame: the embedding of time 0, with sines first."""
        zero = torch.zeros(FREQUENCIES // 2, dtype=self.norm.weight.dtype, device=self.norm.weight.device)
        return self.norm(self.time_proj(torch.cat([zero, zero + 1])))


class MaskEmbed(nn.Module):
    """What stands for a row of the condition before it is computed, and for an unknown token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bos_token = nn.Parameter(torch.zeros(1, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))


class TwoLayers(nn.Module):
    """Linear, SiLU, Linear."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(inputs, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., width] for x [..., inputs]."""
        return self.fc2(F.silu(self.fc1(x)))


class Modulation(nn.Module):
    """The projection of a condition to scale and shift, and for a block a gate: in this order, unlike in MAR."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, parts * width)


class HeadBlock(nn.Module):
    """x + gate * LN(MLP(LN0(x) (1 + scale) + shift)), where LN0 has neither gain nor bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = Modulation(width, 3)
        self.proj = TwoLayers(width, width)
        self.norm2 = nn.LayerNorm(width, eps=EPS)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return [N, W] for x [N, W] and the activated condition [N, W]."""
        scale, shift, gate = self.norm1.proj(condition).chunk(3, dim=-1)
        return x + gate * self.norm2(self.proj(plain_norm(x) * (1 + scale) + shift))


class TimeConditionEmbed(nn.Module):
    """The embeddings of z and of the timestep of a row of the head."""

    def __init__(self, z_channels: int, width: int) -> None:
        super().__init__()
        self.condition_proj = TwoLayers(z_channels, width)
        self.timestep_proj = TwoLayers(FREQUENCIES, width)


class Head(nn.Module):
    """The MLP that denoises one token, given its vector z; it has one output, a velocity or the noise."""

    def __init__(self, config: NovaConfig) -> None:
        super().__init__()
        width = config.head_width
        self.patch_embed = _PatchEmbed(config.image_dim, width, config.patch_size)
        self.time_cond_embed = TimeConditionEmbed(config.width, width)
        self.blocks = nn.ModuleList(HeadBlock(width) for _ in range(config.head_depth))
        self.norm = Modulation(width, 2)
        self.head = nn.Linear(width, config.token_channels)

    def forward(self, x: Tensor, timesteps: Tensor, z: Tensor) -> Tensor:
        """Return the prediction [N, D] for noisy tokens [N, D], timesteps [N] in 0..1000, and vectors z [N, C]."""
        embed = self.time_cond_embed
        times = timestep_embedding(timesteps.float()).to(x.dtype)
        condition = F.silu(embed.condition_proj(z) + embed.timestep_proj(times))
        x = self.patch_embed(x)
        for block in self.blocks:
            x = block(x, condition)
        scale, shift = self.norm.proj(condition).chunk(2, dim=-1)
        return self.head(plain_norm(x) * (1 + scale) + shift)


def plain_norm(x: Tensor) -> Tensor:
    """Return x [N, W], normalized without gain and bias."""
    return F.layer_norm(x, x.shape[-1:], eps=HEAD_EPS)


class Nova(nn.Module):
    """A NOVA for still images.

    Attributes:
        config: The shape of the model.
        image_decoder: The head; the name is the published one.
    """

    def __init__(self, **arguments: Any) -> None:
        """Make a model with random weights; the arguments are those of `NovaConfig.to_dict`."""
        super().__init__()
        config = self.config = cast(NovaConfig, parse_config(arguments, "model"))
        patch = config.patch_size
        self.text_embed = TextEmbed(config)
        self.mask_embed = MaskEmbed(config.width)
        if not config.rotary:
            self.video_pos_embed = TimeEmbed(config.width)
        self.video_encoder = Encoder(config, config.condition_depth, 2 * patch)
        self.image_encoder = Encoder(config, config.image_depth, patch)
        self.image_decoder = Head(config)
        self._initialize()

    def _initialize(self) -> None:
        """Set the weights that training begins with: every block of the head is the identity, its first output zero."""
        initialize_linears(self)
        for table in (self.mask_embed.bos_token, self.mask_embed.mask_token):
            nn.init.normal_(table, std=0.02)
        head = self.image_decoder
        modulations = [cast(HeadBlock, block).norm1.proj for block in head.blocks]
        for layer in (*modulations, head.norm.proj, head.head):
            nn.init.zeros_(layer.weight)

    def forward(
        self, latents: Tensor, text: Tensor, lengths: Tensor, order: Tensor, timesteps: Tensor, noise: Tensor
    ) -> Tensor:
        """Return the loss of a batch, a scalar: the mean squared error of the head at the masked tokens.

        Args:
            latents: Of the images, [B, image_dim, h, w].
            text: Rows of the prompts, [B, S, text_token_dim].
            lengths: How many of them each prompt has, int64 [B]; 0 for the empty prompt, which guidance needs.
            order: A permutation of the positions of each image, int64 [B, L]; the first K are masked.
            timesteps: Q timesteps of each masked token, [Q, B, K]; see `training.models.nova_loss.noisy_and_target`.
            noise: Standard normal, [Q, B, K, D].
        """
        tokens = patchify(latents, self.config.patch_size)  # [B, L, D]
        repeats, _, count = timesteps.shape
        masked, visible = order[:, :count], order[:, count:]
        condition = self.condition(text, lengths)
        z = self.predict(_rows_at(tokens, visible), visible, masked, masked[:, :0], condition)  # [B, K, C]
        noisy, target = noisy_and_target(self.config.scheduler, _rows_at(tokens, masked), noise, timesteps)
        rows = z.expand(repeats, *z.shape).flatten(0, 2)
        predicted = self.image_decoder(noisy.flatten(0, 2), timesteps.flatten(), rows)
        return (predicted.float() - target.flatten(0, 2)).square().mean()

    def condition(self, text: Tensor, lengths: Tensor) -> Tensor:
        """Return the condition c of prompts.

        Args:
            text: Rows of the prompts, [B, S, text_token_dim].
            lengths: How many of the rows each prompt has, int64 [B]; learned rows take the place of the others.

        Returns:
            c, [B, Lc, C].
        """
        config, encoder = self.config, self.video_encoder
        rows = self.text_embed(text, lengths)  # [B, S, C]
        start = self.condition_start()  # [Lc, C]
        x = torch.cat([rows, start.expand(len(text), -1, -1)], dim=1)
        rotation = None
        if config.rotary:
            cells = grid_cells(config.condition_shape, text.device)  # [Lc, 2]
            rotation = self.rotation(torch.cat([cells.new_zeros(config.text_token_len, 2), cells]), x.dtype)
        for block in encoder.blocks:
            x = block(x, rotation)
        return encoder.norm(x[:, config.text_token_len :])

    def condition_start(self) -> Tensor:
        """Return what stands in the rows of the condition before the first block, [Lc, C]: the same for all prompts."""
        config, start = self.config, self.mask_embed.bos_token
        if config.rotary:
            return start.expand(config.condition_rows, -1)
        return start + self.video_pos_embed() + self.positions(config.condition_shape)

    def predict(self, tokens: Tensor, visible: Tensor, predict: Tensor, rest: Tensor, condition: Tensor) -> Tensor:
        """Run the backbone once; V + K + R = L.

        Args:
            tokens: The known tokens, [B, V, D].
            visible: Their positions, int64 [B, V].
            predict: The positions of the tokens to predict, int64 [B, K].
            rest: The other unknown positions, int64 [B, R].
            condition: c, [B, Lc, C].

        Returns:
            The vectors z of the tokens to predict, [B, K, C].
        """
        config, encoder = self.config, self.image_encoder
        rows, known = config.condition_rows, visible.shape[1]
        x = torch.cat([condition, encoder.patch_embed(tokens) + self.token_positions(visible)], dim=1)
        unknown = torch.cat([predict, rest], dim=1)
        half = config.image_depth // 2
        for number, block in enumerate(encoder.blocks):
            if number == half:
                x = torch.cat([x, self.mask_embed.mask_token + self.token_positions(unknown)], dim=1)
            positions = visible if number < half else torch.cat([visible, unknown], dim=1)
            x = block(x, self.token_rotation(positions, x.dtype) if config.rotary else None)
        return encoder.norm(x[:, rows + known : rows + known + predict.shape[1]])

    def token_positions(self, places: Tensor) -> Tensor:
        """Return what is added to tokens at the positions `places` [B, n]: [B, n, C], zeros with rotation."""
        if self.config.rotary:
            return self.mask_embed.mask_token.new_zeros(*places.shape, self.config.width)
        return self.positions(self.config.grid_shape)[places]

    def token_rotation(self, places: Tensor, dtype: torch.dtype) -> Rotation:
        """Return the rotation of the condition, which has position 0, and of tokens at `places` [B, n]."""
        cells = grid_cells(self.config.grid_shape, places.device)[places]  # [B, n, 2]
        condition = cells.new_zeros(len(places), self.config.condition_rows, 2)
        cos, sin = self.rotation(torch.cat([condition, cells], dim=1), dtype)
        return cos[:, None], sin[:, None]  # the same for all heads

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Return the table of positions of a grid, [rows * columns, C], in raster order."""
        return position_table(grid, self.config.width).to(self.mask_embed.mask_token)

    def rotation(self, cells: Tensor, dtype: torch.dtype) -> Rotation:
        """Return the rotation of rows at the cells [..., 2] of a grid."""
        angles = rotary_angles(cells, self.config.width // self.config.heads)
        return angles.cos().to(dtype), angles.sin().to(dtype)


def _rows_at(values: Tensor, places: Tensor) -> Tensor:
    """Return values [B, n, D] at `places` [B, K]: [B, K, D]."""
    return values.take_along_dim(places[..., None], dim=1)


def grid_cells(grid: tuple[int, int], device: torch.device) -> Tensor:
    """Return row and column of every position of a grid, int64 [rows * columns, 2]."""
    positions = torch.arange(grid[0] * grid[1], device=device)
    return torch.stack([positions // grid[1], positions % grid[1]], dim=-1)


def position_table(grid: tuple[int, int], width: int) -> Tensor:
    """Return the sines and cosines of columns, then of rows, float32 [rows * columns, C] (arXiv 1706.03762)."""
    quarter = width // 4
    frequencies = 10000.0 ** (-torch.arange(quarter, dtype=torch.float32) / quarter)
    row, column = (part[:, None] * frequencies for part in grid_cells(grid, torch.device("cpu")).float().unbind(-1))
    return torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], dim=-1)


def rotary_angles(cells: Tensor, channels: int) -> Tensor:
    """Return the angles of rows at cells [..., 2] of a grid, float32 [..., E/H/2].

    An eighth of the channels of a head belongs to time, which is 0, and half of the others each to row and column.
    """
    time = channels // 8
    part = (channels - time) // 2
    frequencies = 10000.0 ** (-torch.arange(0, part, 2, dtype=torch.float32, device=cells.device) / part)
    row, column = (cell[..., None].float() * frequencies for cell in cells.unbind(-1))
    return torch.cat([row.new_zeros(*row.shape[:-1], time // 2), row, column], dim=-1)


def output_rows_channels_first(config: NovaConfig) -> Tensor:
    """Return the rows of the published last layer of the head in the order of this project, int64 [D].

    It orders the values of a token as (i, j, channel); everywhere else here channels are outermost.
    """
    patch = config.patch_size
    published = torch.arange(config.token_channels).reshape(patch, patch, config.image_dim)
    return published.permute(2, 0, 1).flatten()
