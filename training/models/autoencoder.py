"""The KL autoencoder that encodes images to latents and decodes them (arXiv 2112.10752), as MAR uses it.

Parameter names are those of the published `kl16.ckpt`. Published autoencoders (KL-16, KL-8) differ in widths, levels
and the places of attention; all of these follow from the names and shapes of the parameters. Only the groups of the
normalizations do not.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from runtime.errors import CheckpointError
from training.models.transformer import ScaledDotProduct

LATENT_SCALE = 0.2325
"""The factor that gives the latents of KL-16 unit variance, as in the published code."""
LOG_VARIANCE = (-30.0, 20.0)
"""The range to which the published code clips the log-variance of latents."""
NORM_GROUPS = 32
"""The groups of every group normalization of the published autoencoders."""


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """The shape of a KL autoencoder.

    Attributes:
        latent_channels: C, the channels of a latent.
        width: The channels of the finest level, before `multipliers`.
        multipliers: The factor of `width` at each level, from the finest to the coarsest; each level has half the
            resolution of the one before it.
        blocks: Residual blocks per level of the encoder; the decoder has one more.
        attention_levels: Levels of the encoder whose blocks are followed by attention, beside the middle of both
            halves, which always has attention.
        image_channels: 3, for RGB.
        norm_groups: The groups of every group normalization; `width` is a multiple of it.
        patch_size: Pixels along one side of a patch; the pixels of a patch are the channels of one position of the
            finest level. 1 as published.
        linear_path: Whether a linear autoencoder of patches of `stride` x `stride` pixels is added to the network,
            which then learns what is missing from it; see `LinearPath`.
    """

    latent_channels: int = 16
    width: int = 128
    multipliers: Sequence[int] = (1, 1, 2, 2, 4)
    blocks: int = 2
    attention_levels: Sequence[int] = (4,)
    image_channels: int = 3
    norm_groups: int = NORM_GROUPS
    patch_size: int = 1
    linear_path: bool = False

    @property
    def stride(self) -> int:
        """Pixels along one side of a latent."""
        return self.patch_size * int(2 ** (len(self.multipliers) - 1))

    @property
    def patch_channels(self) -> int:
        """The values of a patch of `patch_size` x `patch_size` pixels."""
        return self.image_channels * self.patch_size**2


class ResBlock(nn.Module):
    """A residual block of two convolutions, each after group normalization and SiLU."""

    def __init__(self, channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(channels, groups), _conv3(channels, out_channels)
        self.norm2, self.conv2 = _norm(out_channels, groups), _conv3(out_channels, out_channels)
        self.nin_shortcut = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, out_channels, H, W] for x [B, channels, H, W]."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.nin_shortcut(x) + h


class AttentionBlock(nn.Module):
    """Self-attention with one head over all positions of a feature map."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = _norm(channels, groups)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))
        self.attend = ScaledDotProduct(dropout=0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for x [B, C, H, W], of the same shape."""
        normed = self.norm(x)
        q, k, v = (part(normed).flatten(2).transpose(1, 2)[:, None] for part in (self.q, self.k, self.v))
        attended = self.attend(q, k, v)[:, 0].transpose(1, 2).unflatten(2, x.shape[2:])  # [B, 1, HW, C] -> [B, C, H, W]
        return x + self.proj_out(attended)


class Downsample(nn.Module):
    """A strided convolution that halves the resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C, H/2, W/2] for x [B, C, H, W]."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # zeros on the right and below only, as published


class Upsample(nn.Module):
    """Nearest-neighbor interpolation and a convolution, which double the resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _conv3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C, 2H, 2W] for x [B, C, H, W]."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Middle(nn.Module):
    """The middle of either half, at the coarsest level: a residual block, attention, a residual block."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = (
            ResBlock(channels, channels, groups),
            AttentionBlock(channels, groups),
            ResBlock(channels, channels, groups),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for x [B, C, H, W], of the same shape."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """The blocks of one resolution in either half, and the change to the next resolution."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        blocks: int,
        groups: int,
        *,
        attention: bool = False,
        down: bool = False,
        up: bool = False,
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResBlock(out_channels if number else channels, out_channels, groups) for number in range(blocks)
        )
        self.attn = nn.ModuleList(AttentionBlock(out_channels, groups) for _ in range(blocks if attention else 0))
        self.downsample = Downsample(out_channels) if down else nn.Identity()
        self.upsample = Upsample(out_channels) if up else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for x [B, channels, H, W], at the next level's resolution."""
        for number, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[number](x)
        return self.upsample(self.downsample(x))


