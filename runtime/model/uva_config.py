"""The config of a UVA in policy mode, which turns what a robot sees into actions (arXiv 2503.00200)."""

from __future__ import annotations

import dataclasses
from typing import Any

from runtime.errors import ConfigError
from runtime.model.family_config import config_of

FAMILY = "uva"

FRAMES, CHUNK, TEXT_ROWS, GRID = 4, 16, 64, 16
"""The frames of an observation, the actions of a chunk, the rows of a text, and the latents along a side of a frame."""

STATE_STEPS = (FRAMES, CHUNK)
"""How many steps of the robot's state an observation can have: one for each frame, or for each step of the chunk."""

ROWS = FRAMES * GRID**2
"""R, the rows of the transformers that stand for frames."""

LATENT_CHANNELS = 16
"""The channels of the latents of a frame, which KL-16 makes."""

_STRIDE = 16


def _sizes(least: int, most: int) -> dict[str, int]:
    return {"least": least, "most": most}


@dataclasses.dataclass(frozen=True)
class UvaConfig:
    """The config of a UVA in policy mode; a `runtime.model.family_config.FamilyConfig`.

    An image of other families is a chunk here: its tokens are actions, generated in one iteration.

    Attributes:
        encoder_embed_dim: E, the width of the first transformer.
        encoder_depth: The number of its blocks.
        encoder_num_heads: The number of its attention heads.
        decoder_embed_dim: C, the width of the second transformer; also the size of z.
        decoder_depth: The number of its blocks.
        decoder_num_heads: The number of its attention heads.
        diffloss_act_d: The number of residual blocks of the head.
        diffloss_act_w: W, the width of the head.
        action_dim: A, the values of an action.
        text_dim: The values of a text's features; 0 for a model without text.
        state_dim: The values of a step of the robot's state; 0 for a model without it.
        state_steps: The steps of the state in an observation, one of `STATE_STEPS`; 0 without state.
        action_scale: The factor of each value of an action before the model was trained on it; empty for 1.
        action_offset: What was added to each value after that; empty for 0.
        n_action_steps: How many of the 16 actions the published code executes.
        act_diff_testing_steps: The published diffusion steps: a number, or `ddimN`.
        temperature: The published factor on the noise of each step.
    """

    encoder_embed_dim: int = dataclasses.field(metadata=_sizes(1, 16384))
    encoder_depth: int = dataclasses.field(metadata=_sizes(1, 256))
    encoder_num_heads: int = dataclasses.field(metadata=_sizes(1, 256))
    decoder_embed_dim: int = dataclasses.field(metadata=_sizes(1, 16384))
    decoder_depth: int = dataclasses.field(metadata=_sizes(1, 256))
    decoder_num_heads: int = dataclasses.field(metadata=_sizes(1, 256))
    diffloss_act_d: int = dataclasses.field(metadata=_sizes(1, 64))
    diffloss_act_w: int = dataclasses.field(metadata=_sizes(1, 16384))
    action_dim: int = dataclasses.field(metadata=_sizes(1, 1024))
    text_dim: int = dataclasses.field(default=0, metadata=_sizes(0, 65536))
    state_dim: int = dataclasses.field(default=0, metadata=_sizes(0, 1024))
    state_steps: int = dataclasses.field(default=0, metadata=_sizes(0, CHUNK))
    action_scale: tuple[float, ...] = ()
    action_offset: tuple[float, ...] = ()
    n_action_steps: int = dataclasses.field(default=8, metadata=_sizes(1, CHUNK))
    act_diff_testing_steps: str = "100"
    temperature: float = dataclasses.field(default=0.95, metadata={"least": 0.0, "most": 100.0})

    def __post_init__(self) -> None:
        for half in ("encoder", "decoder"):
            width, heads = getattr(self, f"{half}_embed_dim"), getattr(self, f"{half}_num_heads")
            if width % heads:
                raise ConfigError(f"model config: {half}_embed_dim {width} is not a multiple of its {heads} heads")
        if self.state_steps not in ((0,) if not self.state_dim else STATE_STEPS):
            raise ConfigError(
                f"model config: state_steps must be {' or '.join(map(str, STATE_STEPS))} with a state, and 0 without, "
                f"found {self.state_steps} with state_dim {self.state_dim}"
            )
        for name in ("action_scale", "action_offset"):
            if len(getattr(self, name)) not in (0, self.action_dim):
                raise ConfigError(
                    f"model config: {name} must have no value or one for each of {self.action_dim} values of an "
                    f"action, found {len(getattr(self, name))}"
                )
        if 0.0 in self.action_scale:
            raise ConfigError("model config: action_scale must not hold 0, which no action can be found from")

    @property
    def family(self) -> str:
        """The name of the row of `runtime.model.families.FAMILIES`."""
        return FAMILY

    @property
    def tokens(self) -> int:
        """L, the actions of a chunk."""
        return CHUNK

    @property
    def grid_shape(self) -> tuple[int, int]:
        """One column: the steps of a chunk."""
        return CHUNK, 1

    @property
    def patch_size(self) -> int:
        """1: a token is one action."""
        return 1

    @property
    def token_channels(self) -> int:
        """D = A, the values of an action."""
        return self.action_dim

    @property
    def z_channels(self) -> int:
        """C, the values of a vector z."""
        return self.decoder_embed_dim

    @property
    def modulation_channels(self) -> int:
        """M: shift, scale and gate of every block of the head, shift and scale of its last layer."""
        return (3 * self.diffloss_act_d + 2) * self.diffloss_act_w

    @property
    def condition_rows(self) -> int:
        """Lc, the rows of the condition of an observation: text, then frames."""
        return (TEXT_ROWS if self.text_dim else 0) + ROWS

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """C, h and w of the latents of a frame."""
        return LATENT_CHANNELS, GRID, GRID

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """H, W and c of a frame."""
        return GRID * _STRIDE, GRID * _STRIDE, 3

    @property
    def class_num(self) -> int:
        """0: observations take the place of classes."""
        return 0

    def index_bounds(self) -> dict[str, tuple[int, int]]:
        """Return no bounds: the only integers are steps of the chunk; see `FamilyConfig.index_bounds`."""
        return {}

    def describe_head(self) -> str:
        """Return what turns z into an action, for messages."""
        return "a UVA"

    def describe(self) -> tuple[str, ...]:
        """Return lines about the kind and the sizes of the model, for people."""
        inputs = [f"{FRAMES} frames"]
        inputs += [f"a text of {self.text_dim} values"] if self.text_dim else []
        inputs += [f"{self.state_steps} states of {self.state_dim} values"] if self.state_dim else []
        return (
            f"UVA in policy mode, {', '.join(inputs)} to {CHUNK} actions of {self.action_dim} values",
            f"blocks x width: encoder {self.encoder_depth} x {self.encoder_embed_dim}, decoder {self.decoder_depth} x "
            f"{self.decoder_embed_dim}, head {self.diffloss_act_d} x {self.diffloss_act_w}",
        )

    @classmethod
    def from_dict(cls, values: object, where: str) -> UvaConfig:
        """Return the config that `values` describes; see `runtime.model.family_config.config_of`."""
        return config_of(cls, values, where)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields by name, and the family, as JSON values."""
        return {"family": FAMILY, **dataclasses.asdict(self)}
