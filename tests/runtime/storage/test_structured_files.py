"""JSON, TOML and .npz files from anywhere: read within limits, and otherwise refused in one line."""

from __future__ import annotations

import io
import json
import os
import pathlib
import subprocess
import sys
import zipfile
from typing import Any

import numpy as np
import pytest

from runtime.errors import DataError, MarError
from runtime.storage.structured_files import (
    DEPTH,
    JSON_BYTES,
    TOML_BYTES,
    FaultReport,
    NpzFile,
    read_json,
    read_json_object,
    read_toml,
)

FAULT_REPORT = FaultReport(DataError, "make it again")
MARK = b"\xef\xbb\xbf"


def _refusal(read: Any, file: pathlib.Path) -> str:
    with pytest.raises(DataError) as caught:
        read(file, FAULT_REPORT)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert message.endswith("; make it again")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("mark", [b"", MARK])
def test_text_is_utf8_with_or_without_a_mark_in_any_locale(tmp_path: pathlib.Path, mark: bytes) -> None:
    (tmp_path / "a.json").write_bytes(mark + '{"name": "café"}'.encode())
    (tmp_path / "a.toml").write_bytes(mark + 'name = "café"\r\n'.encode())
    code = (
        "import pathlib, sys; from runtime.storage.structured_files import *; from runtime.errors import DataError;"
        "fault_report = FaultReport(DataError); folder = pathlib.Path(sys.argv[1]);"
        "print(ascii([read_json(folder / 'a.json', fault_report), read_toml(folder / 'a.toml', fault_report)]))"
    )
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(pathlib.Path.cwd())}
    done = subprocess.run([sys.executable, "-c", code, tmp_path], env=environment, capture_output=True, check=True)
    assert done.stdout.decode().strip() == ascii([{"name": "café"}] * 2)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value"),
        (b'{"a": 1', "Expecting"),
        (b'{"a": 1, "a": 2}', "the key 'a' is there twice"),
        (b"[1" + b"0" * 5000 + b"]", "a whole number of 5001 digits"),
        (b"[18446744073709551616]", "more than 64 bits"),
        (b"[1e999]", "not finite"),
        (b"[NaN]", "NaN is not JSON"),
        (b"[" * (DEPTH + 1) + b"]" * (DEPTH + 1), f"nested more than {DEPTH} deep"),
        (b"[" * 100_000 + b"]" * 100_000, f"nested more than {DEPTH} deep"),
        (b'["\\ud800"]', "surrogates not allowed"),
        ('{"a": 1}'.encode("utf-16"), "UTF-16, expected UTF-8; save it as UTF-8"),
        ('["é"]'.encode("latin-1"), "not UTF-8 text, byte 2 is 0xe9"),
        (b" " * (JSON_BYTES + 1), f"more than {JSON_BYTES} bytes"),
    ],
)
def test_a_json_file_beyond_the_limits_is_refused(tmp_path: pathlib.Path, content: bytes, reason: str) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(content)
    assert reason in _refusal(read_json, file)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a = ", "not TOML"),
        (b"a = 1" + b"0" * 5000, "digits"),
        (b"a = 18446744073709551616", "more than 64 bits"),
        (b"a = " + b"[" * 3000 + b"]" * 3000, f"nested more than {DEPTH} deep"),
        (b".".join([b"a"] * 100) + b" = 1", f"nested more than {DEPTH} deep"),
        (b"#" * 10_000, "a line of more than"),
        (b"#\n" * TOML_BYTES, f"more than {TOML_BYTES} bytes"),
        ("a = 1".encode("utf-16"), "UTF-16"),
    ],
)
def test_a_toml_file_beyond_the_limits_is_refused(tmp_path: pathlib.Path, content: bytes, reason: str) -> None:
    file = tmp_path / "a.toml"
    file.write_bytes(content)
    assert reason in _refusal(read_toml, file)


@pytest.mark.parametrize("read", [read_json, read_json_object, read_toml, NpzFile])
def test_what_cannot_be_opened_is_refused(tmp_path: pathlib.Path, read: Any) -> None:
    assert "No such file" in _refusal(read, tmp_path / "missing")
    assert "Is a directory" in _refusal(read, tmp_path)
    assert "null byte" in _refusal(read, pathlib.Path("a\0b"))


def test_an_archive_that_has_no_end_is_refused(tmp_path: pathlib.Path) -> None:
    """A device would be read until memory is full; a pipe cannot be read from its end."""
    os.mkfifo(tmp_path / "pipe")
    for endless in (tmp_path / "pipe", pathlib.Path("/dev/zero")):
        assert _refusal(NpzFile, endless) == f"{endless}: cannot be read (it is not a regular file); make it again"


def test_a_json_file_of_another_value_than_an_object_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.json").write_text("[]")
    assert "expected a JSON object, found list" in _refusal(read_json_object, tmp_path / "a.json")


def _npz(file: pathlib.Path, **arrays: Any) -> pathlib.Path:
    np.savez_compressed(file, **arrays)
    return file


