"""`mar generate` as its users see it: each image in its own file, runs that go on, shards, and images that tell."""

from __future__ import annotations

import json
import pathlib
import shlex
import shutil
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import MANIFEST
from runtime.cli.generate_grid import check_grid
from runtime.errors import RequestError
from runtime.generator import Generator
from runtime.image_records.encoding import encode_image, read_records
from runtime.image_records.folder import ImageFolder
from runtime.image_records.index import INDEX
from runtime.image_records.record import ImageRecord, settings_values
from runtime.sampling.settings import Sampling
from tests.helpers.command_line import Mar

QUICK = "--iterations 2 --diffusion-steps ddim2 --threads 1"


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith("index-")}


def pixels(file: pathlib.Path) -> list[list[int]]:
    with Image.open(file) as image:
        values: list[list[int]] = np.asarray(image).tolist()
        return values


@pytest.fixture
def line(pixel_artifact: pathlib.Path) -> str:
    """Seven images in batches of two."""
    return f"generate {pixel_artifact} --class dog --class cat --count 7 --seed 3 --batch-size 2 {QUICK}"


@pytest.fixture
def whole(mar: Mar, line: str, tmp_path: pathlib.Path) -> dict[str, bytes]:
    """What one run writes that nobody stops."""
    ended = mar(f"{line} --out-dir {tmp_path}/whole")
    assert ended.code == 0, ended.err
    assert ended.out.startswith("7 images in ")
    assert ended.out.endswith(f"images written to {tmp_path}/whole\n")
    return contents(tmp_path / "whole")


