"""The config of a NOVA model, which draws from text (arXiv 2412.14169)."""

from __future__ import annotations

import dataclasses
from typing import Any

from runtime.errors import ConfigError
from runtime.model.family_config import config_of

FAMILY = "nova"

FLOW, DDPM = SCHEDULERS = ("FlowMatchEulerDiscreteScheduler", "DDPMScheduler")
"""The schedulers of diffusers that a NOVA comes with: its head then predicts a velocity, or the noise."""

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
SPACINGS = ("leading", "trailing")

_HEAD_STRIDE = 15  # patches are so large that a token has about this many pixels along its side


LEAST_VOCABULARY = 256
"""The fewest tokens that a text encoder may know: those of single bytes."""


def _sizes(least: int, most: int) -> dict[str, int]:
    return {"least": least, "most": most}


@dataclasses.dataclass(frozen=True)
class NovaScheduler:
    """The noise process of the head, under the names of diffusers; the fields from `beta_start` on are those of DDPM.

    Attributes:
        kind: One of `SCHEDULERS`.
        shift: The shift of the noise levels of a flow: S(v) = shift v / (1 + (shift - 1) v).
        beta_start: The first beta.
        beta_end: The last beta.
        beta_schedule: How the betas lie between them, one of `BETA_SCHEDULES`.
        timestep_spacing: Which of the 1000 timesteps a chain visits, one of `SPACINGS`.
        steps_offset: What is added to each of them.
        variance_type: `fixed_small`: the variance of the posterior. `fixed_large`: beta.
        prediction_type: What the head predicts.
    """

    kind: str = dataclasses.field(metadata={"choices": SCHEDULERS})
    shift: float = dataclasses.field(default=1.0, metadata={"above": 0.0, "most": 100.0})
    beta_start: float = dataclasses.field(default=1e-4, metadata={"above": 0.0, "below": 1.0})
    beta_end: float = dataclasses.field(default=0.02, metadata={"above": 0.0, "below": 1.0})
    beta_schedule: str = dataclasses.field(default="linear", metadata={"choices": BETA_SCHEDULES})
    timestep_spacing: str = dataclasses.field(default="leading", metadata={"choices": SPACINGS})
    steps_offset: int = dataclasses.field(default=0, metadata=_sizes(0, 1))
    variance_type: str = dataclasses.field(default="fixed_small", metadata={"choices": ("fixed_small", "fixed_large")})
    prediction_type: str = dataclasses.field(default="epsilon", metadata={"choices": ("epsilon", "v_prediction")})