def _read(file: pathlib.Path, kinds: str = "f", shape: Any = None, most: int = 5000) -> Any:
    with NpzFile(file, FAULT_REPORT) as opened:
        return opened.read("a", kinds, shape, most)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "i1", "<U3"])
def test_arrays_are_what_numpy_wrote(tmp_path: pathlib.Path, dtype: str, order: Any) -> None:
    for shape in ((), (0, 3), (2, 3, 4)):
        array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype, order=order)
        found = _read(_npz(tmp_path / "a.npz", a=array), array.dtype.kind, shape)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
        assert found.flags.writeable


def test_an_array_of_another_kind_shape_or_size_is_refused(tmp_path: pathlib.Path) -> None:
    file = _npz(tmp_path / "a.npz", a=np.zeros((2, 300)))
    for arguments, reason in (
        (("iu",), "expected dtypes iu"),
        (("f", (2, None, None)), "expected dtypes f [2, 'any', 'any']"),
        (("f", (3, None)), "expected dtypes f [3, 'any']"),
        (("f", None, 4000), "4800 bytes, expected at most 4000"),
    ):
        with pytest.raises(DataError) as caught:
            _read(file, *arguments)
        assert str(caught.value).startswith(f"{file}: the array 'a' cannot be read (")
        assert reason in str(caught.value)
    with pytest.raises(DataError, match="array b"), NpzFile(file, FAULT_REPORT) as opened:
        opened.read("b", "f")


def test_objects_are_never_unpickled(tmp_path: pathlib.Path) -> None:
    class Armed:
        def __reduce__(self) -> Any:
            return pathlib.Path.touch, (tmp_path / "ran",)

    file = _npz(tmp_path / "a.npz", a=np.array([Armed()], dtype=object))
    with pytest.raises(DataError):
        _read(file, "fiuO")
    assert not (tmp_path / "ran").exists()


def _archive(file: pathlib.Path, members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)


def _npy(shape: str, data: bytes = b"", dtype: str = "<f4") -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_that_numpy_does_not_write_are_refused(tmp_path: pathlib.Path) -> None:
    file, whole = tmp_path / "a.npz", _npy("(2,)", b"\0" * 8)
    _archive(file, [("a.npy", whole)])
    np.testing.assert_array_equal(_read(file), np.zeros(2, np.float32))
    for members, compression, reason in (
        ([("a.npy", whole)], zipfile.ZIP_BZIP2, "compressed in a way that numpy does not use"),
        ([("a.npy", whole)], zipfile.ZIP_LZMA, "compressed in a way that numpy does not use"),
        ([("a.npy", whole), ("a.npy", whole)], zipfile.ZIP_STORED, "two of one name"),
        ([("a.npy", _npy("(2, 1000000000000)", b"\0" * 8))], zipfile.ZIP_STORED, "8 bytes for"),
        ([("a.npy", _npy("(-2, -1)", b"\0" * 8))], zipfile.ZIP_STORED, "8 bytes for"),
        ([("a.npy", _npy("(2,)", b"\0" * 8, "V4"))], zipfile.ZIP_STORED, "expected dtypes"),
        ([("a.npy", _npy("[" * 3000))], zipfile.ZIP_STORED, "cannot be read"),
        ([("a.npy", b"nothing")], zipfile.ZIP_STORED, "cannot be read"),
        ([("a.npy", _npy("(500000000,)", b"\0" * 2000)) for _ in range(1)], zipfile.ZIP_DEFLATED, "bytes"),
    ):
        _archive(file, members, compression)
        with pytest.raises(MarError, match=reason) as caught:
            _read(file)
        assert "\n" not in str(caught.value)


def test_a_damaged_archive_is_refused_or_gives_what_was_written(tmp_path: pathlib.Path) -> None:
    """Any byte may be another; the checksums of the archive tell, or the byte did not matter."""
    random, file, array = np.random.default_rng(0), tmp_path / "a.npz", np.arange(30, dtype=np.float32)
    content = io.BytesIO()
    np.savez_compressed(content, a=array)
    refused = 0
    for _ in range(300):
        damaged = bytearray(content.getvalue())
        for place in random.integers(len(damaged), size=random.integers(1, 4)):
            damaged[place] = random.integers(256)
        file.write_bytes(damaged[: len(damaged) if random.random() < 0.7 else random.integers(len(damaged))])
        try:
            found = _read(file)
        except DataError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            np.testing.assert_array_equal(found, array)
    assert refused > 200


def test_damaged_json_is_refused_or_read(tmp_path: pathlib.Path) -> None:
    random, file = np.random.default_rng(1), tmp_path / "a.json"
    content = json.dumps({"a": [1, 2.5, None, "é", {"b": True}], "c": "x" * 20}).encode()
    for _ in range(300):
        damaged = bytearray(content)
        for place in random.integers(len(damaged), size=random.integers(1, 4)):
            damaged[place] = random.integers(256)
        file.write_bytes(damaged)
        for read in (read_json, read_toml):
            try:
                read(file, FAULT_REPORT)
            except DataError as error:
                assert "\n" not in str(error)
