"""`mar edit` as its users see it: it reads and writes images, and reports those that it cannot use."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from runtime.generator import Generator
from runtime.requests.inpainting import Edit
from runtime.result import Result
from tests.helpers.command_line import Mar
from tests.helpers.edits import edit_request

QUICK = "--iterations 2 --diffusion-steps ddim2 --threads 1"


def gray_image() -> NDArray[np.uint8]:
    """Any image of the size that the artifact generates, [8, 8]."""
    return np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)


def mask() -> NDArray[np.bool_]:
    """Three pixels in the token on the left above, and one in that on the right below, bool [8, 8]."""
    marked = np.zeros((8, 8), bool)
    marked[0, :3] = marked[7, 7] = True
    return marked


@pytest.fixture
def files(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder with an image and a mask, and with others that cannot be used."""
    folder = tmp_path / "files"
    folder.mkdir()
    gray, white = gray_image(), mask().astype(np.uint8) * 255
    Image.fromarray(gray).save(folder / "gray.png")
    Image.fromarray(np.dstack([gray] * 3)).save(folder / "rgb.png")
    Image.fromarray(np.dstack([gray] * 3 + [np.full((8, 8), 255, np.uint8)])).save(folder / "alpha.png")
    Image.fromarray(gray.astype(np.uint16) * 257).save(folder / "deep.png")
    Image.fromarray(white).save(folder / "mask.png")
    Image.fromarray(np.dstack([white] * 3)).save(folder / "rgb-mask.png")
    Image.fromarray(mask()).save(folder / "bits.png")
    Image.fromarray(np.where(mask(), 128, 127).astype(np.uint8)).save(folder / "grays.png")
    Image.fromarray(np.dstack([gray, 255 - white])).save(folder / "erased.png")
    # What cannot be used.
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "black.png")
    Image.fromarray(np.zeros((8, 12), np.uint8)).save(folder / "wide.png")
    Image.fromarray(np.zeros((1, 600), np.uint8)).save(folder / "line.png")
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(folder / "float.tif")
    (folder / "folder.png").mkdir()
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("not an image")
    whole = (folder / "gray.png").read_bytes()
    data = whole.index(b"IDAT")
    (folder / "cut.png").write_bytes(whole[: data + 30])
    (folder / "garbled.png").write_bytes(whole[:data] + b"\x83<\xfb\xd9" + whole[data + 4 :])
    length = int.from_bytes(whole[data - 4 : data], "big") - 20  # so that what follows is no chunk of a PNG
    (folder / "broken.png").write_bytes(whole[: data - 4] + length.to_bytes(4, "big") + whole[data:])
    return folder


@pytest.fixture(scope="module")
def latents_only(golden_artifacts: dict[str, pathlib.Path]) -> pathlib.Path:
    return golden_artifacts["small"]


def read(file: pathlib.Path) -> NDArray[np.uint8]:
    with Image.open(file) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def edited(artifact: pathlib.Path, labels: list[int], **request: object) -> NDArray[np.uint8]:
    """What the Python surface makes of the same edit, [B, 8, 8]."""
    with Generator.load(artifact, threads=1) as generator:
        result: Result = generator.generate(
            labels,
            iterations=2,
            diffusion_steps="ddim2",
            **edit_request(**({"known": gray_image()[..., None], "mask": mask()} | request)),
        )
    assert result.images is not None
    return result.images[..., 0]


@pytest.mark.parametrize("image", ["gray.png", "rgb.png", "alpha.png", "deep.png"])
@pytest.mark.parametrize("marks", ["mask.png", "rgb-mask.png", "bits.png", "grays.png", "erased.png"])
def test_any_kind_of_png_is_edited_where_the_mask_is_white(
    mar: Mar, pixel_artifact: pathlib.Path, files: pathlib.Path, image: str, marks: str
) -> None:
    line = f"edit {pixel_artifact} --image {files / image} --mask {files / marks} --class 1 {QUICK}"
    ended = mar(f"{line} --out {files / 'new' / 'edited.png'}")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == f"2 of 4 tokens regenerated (50%); image written to {files / 'new' / 'edited.png'}\n"
    found = read(files / "new" / "edited.png")
    assert found.tolist() == edited(pixel_artifact, [1])[0].tolist()
    assert found[~mask()].tolist() == gray_image()[~mask()].tolist()
    assert (found != gray_image()).any()
    assert [path.name for path in (files / "new").iterdir()] == ["edited.png"]


