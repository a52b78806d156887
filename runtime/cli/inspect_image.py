"""`mar inspect IMAGE`: how an image was made, and the command that makes it again."""

from __future__ import annotations

import pathlib
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import click

from runtime.checks import pluralize, printable
from runtime.image_records.encoding import read_records
from runtime.image_records.record import ImageRecord
from runtime.sampling.samplers import SAMPLERS

_GIVEN = {
    "order": "the generation order",
    "noise": "the noise",
    "image": "an image",
    "mask": "a mask",
    "prompt_embeds": "a prompt",
    "negative_prompt_embeds": "a negative prompt",
}
_FILES = {False: {"order", "noise"}, True: {"image", "mask"}}  # what mar generate reads; for an edit, mar edit


def inspect_image(path: pathlib.Path) -> dict[str, Any]:
    """Print how the image in a file was made, and the command that makes it again; of a grid, all its images.

    Returns:
        The same as the content of a JSON document.

    Raises:
        ImageFileError: It is no image, or it does not say how it was made.
    """
    records = read_records(path)
    first = records[0]
    grid = f", a grid of {pluralize(len(records), 'image')}" if len(records) > 1 else ""
    click.echo(f"{printable(str(path))}: made by mar {printable(first.version)}{grid}\n")
    for record in records:
        click.echo(f"image       {_subject(record)}, seed {record.seed}, index {record.index}")
    click.echo(f"preset      {'none' if first.preset is None else printable(first.preset)}")
    settings = (f"{name} {_value(value)}" for name, value in first.settings.items() if value is not None)
    click.echo(f"sampling    {', '.join(settings)}")
    if first.given:
        click.echo(f"given       {', '.join(_GIVEN.get(name, name) for name in first.given)}")
    click.echo(f"artifact    {printable(first.artifact_sha256)}, the hash that mar inspect ARTIFACT prints")
    words = command(first)
    if not words:
        click.echo("make again  with Generator.generate in Python; no command takes what was given")
    else:
        click.echo(f"make again  {printable(shlex.join(words))}")
    if grid and words:
        what = "prompt" if first.prompt else "class"
        click.echo(f"            (this makes the first image; give the {what}, seed and index of another for that one)")
    return {
        "image": str(path),
        "records": [record.to_dict() for record in records],
        "commands": [command(record) for record in records],
    }


def command(record: ImageRecord) -> list[str]:
    """Return the command that makes an image again, with capital letters in place of the names of files.

    Some arrays can be given in Python only, such as the embeddings of a prompt: nothing is returned then.
    """
    if not record.given.keys() <= _FILES[record.is_edit]:
        return []
    words = ["mar", "edit" if record.is_edit else "generate", "ARTIFACT"]
    words += ["--prompt", record.prompt] if record.prompt else ["--class", f"index:{record.class_number}"]
    words += ["--negative-prompt", record.negative_prompt] if record.negative_prompt else []
    words += ["--seed", str(record.seed), "--first", str(record.index)]
    words += ["--count", "1"]
    for name in record.given:
        words += [f"--{name}" if record.is_edit else f"--{name}-file", name.upper()]
    if record.is_edit:
        words += ["--dilate"] * record.dilate + ["--no-paste"] * (not record.paste)
    if record.preset is not None:
        words += ["--preset", record.preset]
    return [*words, *_options(record.settings), "--out", "IMAGE.png"]


def _options(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield the options of all settings that have a value, except a sampler that the model fixes."""
    for name, value in settings.items():
        if value is None or (name == "sampler" and value not in SAMPLERS):
            continue
        option = name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{option}" if value else f"--no-{option}"
            continue
        yield f"--{option}"
        if name == "cfg_interval" and isinstance(value, list):
            yield from map(str, value)
        else:
            yield _value(value)


def _value(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else printable(str(value))


def _subject(record: ImageRecord) -> str:
    if record.prompt:
        negative = f", negative prompt {printable(record.negative_prompt)}" if record.negative_prompt else ""
        return f"prompt {printable(record.prompt)}{negative}"
    if "prompt_embeds" in record.given:
        return "a prompt"
    return f"class {record.class_number}" + (f" {printable(record.class_name)}" if record.class_name else "")
