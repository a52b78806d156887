"""What every part of this project asks of the config of a model, whatever its family is."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from runtime.errors import ConfigError
from runtime.storage.schema import SchemaError, parse_object

_Config = TypeVar("_Config")


class FamilyConfig(Protocol):
    """The config of a model of any family. `runtime.model.families` has the families, and the class of each config."""

    @property
    def family(self) -> str:
        """The name of the row of `runtime.model.families.FAMILIES` that the model belongs to."""

    @property
    def tokens(self) -> int:
        """L, the number of tokens of an image."""

    @property
    def grid_shape(self) -> tuple[int, int]:
        """The rows and columns of the grid of tokens; L is their product."""

    @property
    def patch_size(self) -> int:
        """The latent values along the side of a token."""

    @property
    def token_channels(self) -> int:
        """D, the values of a token."""

    @property
    def z_channels(self) -> int:
        """C, the values of a vector z, which the backbone gives to the head."""

    @property
    def modulation_channels(self) -> int:
        """M, the values of one row of `modulation`."""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """C, h and w of the latents of an image."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """H, W and c of an image."""

    @property
    def class_num(self) -> int:
        """The number of classes; 0 for a model that draws from something else."""

    def index_bounds(self) -> dict[str, tuple[int, int]]:
        """Return the least value of each integer input of the engines, and one more than the largest, by its name.

        An input that is missing has positions of tokens, 0 to L - 1.
        """

    def describe_head(self) -> str:
        """Return what turns z into a token, for messages: `a flow head`."""

    def describe(self) -> tuple[str, ...]:
        """Return lines about the kind and the sizes of the model, for people."""

    def to_dict(self) -> dict[str, Any]:
        """Return the config as JSON values, for `runtime.model.families.parse_config`."""


def config_of(kind: type[_Config], values: object, where: str) -> _Config:
    """Return the config of a class, a dataclass, that `values` describes.

    Args:
        kind: The class. It raises `ConfigError` for values that do not fit together.
        values: The fields by name, as parsed JSON.
        where: The source of the values, for error messages.

    Raises:
        ConfigError: A field is missing, unknown or has an impossible value; the message names `where`.
    """
    try:
        return parse_object(kind, values, where)
    except (SchemaError, ConfigError) as error:
        text = str(error)
        raise ConfigError(text if text.startswith(where) else f"{where}: {text}") from None
