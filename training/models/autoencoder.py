"""The KL autoencoder that turns images into latents and back (arXiv 2112.10752), as MAR uses it.

Parameter names are those of the published `kl16.ckpt`. What differs between its kin (KL-16, KL-8) are
widths, levels and where attention stands, and all of that can be read from the names and shapes.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from runtime.errors import CheckpointError
from training.models.transformer import ScaledDotProduct

LATENT_SCALE = 0.2325  # brings the latents of KL-16 to unit variance (published sampling and training code)
LOG_VARIANCE = (-30.0, 20.0)  # what the published code clips it to
GROUPS = 32


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """Widths and levels: `multipliers` of `width` from the finest level to the coarsest, each half as fine.

    `attention_levels` are those whose encoder blocks are followed by attention; both halves have it in
    their middle anyway.
    """

    latent_channels: int = 16
    width: int = 128
    multipliers: Sequence[int] = (1, 1, 2, 2, 4)
    blocks: int = 2
    attention_levels: Sequence[int] = (4,)
    image_channels: int = 3

    @property
    def stride(self) -> int:
        """PixelLatents along one side of a latent."""
        return int(2 ** (len(self.multipliers) - 1))


class ResBlock(nn.Module):
    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(channels), _conv3(channels, out_channels)
        self.norm2, self.conv2 = _norm(out_channels), _conv3(out_channels, out_channels)
        self.nin_shortcut = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.nin_shortcut(x) + h


class AttentionBlock(nn.Module):
    """Attention of one head over all places of a feature map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))
        self.attend = ScaledDotProduct(dropout=0.0)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (part(normed).flatten(2).transpose(1, 2)[:, None] for part in (self.q, self.k, self.v))
        attended = self.attend(q, k, v)[:, 0].transpose(1, 2).unflatten(2, x.shape[2:])  # [B, 1, HW, C] -> [B, C, H, W]
        return x + self.proj_out(attended)


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # zeros on the right and below only, as published


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _conv3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Middle(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = (
            ResBlock(channels, channels),
            AttentionBlock(channels),
            ResBlock(channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """The blocks of one resolution, in either half, and the step to the next."""

    def __init__(
        self, channels: int, out_channels: int, blocks: int, *, attention: bool, down: bool = False, up: bool = False
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResBlock(out_channels if number else channels, out_channels) for number in range(blocks)
        )
        self.attn = nn.ModuleList(AttentionBlock(out_channels) for _ in range(blocks if attention else 0))
        self.downsample = Downsample(out_channels) if down else nn.Identity()
        self.upsample = Upsample(out_channels) if up else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for number, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[number](x)
        return self.upsample(self.downsample(x))


class Encoder(nn.Module):
    """Image [B, 3, H, W] in -1..1 -> [B, 2C, H/s, W/s]."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.width * multiplier for multiplier in config.multipliers]
        self.conv_in = _conv3(config.image_channels, config.width)
        self.down = nn.ModuleList(
            Level(
                channels,
                out_channels,
                config.blocks,
                attention=number in config.attention_levels,
                down=number < len(widths) - 1,
            )
            for number, (channels, out_channels) in enumerate(zip([config.width, *widths], widths, strict=False))
        )
        self.mid = Middle(widths[-1])
        self.norm_out, self.conv_out = _norm(widths[-1]), _conv3(widths[-1], 2 * config.latent_channels)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv_in(image)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Latents [B, C, H/s, W/s] -> image [B, 3, H, W]."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.width * multiplier for multiplier in config.multipliers]
        self.conv_in = _conv3(config.latent_channels, widths[-1])
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList(  # the finest level first, as it is named, and last to run
            Level(channels, out_channels, config.blocks + 1, attention=False, up=number > 0)
            for number, (channels, out_channels) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True))
        )
        self.norm_out, self.conv_out = _norm(widths[0]), _conv3(widths[0], config.image_channels)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class AutoencoderKL(nn.Module):
    """Images to the distribution of their latents, and latents to images."""

    def __init__(self, config: VAEConfig, latent_scale: float = LATENT_SCALE) -> None:
        """`latent_scale` brings its latents to unit variance."""
        super().__init__()
        self.config, self.latent_scale = config, latent_scale
        channels = config.latent_channels
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.post_quant_conv = nn.Conv2d(channels, channels, 1)

    def moments(self, image: Tensor) -> Tensor:
        """Image [B, 3, H, W] in -1..1 -> mean and log-variance of its latents, [B, 2C, H/s, W/s], not scaled."""
        return self.quant_conv(self.encoder(image))

    def reconstruct(self, image: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Image [B, 3, H, W] and noise [B, C, h, w] -> the image by way of a sample of its latents, and their mean and
        log-variance [B, C, h, w], not scaled."""
        mean, log_variance = self.moments(image).chunk(2, dim=1)
        log_variance = log_variance.clamp(*LOG_VARIANCE)
        return self.decoder(self.post_quant_conv(mean + (0.5 * log_variance).exp() * noise)), mean, log_variance

    def encode(self, image: Tensor) -> Tensor:
        """Image [B, 3, H, W] in -1..1 -> the mean of its latents as MAR sees them, [B, C, H/s, W/s]."""
        return self.moments(image).chunk(2, dim=1)[0] * self.latent_scale

    def decode(self, latents: Tensor) -> Tensor:
        """Latents as MAR draws them, [B, C, H/s, W/s] -> image [B, 3, H, W], about -1..1."""
        return self.decoder(self.post_quant_conv(latents / self.latent_scale))


def vae_config(shapes: Mapping[str, tuple[int, ...]], where: str) -> VAEConfig:
    """The config of a checkpoint with parameters of these shapes. Raises `CheckpointError`."""
    try:
        width, image_channels = shapes["encoder.conv_in.weight"][:2]
        numbers = [int(found[1]) for name in shapes if (found := re.match(r"encoder\.down\.(\d+)\.", name))]
        levels = 1 + max(numbers, default=0)
        outs = [shapes[f"encoder.down.{level}.block.0.conv2.weight"][0] for level in range(levels)]
        config = VAEConfig(
            latent_channels=shapes["post_quant_conv.weight"][0],
            width=width,
            multipliers=tuple(out // width for out in outs),
            blocks=sum(bool(re.fullmatch(r"encoder\.down\.0\.block\.\d+\.conv1\.weight", name)) for name in shapes),
            attention_levels=tuple(
                level for level in range(levels) if f"encoder.down.{level}.attn.0.norm.weight" in shapes
            ),
            image_channels=image_channels,
        )
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        looked_for = str(error) if isinstance(error, KeyError) else "convolutions of the usual shape"
        raise CheckpointError(
            f"{where}: not a KL autoencoder under the published parameter names (looked for {looked_for})"
        ) from None
    if width % GROUPS or config.image_channels != 3:
        raise CheckpointError(
            f"{where}: expected 3 image channels and a width that is a multiple of {GROUPS}, found "
            f"{image_channels} and {width}"
        )
    return config


def _conv3(channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out_channels, 3, padding=1)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels, eps=1e-6)