def test_a_photo_is_edited_upright_and_over_the_background(
    mar: Mar, pixel_artifact: pathlib.Path, files: pathlib.Path
) -> None:
    """Its left half is transparent, and hides another colour."""
    seen, alpha, exif = gray_image(), np.full((8, 8), 255, np.uint8), Image.Exif()
    alpha[:, :4] = 0
    exif[0x0112] = 6  # to be turned by a quarter to the right
    Image.fromarray(np.ascontiguousarray(np.rot90(np.dstack([seen, alpha])))).save(files / "photo.png", exif=exif)
    line = f"edit {pixel_artifact} --image {files}/photo.png --mask {files}/mask.png --class 1 {QUICK}"
    assert mar(f"{line} --background #0a0a0a --out {files}/edited.png").code == 0
    seen[:, :4] = 10
    assert read(files / "edited.png").tolist() == edited(pixel_artifact, [1], known=seen[..., None])[0].tolist()


def test_image_and_mask_of_any_size_are_scaled_from_the_square_in_their_middle(
    mar: Mar, pixel_artifact: pathlib.Path, files: pathlib.Path
) -> None:
    """The image is 24x16, the mask 96x64 with one white pixel, in the first of the 8x8 pixels."""
    Image.new("L", (24, 16), 77).save(files / "photo.png")
    large = np.zeros((64, 96), np.uint8)
    large[3, 16 + 2] = 255
    Image.fromarray(large).save(files / "large.png")
    ended = mar(
        f"edit {pixel_artifact} --image {files}/photo.png --mask {files}/large.png --class 1 {QUICK} "
        f"--out {files}/edited.png"
    )
    assert ended.err == (
        f"{files}/photo.png: 24x16, the square in its middle scaled to 8x8\n"
        f"{files}/large.png: 96x64, the square in its middle scaled to 8x8\n"
    )
    assert ended.out.startswith("1 of 4 tokens regenerated")
    changed = read(files / "edited.png") != 77
    assert not changed.reshape(-1)[1:].any()


def test_the_image_may_be_edited_in_its_own_file(mar: Mar, pixel_artifact: pathlib.Path, files: pathlib.Path) -> None:
    image = files / "gray.png"
    line = f"edit {pixel_artifact} --image {image} --mask {files}/mask.png --class 1 {QUICK} --out {image}"
    assert mar(f"{line} --force").code == 0
    assert read(image).tolist() == edited(pixel_artifact, [1])[0].tolist()


def test_without_pasting_all_pixels_of_a_token_are_new(
    mar: Mar, pixel_artifact: pathlib.Path, files: pathlib.Path
) -> None:
    line = f"edit {pixel_artifact} --image {files}/gray.png --mask {files}/mask.png --class 1 {QUICK}"
    assert mar(f"{line} --no-paste --out {files}/edited.png").code == 0
    found = read(files / "edited.png")
    assert found.tolist() == edited(pixel_artifact, [1], paste=False)[0].tolist()
    assert (found != gray_image())[:4, :4].mean() > 0.8
    assert found[:4, 4:].tolist() == gray_image()[:4, 4:].tolist()


def test_dilating_regenerates_the_neighbours_too(mar: Mar, pixel_artifact: pathlib.Path, files: pathlib.Path) -> None:
    line = f"edit {pixel_artifact} --image {files}/gray.png --mask {files}/mask.png --class 1 {QUICK}"
    ended = mar(f"{line} --dilate --no-paste --out {files}/edited.png")
    assert ended.out.startswith("4 of 4 tokens regenerated (100%)")
    assert read(files / "edited.png").tolist() == edited(pixel_artifact, [1], dilate=True, paste=False)[0].tolist()


def test_several_results_are_a_grid_with_the_class_below(
    mar: Mar, pixel_artifact: pathlib.Path, files: pathlib.Path
) -> None:
    """Eight in a row, each pixel enlarged by 12, as in the grid of mar generate."""
    line = f"edit {pixel_artifact} --image {files}/gray.png --mask {files}/mask.png --class 0 {QUICK}"
    assert mar(f"{line} --count 9 --seed 4 --out {files}/grid.png").code == 0
    sheet = read(files / "grid.png")
    assert sheet.shape == (2 * (96 + 18) + 4, 8 * 100 + 4, 3)
    for number, image in enumerate(edited(pixel_artifact, [0] * 9, seed=4)):
        top, left = 4 + number // 8 * 114, 4 + number % 8 * 100
        shown = sheet[top : top + 96, left : left + 96, 0]
        assert shown.tolist() == image.repeat(12, axis=0).repeat(12, axis=1).tolist()
        assert sheet[top + 96 : top + 110, left : left + 96].min() < 128  # its caption


