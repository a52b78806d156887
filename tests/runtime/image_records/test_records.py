"""How an image was made: carried by its file, read again from files of anybody, and different for different images."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from runtime.errors import RequestError
from runtime.image_files import ImageFileError
from runtime.image_records.encoding import FORMATS, encode_image, read_records
from runtime.image_records.names import class_folder, image_name
from runtime.image_records.record import ImageRecord, parse_record_text, record_text, settings_values
from runtime.sampling.settings import Sampling
from runtime.storage.schema import SchemaError

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
RECORD = ImageRecord(7, "sneaker", 2**64 - 1, 5, settings_values(Sampling(iterations=4)), "fast", "a" * 64)
EDIT = dataclasses.replace(RECORD, given={"image": "b" * 64, "mask": "c" * 64}, dilate=True, paste=False)


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize(
    "records",
    [[RECORD], [EDIT], [dataclasses.replace(RECORD, class_name="\u9774\U0001f45f", preset=None)], [RECORD, EDIT] * 30],
    ids=["one", "edit", "letters", "grid"],
)
def test_a_file_carries_the_records_of_its_images(
    tmp_path: pathlib.Path, format_name: str, records: list[ImageRecord]
) -> None:
    file = tmp_path / "image"
    file.write_bytes(encode_image(PIXELS, records, format_name))
    assert read_records(file) == tuple(records)
    with Image.open(file) as image:
        assert image.format == format_name.upper()
        if format_name == "png":
            assert np.array_equal(np.asarray(image), PIXELS)


def test_any_png_reader_finds_the_text(tmp_path: pathlib.Path) -> None:
    (tmp_path / "image.png").write_bytes(encode_image(PIXELS, RECORD))
    with Image.open(tmp_path / "image.png") as image:
        assert image.info["Software"].startswith("mar-runtime ")
        text = json.loads(image.info["mar"])
    assert (text["class_name"], text["seed"], text["index"], text["preset"]) == ("sneaker", 2**64 - 1, 5, "fast")
    assert text["settings"]["iterations"] == 4
    assert text["artifact_sha256"] == "a" * 64
    assert text["version"]


def changed(**values: Any) -> str:
    return json.dumps({**RECORD.to_dict(), **values})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("nan", "not JSON"),
        ("[" * 5000, "not JSON"),
        ("3", "expected an object"),
        ("{}", "missing keys"),
        ("[{}]", "missing keys"),
        ("[]", "an empty list"),
        (changed(more=1), "unknown keys"),
        (changed(seed=-1), "seed must be"),
        (changed(index=2**64), "64 bits"),
        (changed(class_number="7"), "class_number must be"),
        (changed(class_name=None), "class_name must be"),
        (changed(given={"--out": "x"}), "given"),
        (changed(settings={}), "settings"),
        (changed(settings={**RECORD.settings, "iterations": {"a": 1}}), "iterations"),
        (changed(settings={**RECORD.settings, "run": 1}), "settings"),
        ("[" + ",".join([changed()] * 4000) + "]", "more than 1048576 bytes"),
    ],
    ids=lambda part: part[:24],
)
def test_a_text_of_anybody_is_a_record_or_one_line(tmp_path: pathlib.Path, text: str, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        parse_record_text(text)
    info = PngImagePlugin.PngInfo()
    info.add_text("mar", text)
    Image.fromarray(PIXELS).save(tmp_path / "image.png", pnginfo=info)
    with pytest.raises(ImageFileError) as refusal:
        read_records(tmp_path / "image.png")
    assert str(refusal.value).startswith(f"{tmp_path}/image.png: ")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("content", [b"", b"text", encode_image(PIXELS, RECORD)[:40]], ids=["empty", "text", "cut"])
def test_what_is_no_image_is_one_line(tmp_path: pathlib.Path, content: bytes) -> None:
    (tmp_path / "image.png").write_bytes(content)
    with pytest.raises(ImageFileError, match=r"image\.png: "):
        read_records(tmp_path / "image.png")


def test_an_image_of_others_does_not_say_how_it_was_made(tmp_path: pathlib.Path) -> None:
    for name in ("image.png", "image.jpg"):
        Image.fromarray(PIXELS).save(tmp_path / name)
        with pytest.raises(ImageFileError, match="does not say how it was made"):
            read_records(tmp_path / name)


@pytest.mark.parametrize("arguments", [("gif", 95), ("png", 0), ("jpeg", 101)])
def test_other_formats_and_qualities_are_refused(arguments: tuple[str, int]) -> None:
    with pytest.raises(RequestError):
        encode_image(PIXELS, RECORD, *arguments)


def test_a_record_survives_its_text_and_tells_images_apart() -> None:
    assert parse_record_text(record_text([RECORD, EDIT])) == (RECORD, EDIT)
    assert RECORD.draws_as(dataclasses.replace(RECORD, preset=None))
    for change in ({"seed": 1}, {"artifact_sha256": "d" * 64}, {"given": {"order": "e" * 64}}):
        assert not RECORD.draws_as(dataclasses.replace(RECORD, **change))  # type: ignore[arg-type]
    other = dataclasses.replace(RECORD, settings={**RECORD.settings, "cfg_scale": 2.0}, artifact_sha256="d" * 64)
    assert RECORD.difference(other) == "another artifact, cfg_scale 1.0 instead of 2.0"


def test_names_are_distinct_and_safe_for_every_file_system() -> None:
    """Classes whose names are equal but for case, accents, slashes or their 200th letter; and reserved names."""
    classes = [
        "Cat",
        "cat",
        "CAT",
        "c\u00e1t",
        "a/b",
        "a\\b",
        "a:b",
        "",
        ".",
        "..",
        "CON",
        "\u9774",
        "x" * 300,
        "x" * 301,
    ]
    classes += ["a\nb", "a b", "\0", "-rf", "~", "$(ls)", "*?", "\ud800"]
    records = [
        dataclasses.replace(RECORD, class_number=number, class_name=name, seed=seed, index=index)
        for number, name in enumerate(classes)
        for seed in (0, 1, 2**64 - 1)
        for index in (0, 10, 2**64 - 1)
    ]
    names = {image_name(record).casefold() for record in records}
    assert len(names) == len(records)
    assert all(name.isascii() and set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.") for name in names)
    assert max(map(len, names)) < 143  # the shortest limit in use, that of encrypted names
    assert len({class_folder(record).casefold() for record in records}) == len(classes)
    assert image_name(RECORD) == "007-sneaker-seed18446744073709551615-000005.png"
