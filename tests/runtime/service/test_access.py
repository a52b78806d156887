"""Files of API keys, and images that are kept for a URL."""

from __future__ import annotations

import pathlib

import pytest

from runtime.errors import RequestError
from runtime.service.access import read_api_keys
from runtime.service.kept_images import KeptImages

KEY = "0123456789abcdef"


def test_keys_are_the_lines_that_are_no_comments(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# of the team\n{KEY}\n\n  {KEY}-2  \n")
    assert read_api_keys(file) == (KEY, f"{KEY}-2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no API key"),
        (b"# none\n", "no API key"),
        (b"short\n", "key 1 must have at least 16 characters"),
        (f"{KEY}\n{KEY} {KEY}\n".encode(), "key 2 must have .* no spaces"),
        (b"\xff" * 20, "not a file of API keys"),
        (b"x" * (2**20 + 1), "not a file of API keys"),
    ],
)
def test_a_wrong_file_is_told(tmp_path: pathlib.Path, content: bytes, message: str) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    with pytest.raises(RequestError, match=message):
        read_api_keys(file)


def test_a_missing_file_is_told(tmp_path: pathlib.Path) -> None:
    with pytest.raises(RequestError, match=r"cannot be read \(No such file or directory\)"):
        read_api_keys(tmp_path / "keys")


def test_an_image_is_kept_for_its_time() -> None:
    kept = KeptImages(10, 100)
    name = kept.add(b"image", "image/png", ".png", now=5)
    assert name.endswith(".png")
    found = kept.get(name, now=14.9)
    assert found is not None
    assert (found.content, found.media_type) == (b"image", "image/png")
    assert kept.get(name, now=15) is None
    assert kept.get("other.png", now=0) is None


def test_the_oldest_images_make_room() -> None:
    kept = KeptImages(10, 100)
    names = [kept.add(b"x" * 40, "image/png", ".png", now=0) for _ in range(4)]
    assert [kept.get(name, now=1) is not None for name in names] == [False, False, True, True]
    assert len(set(names)) == 4
