"""A class is asked for by its name or its number, and never confused with another."""

from __future__ import annotations

import pytest

from runtime.errors import RequestError
from runtime.requests.validation import parse_class

TWELVE = sorted(str(number) for number in range(1, 13))  # as folders sort: 1, 10, 11, 12, 2, 3, ...
MIXED = ["Cat", "cat", "dog", "caf\u00e9", "x:y", "0.5"]


@pytest.mark.parametrize(
    ("text", "names", "expected"),
    [
        ("12", TWELVE, 3),  # there is no class of number 12
        ("name:10", TWELVE, 1),
        ("index:10", TWELVE, 10),
        ("name:2", TWELVE, 4),
        ("5", [str(number) for number in range(10)], 5),  # the name and the number are one class
        ("3", ["a", "b"], 3),  # out of range, which `check_labels` reports
        ("-1", ["a", "b"], -1),
        ("7", [], 7),
        ("index:7", [], 7),
        ("003", [f"{number:03}" for number in range(5)], 3),
        ("Cat", MIXED, 0),
        ("cat", MIXED, 1),
        ("DOG", MIXED, 2),
        ("name:Dog", MIXED, 2),
        ("CAFE\u0301", MIXED, 3),  # the accent as a letter of its own, as macOS writes names
        ("x:y", MIXED, 4),
        ("index:0", ["index:0x", "index:0"], 0),
        ("name:index:0", ["a", "index:0"], 1),
        ("0.5", MIXED, 5),
        ("\udce7\udc8c\udcab", ["dog", "\u732b"], 1),  # the bytes of the letter, as an argument under an ASCII locale
        ("new\nline", ["dog", "new\\nline"], 1),  # the name of the folder, which the class has on one line
    ],
)
def test_a_class_is_found_by_its_name_or_its_number(text: str, names: list[str], expected: int) -> None:
    assert parse_class(text, names) == expected


@pytest.mark.parametrize(
    ("text", "names", "message"),
    [
        ("10", TWELVE, r"both the name 10, of class 1, and the number of 8; write name:10 or index:10"),
        ("2", TWELVE, r"both the name 2, of class 4, and the number of 11; write name:2 or index:2"),
        ("7", [f"{number:03}" for number in range(1, 13)], r"both the name 007, of class 6, and the number of 008"),
        ("CAT", MIXED, r"several classes \(0 Cat, 1 cat\); write index:"),
        ("a", ["a", "a"], r"several classes \(0 a, 1 a\)"),
        ("name:3", ["a", "b"], r"class '3' is unknown; this model has a, b"),
        ("name:3", [], r"class '3' is unknown; this model has no names"),
        ("index:x", MIXED, r"class 'index:x' is unknown"),
        ("1_0", TWELVE, "unknown"),
        ("\u0661", TWELVE, "unknown"),  # a digit, but not one that a name is written in
        ("", MIXED, "unknown"),
        ("9" * 5000, TWELVE, "unknown"),
        ("bird", ["a\nb"], r"has a\\nb$"),
    ],
)
def test_what_is_no_class_or_may_be_two_is_refused(text: str, names: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        parse_class(text, names)
    assert "\n" not in str(caught.value)
