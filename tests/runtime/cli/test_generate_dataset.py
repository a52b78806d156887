"""`mar generate-dataset` in one process: the images of `mar generate`, formats, resuming, and refusals."""

from __future__ import annotations

import pathlib
import sys

import numpy as np
import pytest

from runtime.dataset import draw
from runtime.image_records.index import INDEX, read_index
from tests.helpers.command_line import Mar

SETTINGS = "--iterations 2 --diffusion-steps 3 --threads 1 --batch-size 2"


def dataset(mar: Mar, artifact: pathlib.Path, out: pathlib.Path, *options: object) -> str:
    ended = mar(f"generate-dataset {SETTINGS} --shard-size 4", artifact, "--out", out, *options)
    assert (ended.code, ended.err) == (0, "")
    return ended.out


def hashes(folder: pathlib.Path) -> dict[int, str]:
    return {entry.record.index: entry.sha256 for entry in read_index(folder / INDEX)}


@pytest.fixture
def generated(mar: Mar, pixel_artifact: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """Eleven images of `mar generate --out-dir`."""
    folder = tmp_path / "generated"
    assert mar(f"generate {SETTINGS} --count 11 --seed 5", pixel_artifact, "--out-dir", folder).code == 0
    return folder


def test_the_images_are_those_of_mar_generate_in_content_and_name(
    mar: Mar, pixel_artifact: pathlib.Path, generated: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    said = dataset(mar, pixel_artifact, tmp_path / "png", "--count", 11, "--seed", 5)
    assert said.startswith(f"11 images written to {tmp_path / 'png'} in ")
    entries, expected = read_index(tmp_path / "png" / INDEX), read_index(generated / INDEX)
    assert [entry.record for entry in entries] == [entry.record for entry in expected]
    for entry, other in zip(entries, expected, strict=True):
        folder, _, name = entry.file.partition("/")
        assert name == other.file
        assert folder == f"{entry.record.class_number:03d}-{entry.record.class_name}".rstrip("-")
        assert (tmp_path / "png" / entry.file).read_bytes() == (generated / other.file).read_bytes()
    assert hashes(tmp_path / "png") == hashes(generated)


def test_tar_and_npz_have_the_same_images(
    mar: Mar, pixel_artifact: pathlib.Path, generated: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    for name in ("webdataset", "npz"):
        dataset(mar, pixel_artifact, tmp_path / name, "--count", 11, "--seed", 5, "--format", name)
    assert hashes(tmp_path / "webdataset") == hashes(generated)
    assert sorted(path.name for path in (tmp_path / "npz").iterdir()) == [
        INDEX, "shard-000000.npz", "shard-000001.npz", "shard-000002.npz"
    ]  # fmt: skip
    assert {entry.file for entry in read_index(tmp_path / "npz" / INDEX)[8:]} == {"shard-000002.npz"}


def test_a_stopped_command_resumes_without_drawing_anything_twice(
    mar: Mar, pixel_artifact: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset(mar, pixel_artifact, tmp_path / "whole", "--count", 14)
    run_tasks, drawn = draw.run_tasks, []

    def stopping(*arguments: object) -> object:
        for shard, packed in run_tasks(*arguments):  # type: ignore[arg-type]
            drawn.append(shard)
            yield shard, packed
            if len(drawn) == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(draw, "run_tasks", stopping)
    out = tmp_path / "stopped"
    arguments = (f"generate-dataset {SETTINGS} --shard-size 4 --count 14", pixel_artifact, "--out", out)
    assert mar(*arguments).code == 130
    with (out / INDEX).open("a") as index:
        index.write('{"file": "000-cat/a kill cuts a li')
    (out / read_index(out / INDEX)[0].file).unlink()  # a file that somebody removed is drawn again, with its shard
    ended = mar(*arguments)
    assert (ended.code, ended.err) == (0, "")
    assert "10 images written" in ended.out
    assert "4 were there before" in ended.out
    assert drawn == [range(4), range(4, 8), range(4), range(8, 12), range(12, 14)]
    same = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    whole = tmp_path / "whole"
    assert same == {path.relative_to(whole): path.read_bytes() for path in whole.rglob("*") if path.is_file()}


@pytest.mark.parametrize("format_name", ["png", "webdataset", "npz"])
def test_more_images_are_added_to_what_is_there(
    mar: Mar, pixel_artifact: pathlib.Path, tmp_path: pathlib.Path, format_name: str
) -> None:
    dataset(mar, pixel_artifact, tmp_path / "out", "--count", 6, "--format", format_name)
    first = (tmp_path / "out" / read_index(tmp_path / "out" / INDEX)[0].file).stat().st_ino
    assert "4 were there before" in dataset(
        mar, pixel_artifact, tmp_path / "out", "--count", 9, "--format", format_name
    )
    assert (tmp_path / "out" / read_index(tmp_path / "out" / INDEX)[0].file).stat().st_ino == first
    dataset(mar, pixel_artifact, tmp_path / "whole", "--count", 9, "--format", format_name)
    assert (tmp_path / "out" / INDEX).read_bytes() == (tmp_path / "whole" / INDEX).read_bytes()


@pytest.mark.parametrize("format_name", ["webdataset", "npz"])
def test_a_shard_that_was_altered_is_an_error_until_it_is_removed(
    mar: Mar, pixel_artifact: pathlib.Path, tmp_path: pathlib.Path, format_name: str
) -> None:
    options = ("--count", 11, "--format", format_name)
    dataset(mar, pixel_artifact, tmp_path, *options)
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    second = sorted(set(whole) - {INDEX})[1]
    content = bytearray(whole[second])
    content[len(content) // 2] ^= 1  # in place, and of the same size
    (tmp_path / second).write_bytes(content)
    ended = mar(f"generate-dataset {SETTINGS} --shard-size 4", pixel_artifact, "--out", tmp_path, *options)
    assert (ended.code, ended.out) == (1, "")
    assert f"{second} was altered" in ended.err
    (tmp_path / second).unlink()
    assert dataset(mar, pixel_artifact, tmp_path, *options).endswith("; 7 were there before\n")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == whole


def test_classes_are_taken_in_turn(mar: Mar, pixel_artifact: pathlib.Path, tmp_path: pathlib.Path) -> None:
    dataset(mar, pixel_artifact, tmp_path, "--count", 3, "--classes", 1, "--format", "npz")
    with np.load(tmp_path / "shard-000000.npz") as arrays:
        assert arrays["labels"].tolist() == [1, 1, 1]
        assert arrays["index"].tolist() == [0, 1, 2]
        assert (arrays["images"].shape, arrays["images"].dtype) == ((3, 8, 8, 1), np.uint8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--count 0", "--count must be a whole number in 1..100000000, found 0"),
        ("--count 4 --shard-size 3", "--shard-size must be a multiple of --batch-size (2), found 3"),
        ("--count 4 --classes 7", "class 7 is out of range; this model has classes 0..1"),
        ("--count 4 --seed -1", "seed must be a whole number in 0..2^64-1, found -1"),
        ("--count 4 --iterations 99", "iterations must lie in 1..4, the tokens of an image, found 99"),
        ("--count 4 --backend abacus", "Invalid value for '--backend': 'abacus' is not one of 'onnxruntime', "),
    ],
)
def test_wrong_options_are_one_line_and_leave_nothing(
    mar: Mar, pixel_artifact: pathlib.Path, tmp_path: pathlib.Path, options: str, message: str
) -> None:
    ended = mar(f"generate-dataset --threads 1 --batch-size 2 {options}", pixel_artifact, "--out", tmp_path / "out")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"mar: {message}")
    assert ended.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_other_images_is_refused(mar: Mar, pixel_artifact: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for format_name in ("png", "npz"):
        out = tmp_path / format_name
        dataset(mar, pixel_artifact, out, "--count", 4, "--format", format_name)
        changed = f"generate-dataset {SETTINGS} --shard-size 4 --count 4 --format {format_name} --temperature 0.5"
        ended = mar(changed, pixel_artifact, "--out", out)
        assert ended.code == 2
        assert "choose another folder" in ended.err
    ended = mar(f"generate-dataset {SETTINGS} --shard-size 2 --count 4 --format npz", pixel_artifact, "--out", out)
    assert ended.code == 2
    assert "shards of another format or --shard-size" in ended.err


@pytest.mark.parametrize("format_name", ["png", "webdataset"])
def test_a_damaged_index_is_one_line(
    mar: Mar, pixel_artifact: pathlib.Path, tmp_path: pathlib.Path, format_name: str
) -> None:
    dataset(mar, pixel_artifact, tmp_path / "out", "--count", 6, "--format", format_name)
    index = tmp_path / "out" / INDEX
    lines = index.read_text().splitlines()
    index.write_text("\n".join([lines[0], lines[1][:50], *lines[2:]]))
    arguments = f"generate-dataset {SETTINGS} --shard-size 4 --count 6 --format {format_name}"
    ended = mar(arguments, pixel_artifact, "--out", tmp_path / "out")
    assert ended.code == 1
    assert ended.err.startswith(f"mar: {index}: line 2: ")
    assert ended.err.count("\n") == 1


def test_several_workers_without_ray_are_one_line(
    mar: Mar, pixel_artifact: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "ray"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)  # an import of it raises ImportError
    ended = mar(f"generate-dataset {SETTINGS} --count 8 --workers 2", pixel_artifact, "--out", tmp_path / "out")
    assert ended.code == 1
    assert ended.err == (
        "mar: several workers need the Python package ray; pip install 'mar-runtime[ray]', or use one worker\n"
    )
    assert list(tmp_path.iterdir()) == []