def test_a_class_is_its_number_or_its_name_in_any_case(
    mar: Mar, pixel_artifact: pathlib.Path, files: pathlib.Path
) -> None:
    given_files = f"--image {files}/gray.png --mask {files}/mask.png --out {files}/edited.png"
    line = f"edit {pixel_artifact} {given_files} {QUICK} --force"
    for given in ("1", "dog", "DOG"):
        assert mar(f"{line} --class {given}").code == 0
        assert read(files / "edited.png").tolist() == edited(pixel_artifact, [1])[0].tolist()


def test_a_seed_and_the_sampling_options_are_those_of_generate(
    mar: Mar, pixel_artifact: pathlib.Path, files: pathlib.Path
) -> None:
    line = f"edit {pixel_artifact} --image {files}/gray.png --mask {files}/mask.png --class 1 --threads 1"
    assert mar(f"{line} --seed 9 --preset turbo --cfg-scale 3 --out {files}/edited.png").code == 0
    with Generator.load(pixel_artifact, threads=1) as generator:
        known = gray_image()[..., None]
        expected = generator.generate([1], seed=9, edit=Edit(known, mask()), preset="turbo", cfg_scale=3.0).images
    assert expected is not None
    assert read(files / "edited.png").tolist() == expected[0, ..., 0].tolist()


FILES = "--image {files}/gray.png --mask {files}/mask.png"
ALL = f"{FILES} --class 1"
WRONG = [
    ("--mask {files}/mask.png --class 1", "Missing option '--image'"),
    ("--image {files}/gray.png --class 1", "Missing option '--mask'"),
    (f"{ALL} --class 0", "an edit takes one class, found --class 2 times; remove the others"),
    (f"{FILES} --class dragon", "class 'dragon' is unknown; this model has cat, dog"),
    (f"{FILES} --class 2", "class 2 is out of range; this model has classes 0..1"),
    (f"{FILES} --class -1", "class -1 is out of range"),
    (f"{ALL} --out edited.jpg", "edited.jpg: images are written as PNG; give a name that ends in .png"),
    (f"{ALL} --count 0", "0 is not in the range 1<=x<=1024"),
    (f"{ALL} --count 1025", "1025 is not in the range"),
    (f"{ALL} --seed -1", "seed must be a whole number in 0..2^64-1, found -1"),
    (f"{ALL} --iterations 5", "iterations must lie in 1..4"),
    (f"{ALL} --preset nope", "'nope'"),
    (f"{ALL} --mask {{files}}/black.png", "black.png: the mask has no white pixel"),
    (f"{ALL} --image {{files}}/wide.png", "mask.png: 8x8 pixels, but "),
    (f"{ALL} --mask {{files}}/wide.png", "wide.png: 12x8 pixels, but "),
    (f"{ALL} --image {{files}}/line.png", "mask.png: 8x8 pixels, but "),
    (FILES, "give --class, the class of the image; the model has 2 classes"),
    *(
        (f"{ALL} --{option} {{files}}/{name}", f"{name}: not a readable image")
        for option in ("image", "mask")
        for name in ("missing.png", "folder.png", "empty.png", "text.png", "cut.png", "garbled.png", "broken.png")
    ),
    *(
        (f"{ALL} --{option} {{files}}/float.tif", "float.tif: not a readable image (its pixels are numbers of 32 bits")
        for option in ("image", "mask")
    ),
    (f"{ALL} --background nope", "--background must be a colour such as white or #808080, found 'nope'"),
]


@pytest.mark.parametrize(("line", "message"), WRONG, ids=lambda part: part.replace("{files}/", "")[-48:])
def test_wrong_use_of_edit_is_one_line_and_writes_nothing(
    mar: Mar, pixel_artifact: pathlib.Path, files: pathlib.Path, line: str, message: str
) -> None:
    before = sorted(files.iterdir())
    ended = mar(f"edit {pixel_artifact} --out {files}/edited.png --threads 1 {line.format(files=files)}")
    assert ended.code == 2
    assert ended.err.startswith("mar: ")
    assert ended.err.count("\n") == 1
    assert message in ended.err
    assert ended.out == ""
    assert sorted(files.iterdir()) == before


def test_an_artifact_that_only_generates_latents_is_refused(
    mar: Mar, latents_only: pathlib.Path, files: pathlib.Path
) -> None:
    ended = mar(f"edit {latents_only} {ALL.format(files=files)} --out {files}/edited.png --threads 1")
    assert ended.code == 2
    assert ended.err == f"mar: {latents_only} has no tokenizer, so it cannot read or generate images\n"
    assert not (files / "edited.png").exists()


def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    mar: Mar, pixel_artifact: pathlib.Path, files: pathlib.Path
) -> None:
    ended = mar(f"edit {pixel_artifact} {ALL.format(files=files)} --out {files}/folder.png --threads 1")
    assert ended.code == 2
    assert ended.err == f"mar: --out {files}/folder.png is a folder; give the name of a PNG file\n"