class Encoder(nn.Module):
    """The encoder, from images to the moments of latents before `quant_conv`; s is the stride."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths, groups = [config.width * multiplier for multiplier in config.multipliers], config.norm_groups
        self.patchify = nn.PixelUnshuffle(config.patch_size) if config.patch_size > 1 else nn.Identity()
        self.conv_in = _conv3(config.patch_channels, config.width)
        self.down = nn.ModuleList(
            Level(
                channels,
                out_channels,
                config.blocks,
                groups,
                attention=number in config.attention_levels,
                down=number < len(widths) - 1,
            )
            for number, (channels, out_channels) in enumerate(zip([config.width, *widths], widths, strict=False))
        )
        self.mid = Middle(widths[-1], groups)
        self.norm_out, self.conv_out = _norm(widths[-1], groups), _conv3(widths[-1], 2 * config.latent_channels)

    def forward(self, image: Tensor) -> Tensor:
        """Return [B, 2C, H/s, W/s] for images [B, 3, H, W] in -1..1."""
        x = self.conv_in(self.patchify(image))
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """The decoder, from latents after `post_quant_conv` to images; s is the stride."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths, groups = [config.width * multiplier for multiplier in config.multipliers], config.norm_groups
        self.conv_in = _conv3(config.latent_channels, widths[-1])
        self.mid = Middle(widths[-1], groups)
        self.up = nn.ModuleList(  # parameter names count from the finest level, which runs last
            Level(channels, out_channels, config.blocks + 1, groups, up=number > 0)
            for number, (channels, out_channels) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True))
        )
        self.norm_out, self.conv_out = _norm(widths[0], groups), _conv3(widths[0], config.patch_channels)
        self.unpatchify = nn.PixelShuffle(config.patch_size) if config.patch_size > 1 else nn.Identity()

    def forward(self, latents: Tensor) -> Tensor:
        """Return images [B, 3, H, W] for [B, C, H/s, W/s]."""
        x = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            x = level(x)
        return self.unpatchify(self.conv_out(F.silu(self.norm_out(x))))


class LinearPath(nn.Module):
    """A linear autoencoder of square patches, one for each latent; the sides of a patch are the stride s.

    A network that is added to it, and that begins with zeros, trains from the quality of the linear one on.
    """

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        channels, values = config.latent_channels, config.image_channels * config.stride**2
        self.encode = nn.Sequential(nn.PixelUnshuffle(config.stride), nn.Conv2d(values, 2 * channels, 1))
        """From images [B, 3, H, W] to mean and log-variance of latents, [B, 2C, H/s, W/s]."""
        self.decode = nn.Sequential(nn.Conv2d(channels, values, 1), nn.PixelShuffle(config.stride))
        """From unscaled latents [B, C, H/s, W/s] to images [B, 3, H, W]."""


