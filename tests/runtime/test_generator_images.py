"""The Python interface beyond arrays: classes by name, a seed for each image, records, files, progress, cancelling."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
import pytest

from runtime.artifact.manifest import Manifest
from runtime.errors import RequestError
from runtime.generator import Generator
from runtime.image_records.encoding import read_records
from runtime.image_records.index import INDEX, read_index
from runtime.model.config import ModelConfig
from runtime.requests.inpainting import Edit
from runtime.result import Result
from runtime.sampling.settings import Sampling
from tests.helpers.fake_generators import fake_generator

SMALL = {f"{half}_{name}": size for half in ("encoder", "decoder") for name, size in (("depth", 1), ("num_heads", 2))}
WIDTHS = {"encoder_embed_dim": 16, "decoder_embed_dim": 16}
MODEL = ModelConfig(img_size=8, vae_stride=1, patch_size=2, vae_embed_dim=1, class_num=3, **SMALL, **WIDTHS)
OWN = Sampling(diffusion_steps=4, iterations=2)
MANIFEST = Manifest(
    MODEL, "pixel", ("cat", "dog", "10"), OWN, "fp32", {}, {}, {}, {}, presets={"mine": Sampling(iterations=3)}
)


def loop(plan: Any, condition: Any, order: Any, noise: Any, known: Any, progress: Any) -> Any:
    """Images of the first noise and the class, with progress after each iteration."""
    for number in range(len(plan.iterations)):
        if progress is not None:
            progress(number + 1, len(plan.iterations), lambda: noise[0])
    labels = condition[: noise.shape[2]]  # of the conditional half
    return np.float32(0.2) * (noise[0] + labels[None, :, None])


@pytest.fixture
def generator() -> Generator:
    return Generator(MANIFEST, None, "noise", loop=loop)  # type: ignore[arg-type]


def images(result: Result) -> list[bytes]:
    assert result.images is not None
    return [image.tobytes() for image in result.images]


def test_classes_are_named_or_numbered(generator: Generator) -> None:
    assert generator.class_names == ("cat", "dog", "10")
    expected = images(generator.generate([1, 0, 2, 2]))
    assert images(generator.generate(["dog", 0, "index:2", "10"])) == expected
    assert images(generator.generate(np.array(["DOG", "cat", "10", "10"]))) == expected
    (batch,) = generator.generate_batches(["dog", "cat", 2, 2], 4)
    assert images(batch) == expected


def test_each_image_can_have_its_own_seed(generator: Generator) -> None:
    """The images are those that each seed gives alone, whatever they share a batch with."""
    together = generator.generate([0, 1, 2, 1, 0], seed=[7, 2**64 - 1, 7, 3, 7])
    assert [(record.seed, record.index) for record in together.records] == [
        (7, 0),
        (2**64 - 1, 0),
        (7, 1),
        (3, 0),
        (7, 2),
    ]
    alone = {seed: images(generator.generate(labels, seed=seed)) for seed, labels in ((7, [0, 2, 0]), (3, [1]))}
    alone[2**64 - 1] = images(generator.generate([1], seed=2**64 - 1))
    assert images(together) == [alone[record.seed][record.index] for record in together.records]
    batches = generator.generate_batches([0, 1, 2, 1, 0], 2, seed=np.array([7, 2**64 - 1, 7, 3, 7], np.uint64))
    assert [image for batch in batches for image in images(batch)] == images(together)


def test_presets_and_the_size_of_images_can_be_listed(generator: Generator) -> None:
    assert list(generator.presets) == ["exact", "balanced", "fast", "turbo", "instant", "mine"]
    assert generator.presets["mine"].iterations == 3
    assert generator.presets["turbo"] == generator.sampling(preset="turbo")
    assert generator.image_size == 8


def test_a_record_says_how_its_image_was_made(generator: Generator) -> None:
    request: dict[str, Any] = {"seed": 3, "index": [5, 6], "preset": "fast", "cfg_scale": 2.0}
    records = generator.records(["dog", "cat"], **request)
    assert generator.generate(["dog", "cat"], **request).records == records
    assert [record.class_name for record in records] == ["dog", "cat"]
    assert [record.index for record in records] == [5, 6]
    assert records[0].preset == "fast"
    assert records[0].artifact_sha256 == MANIFEST.content_sha256
    again = [record.class_number for record in records]
    settings = Sampling(**records[0].settings)
    assert generator.sampling(sampling=settings) == generator.sampling(preset="fast", cfg_scale=2.0)
    assert images(generator.generate(again, seed=3, index=[5, 6], sampling=settings)) == images(
        generator.generate(["dog", "cat"], **request)
    )


def test_records_tell_what_the_caller_gave(generator: Generator) -> None:
    order = np.arange(16)[None]
    masks = [np.eye(4) > 0, np.eye(4) == 0]
    edits = [Edit(np.full((8, 8, 1), gray, np.uint8), mask) for gray in (0, 9) for mask in masks]
    results = [generator.generate([0], edit=edit) for edit in edits]
    results += [generator.generate([0], order=order), generator.generate([0], order=order[:, ::-1])]
    records = [result.records[0] for result in results]
    assert [sorted(record.given) for record in records] == [["image", "mask"]] * 4 + [["order"]] * 2
    assert len({str(record) for record in records}) == len(records)
    assert [record.is_edit for record in records] == [True] * 4 + [False] * 2
    dilated = generator.generate([0], edit=dataclasses.replace(edits[0], dilate=True, paste=False)).records[0]
    assert (dilated.dilate, dilated.paste) == (True, False)


def test_a_result_writes_its_images(generator: Generator, tmp_path: pathlib.Path) -> None:
    result = generator.generate(["dog", "cat"], seed=4)
    files = result.save(tmp_path / "new" / "images")
    assert [file.name for file in files] == ["001-dog-seed4-000000.png", "000-cat-seed4-000001.png"]
    assert [read_records(file) for file in files] == [(record,) for record in result.records]
    assert [np.asarray(image).tobytes() for image in result.pil()] == images(result)
    assert result.save(str(tmp_path / "new" / "images")) == files  # the same again is left as it is
    generator.generate([2], seed=4, index=[2]).save(tmp_path / "new" / "images")
    assert len(read_index(tmp_path / "new" / "images" / INDEX)) == 3
    with pytest.raises(RequestError, match="was made with iterations 2 instead of 1"):
        generator.generate(["dog"], seed=4, iterations=1).save(tmp_path / "new" / "images")
    with pytest.raises(RequestError, match="must be a path"):
        result.save(3)  # type: ignore[arg-type]


def test_a_result_without_images_says_so(tmp_path: pathlib.Path) -> None:
    model = dataclasses.replace(MODEL, vae_embed_dim=4)
    no_decoder: Any = dataclasses.make_dataclass("Engines", [("decoder", object, None)])()
    latents_only = Generator(dataclasses.replace(MANIFEST, model=model, tokenizer="none"), no_decoder, "", loop=loop)
    result = latents_only.generate([0])
    for use in (result.pil, lambda: result.save(tmp_path / "images")):
        with pytest.raises(
            RequestError, match=r"there are no images: the artifact has no decoder, or decode_batch was"
        ):
            use()
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_the_iterations_of_all_batches(generator: Generator) -> None:
    calls: list[tuple[int, int]] = []
    list(generator.generate_batches([0] * 5, 2, progress=lambda done, total: calls.append((done, total))))
    assert calls == [(done, 6) for done in range(1, 7)]


class CancelledError(Exception):
    """Raised by a caller that no longer wants its images."""


@pytest.mark.parametrize("at", [1, 2])
def test_an_exception_in_progress_cancels_and_the_generator_stays_usable(generator: Generator, at: int) -> None:
    expected = images(generator.generate([0, 1]))

    def progress(done: int, total: int) -> None:
        if done == at:
            raise CancelledError

    for _ in range(3):
        with pytest.raises(CancelledError):
            generator.generate([0, 1], progress=progress)
        batches = generator.generate_batches([0, 1], 1, progress=progress)
        with pytest.raises(CancelledError):
            list(batches)
        assert images(generator.generate([0, 1])) == expected


def test_the_hash_of_an_artifact_is_that_of_what_decides_its_images() -> None:
    def changed(**fields: Any) -> str:
        return dataclasses.replace(MANIFEST, **fields).content_sha256

    same = [changed(presets={}), changed(class_names=()), changed(sampling=Sampling()), changed(provenance={"a": "b"})]
    assert {*same} == {MANIFEST.content_sha256}
    assert changed(tokenizer="none") != MANIFEST.content_sha256
    assert changed(model=dataclasses.replace(MODEL, class_num=4)) != MANIFEST.content_sha256


def test_a_calibrated_artifact_names_both_plans() -> None:
    calibrated = dataclasses.replace(
        MANIFEST, precision="int8", provenance={"calibrated_for": MANIFEST.describe_plan(OWN)}
    )
    assert calibrated.calibration_note(OWN) is None
    assert MANIFEST.calibration_note(Sampling()) is None
    note = calibrated.calibration_note(dataclasses.replace(OWN, iterations=4, cfg_interval=(0.1, 1.0)))
    assert note is not None
    assert "this int8 artifact was calibrated for iterations 2, cfg_interval (0.0, 1.0), and is used with " in note
    assert "iterations 4, cfg_interval (0.1, 1.0); " in note
    default = dataclasses.replace(calibrated, provenance={"calibrated_for": MANIFEST.describe_plan(Sampling())})
    assert default.calibration_note(Sampling(iterations=16)) is None  # which is what it has by default


def test_an_image_that_is_edited_several_times_is_encoded_once() -> None:
    encoded: list[int] = []

    def encoder(image: Any) -> tuple[Any]:
        encoded.append(len(image))
        return (image,)

    known = np.random.default_rng(0).integers(0, 256, (16, 16, 1), np.uint8)
    mask = np.indices((16, 16))[1] > 7
    with fake_generator(tokenizer="kl") as fake:
        engines = dataclasses.replace(fake.engines, encoder=encoder)
        generator = Generator(fake.manifest, engines, "", loop=fake.loop)
        one = generator.generate([0, 1, 2], edit=Edit(known, mask)).latents
        assert encoded == [1]
        three = generator.generate([0, 1, 2], edit=Edit(np.stack([known] * 3), mask)).latents
        assert encoded == [1] * 4
    assert np.array_equal(one, three)
