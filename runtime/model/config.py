"""The shape of a model: one dataclass, under the argument names of the published constructor."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from runtime.errors import ConfigError

FREQUENCIES = 256  # channels of the sinusoidal embedding of a timestep, in every model

# (field, smallest, largest): what a value must lie in for the arithmetic to make sense at all.
_LIMITS: tuple[tuple[str, float, float], ...] = (
    ("img_size", 1, 8192),
    ("vae_stride", 1, 64),
    ("patch_size", 1, 64),
    ("vae_embed_dim", 1, 1024),
    ("class_num", 1, 1_000_000),
    ("buffer_size", 1, 4096),
    ("encoder_embed_dim", 1, 16384),
    ("encoder_depth", 1, 256),
    ("encoder_num_heads", 1, 256),
    ("decoder_embed_dim", 1, 16384),
    ("decoder_depth", 1, 256),
    ("decoder_num_heads", 1, 256),
    ("mlp_ratio", 0.25, 16),
    ("diffloss_d", 1, 64),
    ("diffloss_w", 1, 16384),
    ("mask_ratio_min", 0, 0.999),
    ("label_drop_prob", 0, 1),
    ("attn_dropout", 0, 0.99),
    ("proj_dropout", 0, 0.99),
    ("diffusion_batch_mul", 1, 64),
    ("distilled_steps", 0, 1000),
    ("codebook_size", 0, 65536),
)

# What a field of words may be; the first is the published form.
_CHOICES: dict[str, tuple[str, ...]] = {
    "attention": ("bidirectional", "causal"),
    "order": ("random", "raster"),
    "head": ("diffusion", "flow", "vq"),
}
# Fields that came after the others: descriptions of a model from before them have none, and mean the published form.
LATER_FIELDS = frozenset({*_CHOICES, "codebook_size", "distilled_steps"})


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A MAR model, under the names of the published constructor (arXiv 2406.11838, section 4).

    Sizes are in pixels (`img_size`), pixels a latent (`vae_stride`), latents a token side
    (`patch_size`), channels (`*_embed_dim`, `diffloss_w`) and layers (`*_depth`, `diffloss_d`). Those from
    `mask_ratio_min` to `diffusion_batch_mul` matter only while training.

    The last five choose a form other than the published one. `attention`: every token sees all others, or
    those generated before it. `order`: the one that tokens are trained to come in (section 3.3 and table 1).
    `head`: what makes a token of z, which is a diffusion chain, the chain of a rectified flow, or a choice
    among the `codebook_size` vectors of a codebook (0 for other heads). `distilled_steps`, where not 0, is
    the number of steps that a flow head was distilled to, guidance included. Raises `ConfigError` on
    impossible values.
    """

    img_size: int = 256
    vae_stride: int = 16
    patch_size: int = 1
    vae_embed_dim: int = 16
    class_num: int = 1000
    buffer_size: int = 64
    encoder_embed_dim: int = 1024
    encoder_depth: int = 16
    encoder_num_heads: int = 16
    decoder_embed_dim: int = 1024
    decoder_depth: int = 16
    decoder_num_heads: int = 16
    mlp_ratio: float = 4.0
    diffloss_d: int = 3
    diffloss_w: int = 1024
    mask_ratio_min: float = 0.7
    label_drop_prob: float = 0.1
    attn_dropout: float = 0.1
    proj_dropout: float = 0.1
    diffusion_batch_mul: int = 4
    attention: str = "bidirectional"
    order: str = "random"
    head: str = "diffusion"
    codebook_size: int = 0
    distilled_steps: int = 0

    def __post_init__(self) -> None:
        for name, smallest, largest in _LIMITS:
            value = getattr(self, name)
            wanted = type(getattr(ModelConfig, name))
            if wanted is float and type(value) is int:
                value = float(value)
                object.__setattr__(self, name, value)
            if type(value) is not wanted or not math.isfinite(value):
                raise ConfigError(f"model config: {name} must be {wanted.__name__}, found {value!r}")
            if not smallest <= value <= largest:
                raise ConfigError(f"model config: {name} must lie in {smallest}..{largest}, found {value!r}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"model config: {name} must be one of {', '.join(choices)}, found {getattr(self, name)!r}"
                )
        if self.distilled_steps and self.head != "flow":
            raise ConfigError(
                f"model config: distilled_steps {self.distilled_steps} belongs to the head flow, found {self.head}"
            )
        if self.codebook_size < 2 if self.head == "vq" else self.codebook_size:
            raise ConfigError(
                "model config: codebook_size must be 2 or more where head is vq, and 0 elsewhere, found "
                f"head {self.head!r} and codebook_size {self.codebook_size}"
            )
        if self.img_size % (self.vae_stride * self.patch_size):
            raise ConfigError(
                f"model config: img_size {self.img_size} is not a multiple of vae_stride x patch_size = "
                f"{self.vae_stride} x {self.patch_size}"
            )
        for half in ("encoder", "decoder"):
            width, heads = getattr(self, f"{half}_embed_dim"), getattr(self, f"{half}_num_heads")
            if width % heads:
                raise ConfigError(f"model config: {half}_embed_dim {width} is not a multiple of its {heads} heads")

    @property
    def grid(self) -> int:
        """Tokens along one side of the image."""
        return self.img_size // self.vae_stride // self.patch_size

    @property
    def tokens(self) -> int:
        """L, the number of tokens of an image."""
        return self.grid**2

    @property
    def token_channels(self) -> int:
        """D, the number of values of one token."""
        return self.vae_embed_dim * self.patch_size**2

    @property
    def modulation_channels(self) -> int:
        """M: shift, scale and gate of every block of the head, shift and scale of its last layer; or its codes."""
        return self.codebook_size or (3 * self.diffloss_d + 2) * self.diffloss_w

    @property
    def cache_channels(self) -> int:
        """What a slot of the sequence leaves to later ones under causal attention: keys and values of every block."""
        return 2 * (self.encoder_depth * self.encoder_embed_dim + self.decoder_depth * self.decoder_embed_dim)

    @property
    def loss_repeats(self) -> int:
        """R, how often a step trains the head on each masked token: a chain has many places to be at, a code one."""
        return 1 if self.head == "vq" else self.diffusion_batch_mul

    @classmethod
    def from_dict(cls, values: object, where: str) -> ModelConfig:
        """The config named by `values`; `where` names their source in an error."""
        if not isinstance(values, Mapping):
            raise ConfigError(f"{where}: a model config must be a JSON object, found {type(values).__name__}")
        check_renamed_fields(values, where)
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            import difflib  # only a mistake needs it, and every start would pay for it

            near = {match for key in unknown for match in difflib.get_close_matches(key, known, cutoff=0.4)}
            known_told = f"nearest to them: {', '.join(sorted(near))}" if near else f"known: {', '.join(sorted(known))}"
            raise ConfigError(f"{where}: unknown model config keys {', '.join(unknown)}; {known_told}")
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def check_renamed_fields(values: Mapping[Any, Any], where: str) -> None:
    """Check that the fields of a model config are not spelled as in earlier versions.

    Raises:
        ConfigError: One is; the message names the source `where` and the new spelling.
    """
    if "codes" in values:
        raise ConfigError(f"{where}: the key codes is now codebook_size; rename it")
    if values.get("head") == "codes":
        raise ConfigError(f'{where}: head = "codes" is now head = "vq"; rename it')
