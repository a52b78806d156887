"""How one image was made: everything that draws it again, as the image's own text carries it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from runtime.checks import printable
from runtime.errors import RequestError
from runtime.image_records.subject import PromptText, Subject
from runtime.sampling.settings import LATER_SETTINGS, Sampling, plain_settings
from runtime.storage.schema import SchemaError, parse_object
from runtime.storage.structured_files import parse_json
from runtime.version import __version__

TEXT_BYTES = 2**20
"""The most bytes of the text about an image, or about all images of a grid."""

GIVEN = ("order", "noise", "image", "mask", "prompt_embeds", "negative_prompt_embeds", "latents", "text", "state")
"""What a caller can give beside labels and seed: random numbers, what an edit starts from, prompts, what robots see."""

_WHERE = "the text about this image"
_LARGEST = 2**64 - 1


@dataclasses.dataclass(frozen=True)
class ImageRecord:
    """How one image was made. Two images with equal records are the same image.

    Attributes:
        class_number: The number of its class.
        class_name: The name of its class; empty if the artifact has no names.
        seed: The seed of its random numbers.
        index: Its number in the sequence of the seed.
        settings: The complete sampling settings, by the names of `runtime.sampling.settings.Sampling`.
        preset: The preset from which the settings come. None: the artifact's own settings, or settings without a name.
        artifact_sha256: The hash of the model, `Manifest.content_sha256`.
        version: The version of this package.
        prompt: What the image shows, of a model that draws from text. Empty: its class, or embeddings of a prompt.
        negative_prompt: What guidance leads away from; empty for the empty prompt.
        given: The SHA-256 of each array that the caller gave, by its name in `GIVEN`.
        dilate: Of an edit: whether the neighbours of the mask were regenerated too.
        paste: Of an edit: whether the known pixels were restored.
    """

    class_number: int = dataclasses.field(metadata={"least": 0})
    class_name: str
    seed: int = dataclasses.field(metadata={"least": 0, "most": _LARGEST})
    index: int = dataclasses.field(metadata={"least": 0, "most": _LARGEST})
    settings: dict[str, Any]
    preset: str | None
    artifact_sha256: str
    version: str = __version__
    prompt: str = ""
    negative_prompt: str = ""
    given: dict[str, str] = dataclasses.field(default_factory=dict)
    dilate: bool = False
    paste: bool = True

    @property
    def subject(self) -> Subject:
        """What the image shows."""
        return PromptText(self.prompt, self.negative_prompt) if self.prompt else self.class_number

    @property
    def is_edit(self) -> bool:
        """Whether a part of another image was regenerated."""
        return "mask" in self.given

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON values, without what only an edit, a prompt or a caller's own arrays need."""
        values = dataclasses.asdict(self)
        for name in ("prompt", "negative_prompt"):
            if not values[name]:
                del values[name]
        if not self.given:
            del values["given"]
        if not self.is_edit:
            del values["dilate"], values["paste"]
        return values

    def draws_as(self, other: ImageRecord) -> bool:
        """Return whether the two are of the same image. The name of a preset decides nothing, its settings do."""
        return dataclasses.replace(self, preset=None) == dataclasses.replace(other, preset=None)

    def difference(self, other: ImageRecord) -> str:
        """Return what differs from a record of the same class, seed and index, as `cfg_scale 2.0 instead of 1.0`."""
        mine, others = ({**vars(record), **record.settings} for record in (self, other))
        names = {
            "artifact_sha256": "another artifact",
            "given": "another image, mask, order, noise or prompt",
        }
        return ", ".join(
            names.get(name) or f"{name} {printable(str(mine.get(name)))} instead of {printable(str(value))}"
            for name, value in others.items()
            if name not in ("settings", "preset") and mine.get(name) != value
        )


def settings_values(sampling: Sampling) -> dict[str, Any]:
    """Return complete sampling settings as the JSON values of `ImageRecord.settings`; later ones only where set."""
    return {
        name: _json_value(value)
        for name, value in plain_settings(vars(sampling)).items()
        if value is not None or name not in LATER_SETTINGS
    }


def _json_value(value: Any) -> Any:
    if isinstance(value, str) and value.isdecimal():  # a number of steps from a command line
        return int(value)
    return list(value) if isinstance(value, tuple) else value


def record_text(records: Sequence[ImageRecord]) -> str:
    """Return the text that an image file carries: one record, or a list of those of a grid."""
    values = [record.to_dict() for record in records]
    return json.dumps(values[0] if len(values) == 1 else values, allow_nan=False)


def parse_record_text(text: str) -> tuple[ImageRecord, ...]:
    """Return the records in the text of an image file, which can come from anybody.

    Raises:
        SchemaError: It is not such a text. The message is one line.
    """
    if len(text.encode("utf-8", "replace")) > TEXT_BYTES:
        raise SchemaError(f"{_WHERE}: more than {TEXT_BYTES} bytes")
    try:
        value = parse_json(text)
    except ValueError as error:
        raise SchemaError(f"{_WHERE}: not JSON ({error})") from None
    if value == []:
        raise SchemaError(f"{_WHERE}: an empty list, expected how at least one image was made")
    return tuple(parse_record(each, _WHERE) for each in (value if isinstance(value, list) else [value]))


def parse_record(value: object, where: str) -> ImageRecord:
    """Return the record that a parsed JSON value describes; raises `SchemaError`, whose message begins with `where`."""
    record = parse_object(ImageRecord, value, where)
    if not record.given.keys() <= {*GIVEN}:
        raise SchemaError(f"{where}: given: expected the keys {', '.join(GIVEN)}")
    check_settings(record.settings, where)
    return record


def check_settings(settings: Mapping[str, Any], where: str) -> None:
    """Raise `SchemaError` unless `settings` are complete sampling settings. Their values are numbers and texts."""
    fields = {field.name for field in dataclasses.fields(Sampling)}
    if settings.keys() != fields - (LATER_SETTINGS - settings.keys()):
        raise SchemaError(f"{where}: settings: expected the keys {', '.join(sorted(fields))}")
    try:
        plain_settings(settings)
    except RequestError as error:
        raise SchemaError(f"{where}: settings: {error}") from None