class AutoencoderKL(nn.Module):
    """A KL autoencoder: from images to the distribution of their latents, and from latents to images.

    Attributes:
        config: The shape of the autoencoder; s below is its stride.
        latent_scale: The factor that gives its latents unit variance.
        latent_shift: What is subtracted from its latents before.
        scale_source: Where these two come from, for people.
    """

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.latent_scale, self.latent_shift, self.scale_source = LATENT_SCALE, 0.0, "the published KL-16"
        channels = config.latent_channels
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.post_quant_conv = nn.Conv2d(channels, channels, 1)
        self.linear = LinearPath(config) if config.linear_path else None
        if self.linear is not None:
            for zero in (self.encoder.conv_out, self.decoder.conv_out):
                nn.init.zeros_(zero.weight)
            for layer in (self.encoder.conv_out, self.decoder.conv_out, self.quant_conv):
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def encoding_parts(self) -> list[nn.Module]:
        """Return the modules that take part in encoding only: the latents of an image depend on no others."""
        return [self.encoder, self.quant_conv, *([] if self.linear is None else [self.linear.encode])]

    def moments(self, image: Tensor) -> Tensor:
        """Return mean and log-variance of the unscaled latents, [B, 2C, H/s, W/s], of images [B, 3, H, W] in -1..1."""
        moments = self.quant_conv(self.encoder(image))
        return moments if self.linear is None else moments + self.linear.encode(image)

    def reconstruct(self, image: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode images, sample their latents, and decode the sample.

        Args:
            image: [B, 3, H, W] in -1..1.
            noise: Standard normal, [B, C, H/s, W/s].

        Returns:
            The decoded images [B, 3, H, W]; mean and log-variance of the unscaled latents, [B, C, H/s, W/s] each.
        """
        mean, log_variance = self.moments(image).chunk(2, dim=1)
        log_variance = log_variance.clamp(*LOG_VARIANCE)
        return self._decode(mean + (0.5 * log_variance).exp() * noise), mean, log_variance

    def encode(self, image: Tensor) -> Tensor:
        """Return the mean of the scaled latents, [B, C, H/s, W/s], of images [B, 3, H, W] in -1..1."""
        return self.scaled(self.moments(image).chunk(2, dim=1)[0])

    def decode(self, latents: Tensor) -> Tensor:
        """Return images [B, 3, H, W], about in -1..1, for scaled latents [B, C, H/s, W/s]."""
        unscaled = latents / self.latent_scale
        return self._decode(unscaled + self.latent_shift if self.latent_shift else unscaled)

    def describe_scale(self) -> str:
        """Return the scale of the latents, their shift if there is one, and where the two come from."""
        shift = f" after a shift of {self.latent_shift:.9g}" if self.latent_shift else ""
        return f"{self.latent_scale:.9g}{shift}, by {self.scale_source}"

    def scaled(self, latents: Tensor) -> Tensor:
        """Return latents, of any shape, as a model has them: of about mean 0 and variance 1."""
        return (latents - self.latent_shift if self.latent_shift else latents) * self.latent_scale

    def _decode(self, unscaled: Tensor) -> Tensor:
        """Return images [B, 3, H, W] for unscaled latents [B, C, H/s, W/s]."""
        image = self.decoder(self.post_quant_conv(unscaled))
        return image if self.linear is None else image + self.linear.decode(unscaled)


def vae_config(shapes: Mapping[str, tuple[int, ...]], where: str, norm_groups: int = NORM_GROUPS) -> VAEConfig:
    """Infer the config of an autoencoder from the names and shapes of its parameters.

    Args:
        shapes: The shape of each parameter, by name.
        where: The source of the parameters, for messages.
        norm_groups: The groups of every group normalization, which no shape tells.

    Raises:
        CheckpointError: They are not the parameters of a KL autoencoder.
    """
    try:
        width, patch_channels = shapes["encoder.conv_in.weight"][:2]
        numbers = [int(match[1]) for name in shapes if (match := re.match(r"encoder\.down\.(\d+)\.", name))]
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
            norm_groups=norm_groups,
            patch_size=math.isqrt(patch_channels // VAEConfig.image_channels),
            linear_path="linear.decode.0.weight" in shapes,
        )
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        expected = str(error) if isinstance(error, KeyError) else "convolutions of the usual shape"
        raise CheckpointError(
            f"{where}: not a KL autoencoder under the published parameter names (looked for {expected})"
        ) from None
    if width % norm_groups or config.patch_channels != patch_channels:
        raise CheckpointError(
            f"{where}: expected 3 image channels and a width that is a multiple of {norm_groups}, found "
            f"{patch_channels} and {width}"
        )
    return config


def _conv3(channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out_channels, 3, padding=1)


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)
