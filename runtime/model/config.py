"""The config of a model: its sizes, under the argument names of the published constructor."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from runtime.checks import pluralize, truncate
from runtime.errors import ConfigError

FREQUENCIES = 256
"""The channels of the sinusoidal embedding of a timestep, the same in every model."""

_INT64 = 2**63
# (field, smallest, largest): the range in which a value makes sense.
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

# The values of text fields. The first is that of the published models.
_CHOICES: dict[str, tuple[str, ...]] = {
    "attention": ("bidirectional", "causal"),
    "order": ("random", "raster"),
    "head": ("diffusion", "flow", "vq"),
}
LATER_FIELDS = frozenset({*_CHOICES, "codebook_size", "distilled_steps"})
"""Fields that older manifests and checkpoints do not have; their defaults are the published architecture."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The config of a MAR model, under the names of the published constructor (arXiv 2406.11838, section 4).

    The defaults are those of the published constructor. The fields from `mask_ratio_min` to `diffusion_batch_mul` are
    used only in training. The last five fields select variants of the published architecture.

    Raises:
        ConfigError: A value is impossible, or two values do not go together.

    Attributes:
        img_size: The side of an image in pixels.
        vae_stride: Pixels along the side of a latent value: the downsampling of the tokenizer, 1 for pixels.
        patch_size: Latent values along the side of a token.
        vae_embed_dim: C, the channels of the latents.
        class_num: The number of classes.
        buffer_size: The number of class tokens that precede the image tokens in the encoder.
        encoder_embed_dim: The width of the encoder, in channels.
        encoder_depth: The number of its blocks.
        encoder_num_heads: The number of its attention heads.
        decoder_embed_dim: The width of the decoder, in channels; also the size of z.
        decoder_depth: The number of its blocks.
        decoder_num_heads: The number of its attention heads.
        mlp_ratio: The width of the hidden layer of an MLP relative to the width of its block.
        diffloss_d: The number of residual blocks of the head.
        diffloss_w: The width of the head, in channels.
        mask_ratio_min: The least share of tokens that a training step masks.
        label_drop_prob: The probability that training drops a label, for classifier-free guidance.
        attn_dropout: The dropout rate of the attention.
        proj_dropout: The dropout rate of the projections.
        diffusion_batch_mul: How many timesteps of each masked token a training step uses.
        attention: `bidirectional`: every token attends to all others. `causal`: to those generated before it.
        order: The order in which tokens are trained to be generated (section 3.3 and table 1).
        head: What turns z into a token: `diffusion`, a diffusion chain; `flow`, a rectified flow; or `vq`, a choice of
            one vector of a codebook.
        codebook_size: The number of vectors of the codebook of a vq head; 0 for other heads.
        distilled_steps: The number of steps that a flow head was distilled to, which includes guidance; 0 if it was
            not distilled.
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
            expected = type(getattr(ModelConfig, name))
            if expected is float and type(value) is int and abs(value) < _INT64:
                value = float(value)
                object.__setattr__(self, name, value)
            if type(value) is not expected:
                raise ConfigError(f"model config: {name} must be {expected.__name__}, found {truncate(value)}")
            if not smallest <= value <= largest:
                raise ConfigError(f"model config: {name} must lie in {smallest}..{largest}, found {truncate(value)}")
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
                "model config: codebook_size must be 2 or more for the head vq, and 0 for other heads, found "
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
    def family(self) -> str:
        """The name of the row of `runtime.model.families.FAMILIES`, which attention and head decide."""
        causal = "-causal" if self.attention == "causal" else ""
        return f"mar{causal}{'-vq' if self.head == 'vq' else ''}"

    @property
    def grid(self) -> int:
        """The number of tokens along one side of the image."""
        return self.img_size // self.vae_stride // self.patch_size

    @property
    def tokens(self) -> int:
        """L, the number of tokens of an image."""
        return self.grid**2

    @property
    def grid_shape(self) -> tuple[int, int]:
        """The rows and columns of the grid of tokens."""
        return self.grid, self.grid

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """C, h and w of the latents of an image."""
        side = self.img_size // self.vae_stride
        return self.vae_embed_dim, side, side

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """H, W and c of an image that is generated or edited: c is 3 behind an autoencoder."""
        return self.img_size, self.img_size, self.vae_embed_dim if self.vae_stride == 1 else 3

    @property
    def token_channels(self) -> int:
        """D, the number of values of one token."""
        return self.vae_embed_dim * self.patch_size**2

    @property
    def z_channels(self) -> int:
        """The values of a vector z, which the backbone gives to the head."""
        return self.decoder_embed_dim

    @property
    def modulation_channels(self) -> int:
        """M, the values of one row of `modulation`, which the conditioning engine computes for the denoise engine.

        They are shift, scale and gate of every block of the head, and shift and scale of its last layer. For a vq head
        they are the logits of the codebook.
        """
        return self.codebook_size or (3 * self.diffloss_d + 2) * self.diffloss_w

    @property
    def cache_channels(self) -> int:
        """The keys and values of all blocks for one position, which causal attention caches for later positions."""
        return self.encoder_cache_channels + self.decoder_cache_channels

    @property
    def encoder_cache_channels(self) -> int:
        """The keys and values of all blocks of the encoder for one position."""
        return 2 * self.encoder_depth * self.encoder_embed_dim

    @property
    def decoder_cache_channels(self) -> int:
        """The keys and values of all blocks of the decoder for one position."""
        return 2 * self.decoder_depth * self.decoder_embed_dim

    @property
    def loss_repeats(self) -> int:
        """How many timesteps of each masked token a training step uses; a vq head has no timesteps, so 1."""
        return 1 if self.head == "vq" else self.diffusion_batch_mul

    def index_bounds(self) -> dict[str, tuple[int, int]]:
        """Return the bounds of integer inputs of the engines; see `FamilyConfig.index_bounds`."""
        positions = self.buffer_size + self.tokens
        return {
            "labels": (0, self.class_num + 1),
            "position_ids": (0, positions),
            "next_position_ids": (self.buffer_size, positions),
            "buffer": (0, self.buffer_size),
        }

    def describe_head(self) -> str:
        """Return what turns z into a token, for messages."""
        return f"a {self.head} head"

    def describe(self) -> tuple[str, ...]:
        """Return lines about the kind and the sizes of the model, for people."""
        return (
            f"{self.attention} attention, {self.order} order, {self.head} head"
            + (f" (codebook of {self.codebook_size})" if self.codebook_size else "")
            + (f", distilled to {pluralize(self.distilled_steps, 'step')}" if self.distilled_steps else ""),
            f"blocks x width: encoder {self.encoder_depth} x {self.encoder_embed_dim}, "
            f"decoder {self.decoder_depth} x {self.decoder_embed_dim}, head {self.diffloss_d} x {self.diffloss_w}",
        )

    @classmethod
    def from_dict(cls, values: object, where: str) -> ModelConfig:
        """Return the config that `values` describes, with defaults for missing fields.

        Args:
            values: The fields by name, as parsed JSON.
            where: The source of the values, for error messages.

        Raises:
            ConfigError: A field is unknown or has an impossible value.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"{where}: a model config must be a JSON object, found {type(values).__name__}")
        check_renamed_fields(values, where)
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            import difflib  # imported here, because only an error message needs it

            near = {match for key in unknown for match in difflib.get_close_matches(key, known, cutoff=0.4)}
            hint = f"did you mean {', '.join(sorted(near))}?" if near else f"known: {', '.join(sorted(known))}"
            raise ConfigError(f"{where}: unknown model config keys {', '.join(unknown)}; {hint}")
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Return all fields by name, as JSON values; the inverse of `from_dict`."""
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