def test_each_image_is_a_file_of_its_own(
    pixel_artifact: pathlib.Path, tmp_path: pathlib.Path, whole: dict[str, bytes]
) -> None:
    with Generator.load(pixel_artifact, threads=1) as generator:
        result = generator.generate([1, 0] * 3 + [1], seed=3, iterations=2, diffusion_steps="ddim2")
    assert result.images is not None
    lines = [json.loads(line) for line in whole[INDEX].splitlines()]
    assert [entry["file"] for entry in lines] == [
        f"{label:03}-{name}-seed3-{index:06}.png"
        for index, (label, name) in enumerate([(1, "dog"), (0, "cat")] * 3 + [(1, "dog")])
    ]
    for entry, image, record in zip(lines, result.images, result.records, strict=True):
        assert pixels(tmp_path / "whole" / entry["file"]) == image[..., 0].tolist()
        assert read_records(tmp_path / "whole" / entry["file"]) == (record,)


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_run_that_was_stopped_goes_on(
    mar: Mar, line: str, tmp_path: pathlib.Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    add, calls = ImageFolder.add, []

    def stop(self: ImageFolder, *arguments: Any) -> None:
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(1)
        add(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(ImageFolder, "add", stop)
        assert mar(f"{line} --out-dir {tmp_path}/out").code == 130
    ended = mar(f"{line} --out-dir {tmp_path}/out")
    assert ended.code == 0
    assert ended.err == (f"{2 * after} of 7 images are in {tmp_path}/out already\n" if after else "")
    assert ended.out.startswith(f"{7 - 2 * after} images in ")
    assert contents(tmp_path / "out") == whole
    ended = mar(f"{line} --out-dir {tmp_path}/out")
    assert (ended.code, ended.out) == (0, f"images written to {tmp_path}/out\n")
    assert contents(tmp_path / "out") == whole


def test_other_settings_do_not_go_on_in_its_folder(
    mar: Mar, line: str, tmp_path: pathlib.Path, whole: dict[str, bytes]
) -> None:
    ended = mar(f"{line} --cfg-scale 3 --out-dir {tmp_path}/whole")
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert "seed3-000000.png was made with cfg_scale 1.5 instead of 3.0; choose another folder" in ended.err
    assert contents(tmp_path / "whole") == whole


def test_shards_make_what_one_process_makes(
    mar: Mar, line: str, tmp_path: pathlib.Path, whole: dict[str, bytes]
) -> None:
    for shard in (3, 1, 2):
        assert INDEX not in {path.name for path in tmp_path.glob("out/*")}
        ended = mar(f"{line} --shard {shard}/3 --out-dir {tmp_path}/out")
        assert ended.code == 0
        assert ("as soon as all 3 shards are complete" in ended.err) == (shard != 2)
    assert contents(tmp_path / "out") == whole


def test_a_shard_without_a_batch_says_so(mar: Mar, line: str, tmp_path: pathlib.Path) -> None:
    ended = mar(f"{line} --shard 1/5 --out-dir {tmp_path}/out")
    assert ended.code == 0
    assert ended.err.startswith(
        "this shard has no images: 7 images in batches of 2 are 4 batches; a smaller --batch-size"
    )


def test_a_run_can_begin_at_any_image_and_add_to_a_folder(
    mar: Mar, line: str, tmp_path: pathlib.Path, whole: dict[str, bytes]
) -> None:
    first = line.replace("--count 7", "--count 4")
    assert mar(f"{first} --out-dir {tmp_path}/out").code == 0
    assert mar(f"{first.replace('--count 4', '--count 3')} --first 4 --out-dir {tmp_path}/out").code == 0
    assert contents(tmp_path / "out") == whole


def test_one_seed_for_each_class_or_several_of_one_class(
    mar: Mar, pixel_artifact: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    each = f"generate {pixel_artifact} {QUICK} --class 1 --class 0 --seed 7 --seed 8 --out-dir {tmp_path}/out"
    assert mar(f"{each} --count 3").code == 0
    assert mar(f"generate {pixel_artifact} {QUICK} --class 1 --seed 9 --seed 10 --out-dir {tmp_path}/out").code == 0
    names = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert names == [
        "000-cat-seed8-000000.png",
        "001-dog-seed10-000000.png",
        "001-dog-seed7-000000.png",
        "001-dog-seed7-000001.png",
        "001-dog-seed9-000000.png",
    ]
    with Generator.load(pixel_artifact, threads=1) as generator:
        alone = generator.generate([0], seed=8, iterations=2, diffusion_steps="ddim2").images
    assert alone is not None
    assert pixels(tmp_path / "out" / names[0]) == alone[0, ..., 0].tolist()


def test_one_image_is_bare_tells_how_it_was_made_and_is_made_again(
    mar: Mar, pixel_artifact: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    line = (
        f"generate {pixel_artifact} --class dog --count 1 --seed 5 --first 2 --preset turbo --iterations 3 --threads 1"
    )
    ended = mar(f"{line} --out {tmp_path}/one.png")
    assert ended.out.endswith(f"image written to {tmp_path}/one.png\n")
    assert np.shape(pixels(tmp_path / "one.png")) == (8, 8)
    shown = mar(f"inspect {tmp_path}/one.png").out
    for text in ("class 1 dog, seed 5, index 2", "preset      turbo", "iterations 3", "made by mar "):
        assert text in shown
    command = next(line for line in shown.splitlines() if line.startswith("make again  mar "))
    words = shlex.split(command.removeprefix("make again  mar "))
    words = [{"ARTIFACT": str(pixel_artifact), "IMAGE.png": f"{tmp_path}/again.png"}.get(word, word) for word in words]
    assert mar(shlex.join([*words, "--threads", "1"])).code == 0
    assert (pixels(tmp_path / "again.png")) == pixels(tmp_path / "one.png")
    assert read_records(tmp_path / "again.png") == read_records(tmp_path / "one.png")


def test_an_edit_of_it_tells_how_it_was_made_too(
    mar: Mar, pixel_artifact: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    assert mar(f"generate {pixel_artifact} --class dog --count 1 {QUICK} --out {tmp_path}/IMAGE").code == 0
    Image.fromarray((np.indices((8, 8))[1] > 3).astype(np.uint8) * 255).save(tmp_path / "MASK", "PNG")
    line = f"edit {pixel_artifact} --image {tmp_path}/IMAGE --mask {tmp_path}/MASK --class cat --first 4 --no-paste"
    assert mar(f"{line} {QUICK} --out {tmp_path}/edited.png").code == 0
    shown = mar(f"inspect {tmp_path}/edited.png").out
    assert "given       an image, a mask" in shown
    words = shlex.split(shown.splitlines()[-1].removeprefix("make again  mar "))
    assert "--no-paste" in words
    named = {"ARTIFACT": str(pixel_artifact), "IMAGE.png": f"{tmp_path}/again.png"}
    named |= {name: f"{tmp_path}/{name}" for name in ("IMAGE", "MASK")}
    assert mar(shlex.join([*[named.get(word, word) for word in words], "--threads", "1"])).code == 0
    assert pixels(tmp_path / "again.png") == pixels(tmp_path / "edited.png")
    assert read_records(tmp_path / "again.png") == read_records(tmp_path / "edited.png")


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (["prompt_embeds"], "a prompt"),
        (["order", "image", "mask"], "the generation order, an image, a mask"),
        (["latents", "state"], "latents, state"),
    ],
    ids=str,
)
def test_what_only_python_can_give_has_no_command(
    mar: Mar, tmp_path: pathlib.Path, given: list[str], shown: str
) -> None:
    record = ImageRecord(0, "", 0, 0, settings_values(Sampling()), None, "a" * 64, given=dict.fromkeys(given, "b" * 64))
    (tmp_path / "image.png").write_bytes(encode_image(np.zeros((8, 8, 1), np.uint8), record))
    ended = mar(f"inspect {tmp_path}/image.png")
    assert ended.code == 0, ended.err
    assert f"given       {shown}\n" in ended.out
    assert ended.out.endswith("make again  with Generator.generate in Python; no command takes what was given\n")


def test_a_grid_tells_of_all_its_images(mar: Mar, line: str, tmp_path: pathlib.Path) -> None:
    assert mar(f"{line} --out {tmp_path}/grid.png").code == 0
    shown = mar(f"inspect {tmp_path}/grid.png").out
    assert "a grid of 7 images" in shown
    assert shown.count("\nimage       class ") == 7
    assert mar(f"inspect --verify {tmp_path}/grid.png").code == 2


def test_a_quantized_artifact_with_another_plan_than_its_own_is_told(
    mar: Mar, pixel_artifact: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    artifact = pathlib.Path(shutil.copytree(pixel_artifact, tmp_path / "artifact"))
    manifest = json.loads((artifact / MANIFEST).read_text())
    plan = Artifact(pixel_artifact).manifest.describe_plan(
        Sampling(iterations=4, cfg_scale=1.5, diffusion_steps="ddim2")
    )
    (artifact / MANIFEST).write_text(json.dumps({**manifest, "provenance": {"calibrated_for": plan}}))
    line = f"generate {artifact} --class 0 --diffusion-steps ddim2 --threads 1 --out {tmp_path}/image.png"
    assert mar(line).err == ""
    told = mar(f"{line} --iterations 2 --force").err
    assert told.startswith("this fp32 artifact was calibrated for iterations 4, and is used with iterations 2; ")
    assert told.count("\n") == 1


@pytest.mark.parametrize(("count", "columns", "size"), [(1000, 1000, 256), (1001, 8, 8), (1000, 8, 256)])
def test_a_grid_that_is_too_large_is_refused(count: int, columns: int, size: int) -> None:
    check_grid(1000, 100, (32, 32), "")
    with pytest.raises(RequestError, match=rf"a grid of {count} images.*pixels a side; use --out-dir"):
        check_grid(count, columns, (size, size), "use --out-dir")