@dataclasses.dataclass(frozen=True)
class NovaConfig:
    """The config of a NOVA model for still images; a `runtime.model.family_config.FamilyConfig`.

    Attributes:
        image_height: The height of an image in pixels.
        image_width: Its width.
        image_stride: Pixels along the side of a latent value.
        image_dim: The channels of the latents.
        text_token_dim: The values of a row of the prompt.
        text_token_len: S, the rows of a prompt.
        width: C, the width of both transformers.
        heads: The attention heads of both.
        condition_depth: The blocks of the transformer that makes the condition.
        image_depth: The blocks of the backbone, at least 2.
        head_width: W, the width of the head.
        head_depth: The blocks of the head.
        rotary: Whether positions rotate queries and keys. Otherwise tables of sines are added.
        scheduler: The noise process of the head.
    """

    image_height: int = dataclasses.field(metadata=_sizes(1, 8192))
    image_width: int = dataclasses.field(metadata=_sizes(1, 8192))
    image_stride: int = dataclasses.field(metadata=_sizes(1, 64))
    image_dim: int = dataclasses.field(metadata=_sizes(1, 1024))
    text_token_dim: int = dataclasses.field(metadata=_sizes(1, 65536))
    text_token_len: int = dataclasses.field(metadata=_sizes(1, 512))
    width: int = dataclasses.field(metadata=_sizes(4, 16384))
    heads: int = dataclasses.field(metadata=_sizes(1, 256))
    condition_depth: int = dataclasses.field(metadata=_sizes(1, 256))
    image_depth: int = dataclasses.field(metadata=_sizes(2, 256))
    head_width: int = dataclasses.field(metadata=_sizes(1, 16384))
    head_depth: int = dataclasses.field(metadata=_sizes(1, 64))
    rotary: bool
    scheduler: NovaScheduler

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ConfigError(f"model config: width {self.width} is not a multiple of its {self.heads} heads")
        if self.width % 4 or (self.rotary and (self.width // self.heads) % 32):
            raise ConfigError(
                f"model config: width {self.width} of {self.heads} heads does not divide into the channels of its "
                "positions: without rotation the width must be a multiple of 4, with it that of a head one of 32"
            )
        side = 2 * self.patch_size * self.image_stride
        for name in ("image_height", "image_width"):
            if getattr(self, name) % side:
                raise ConfigError(
                    f"model config: {name} {getattr(self, name)} is not a multiple of {side}, the pixels of a patch "
                    "of the condition"
                )

    @property
    def family(self) -> str:
        """The name of the row of `runtime.model.families.FAMILIES`."""
        return FAMILY

    @property
    def patch_size(self) -> int:
        """The latent values along the side of a token."""
        return _HEAD_STRIDE // self.image_stride + 1

    @property
    def grid_shape(self) -> tuple[int, int]:
        """The rows and columns of the grid of tokens."""
        return self.latent_shape[1] // self.patch_size, self.latent_shape[2] // self.patch_size

    @property
    def condition_shape(self) -> tuple[int, int]:
        """The rows and columns of the grid of the condition, whose cells are four tokens; Lc is their product."""
        return self.grid_shape[0] // 2, self.grid_shape[1] // 2

    @property
    def condition_rows(self) -> int:
        """Lc, the rows of the condition of an image."""
        return self.condition_shape[0] * self.condition_shape[1]

    @property
    def tokens(self) -> int:
        """L, the number of tokens of an image."""
        return self.grid_shape[0] * self.grid_shape[1]

    @property
    def token_channels(self) -> int:
        """D, the number of values of one token; channels are outermost in it."""
        return self.image_dim * self.patch_size**2

    @property
    def z_channels(self) -> int:
        """C, the values of a vector z."""
        return self.width

    @property
    def modulation_channels(self) -> int:
        """M: scale, shift and gate of every block of the head, scale and shift of its last layer."""
        return (3 * self.head_depth + 2) * self.head_width

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """C, h and w of the latents of an image."""
        return self.image_dim, self.image_height // self.image_stride, self.image_width // self.image_stride

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """H, W and c of an image."""
        return self.image_height, self.image_width, 3

    @property
    def class_num(self) -> int:
        """0: prompts take the place of classes."""
        return 0

    def index_bounds(self) -> dict[str, tuple[int, int]]:
        """Return the bounds of integer inputs of the engines; see `FamilyConfig.index_bounds`."""
        return {"lengths": (0, self.text_token_len + 1), "token_ids": (0, LEAST_VOCABULARY)}

    def describe_head(self) -> str:
        """Return what turns z into a token, for messages."""
        return "a NOVA with the scheduler " + self.scheduler.kind

    def describe(self) -> tuple[str, ...]:
        """Return lines about the kind and the sizes of the model, for people."""
        return (
            f"NOVA, {self.text_token_len} rows of {self.text_token_dim} values a prompt, "
            f"{'rotary positions' if self.rotary else 'tables of positions'}, {self.scheduler.kind}",
            f"blocks x width: condition {self.condition_depth} x {self.width}, backbone {self.image_depth} x "
            f"{self.width}, head {self.head_depth} x {self.head_width}",
        )

    @classmethod
    def from_dict(cls, values: object, where: str) -> NovaConfig:
        """Return the config that `values` describes; see `runtime.model.family_config.config_of`."""
        return config_of(cls, values, where)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields by name, and the family, as JSON values."""
        return {"family": FAMILY, **dataclasses.asdict(self)}
