"""The config of a Hi-MAR, which draws a low-resolution grid and then the full one (arXiv 2505.20288)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from runtime.checks import truncate
from runtime.errors import ConfigError
from runtime.model.config import ModelConfig

FAMILY = "himar"

_LIMITS = {"cond_scale": (1, 64), "gdm_d": (1, 64), "gdm_w": (4, 16384), "gdm_heads": (1, 256)}
_RATIOS = (0.25, 16.0)

# What the architecture has in one form only, and how a message says so.
_FIXED: dict[str, Any] = {
    "attention": "bidirectional",
    "order": "random",
    "head": "diffusion",
    "codebook_size": 0,
    "distilled_steps": 0,
}


@dataclasses.dataclass(frozen=True)
class HimarConfig(ModelConfig):
    """The config of a Hi-MAR: that of a MAR, whose head is the small one, and that of the diffusion transformer (DiT).

    Raises:
        ConfigError: A value is impossible, or two values do not go together.

    Attributes:
        cond_scale: s, the tokens along the side of the low-resolution grid.
        gdm_d: The blocks of the DiT, the head of the full grid.
        gdm_w: W, its width.
        gdm_heads: Its attention heads (the published argument `head`).
        gdm_ratio: The width of the hidden layer of its MLPs relative to W (the published argument `ratio`).
    """

    cond_scale: int = 8
    gdm_d: int = 6
    gdm_w: int = 512
    gdm_heads: int = 8
    gdm_ratio: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, (least, most) in _LIMITS.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise ConfigError(
                    f"model config: {name} must be a whole number of {least}..{most}, found {truncate(value)}"
                )
        if type(self.gdm_ratio) is int:
            object.__setattr__(self, "gdm_ratio", float(self.gdm_ratio))
        if type(self.gdm_ratio) is not float or not _RATIOS[0] <= self.gdm_ratio <= _RATIOS[1]:
            raise ConfigError(
                f"model config: gdm_ratio must lie in {_RATIOS[0]}..{_RATIOS[1]}, found {truncate(self.gdm_ratio)}"
            )
        for name, value in _FIXED.items():
            if getattr(self, name) != value:
                raise ConfigError(f"model config: {name} of a Hi-MAR must be {value}, found {getattr(self, name)}")
        if self.encoder_embed_dim != self.decoder_embed_dim:
            raise ConfigError(
                f"model config: encoder and decoder of a Hi-MAR have one width, found {self.encoder_embed_dim} and "
                f"{self.decoder_embed_dim}"
            )
        if self.gdm_w % self.gdm_heads or self.gdm_w % 4:
            raise ConfigError(
                f"model config: gdm_w {self.gdm_w} must be a multiple of 4 and of its {self.gdm_heads} heads"
            )
        if self.cond_scale >= self.grid:
            raise ConfigError(
                f"model config: the low-resolution grid must be smaller than the full one, found cond_scale "
                f"{self.cond_scale} and {self.grid} tokens along the side of an image"
            )

    @property
    def family(self) -> str:
        """The name of the row of `runtime.model.families.FAMILIES`."""
        return FAMILY

    @property
    def small_tokens(self) -> int:
        """S, the number of tokens of the low-resolution grid."""
        return self.cond_scale**2

    @property
    def positions(self) -> int:
        """P, the positions of both grids, the low-resolution one first."""
        return self.small_tokens + self.tokens

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """The rows and columns of both grids, in the order in which they are drawn."""
        return (self.cond_scale, self.cond_scale), self.grid_shape

    def index_bounds(self) -> dict[str, tuple[int, int]]:
        """Return the bounds of integer inputs of the engines; see `FamilyConfig.index_bounds`."""
        return {"labels": (0, self.class_num + 1), "small_order": (0, self.small_tokens)}

    def describe_head(self) -> str:
        """Return what turns z into a token, for messages."""
        return "a Hi-MAR"

    def describe(self) -> tuple[str, ...]:
        """Return lines about the kind and the sizes of the model, for people."""
        side = self.grid
        return (
            f"Hi-MAR, {self.cond_scale} x {self.cond_scale} tokens of low resolution, then {side} x {side}",
            f"blocks x width: encoder {self.encoder_depth} x {self.encoder_embed_dim}, "
            f"decoder {self.decoder_depth} x {self.decoder_embed_dim}, small head {self.diffloss_d} x "
            f"{self.diffloss_w}, DiT {self.gdm_d} x {self.gdm_w}",
        )

    @classmethod
    def from_dict(cls, values: object, where: str) -> HimarConfig:
        """Return the config that `values` describes; see `ModelConfig.from_dict`. A key `family` is passed over."""
        if isinstance(values, Mapping):
            values = {name: value for name, value in values.items() if name != "family"}
        config = super().from_dict(values, where)
        assert isinstance(config, HimarConfig)
        return config

    def to_dict(self) -> dict[str, Any]:
        """Return all fields by name, and the family, as JSON values."""
        return {"family": FAMILY, **dataclasses.asdict(self)}
