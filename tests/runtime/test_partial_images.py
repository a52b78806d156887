"""Images that are still being generated: the tokens known so far, decoded, on the host and on a GPU."""

from __future__ import annotations

import pathlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.errors import RequestError
from runtime.generator import Generator
from runtime.requests.inpainting import Edit

SETTINGS: dict[str, Any] = {"iterations": 4, "diffusion_steps": "ddim5", "cfg_scale": 2.0}
GREY = 128
Images = NDArray[np.uint8]


@pytest.fixture(scope="module")
def pixels(pixel_artifact: pathlib.Path) -> Iterator[Generator]:
    with Generator.load(pixel_artifact, threads=1) as generator:
        yield generator


def watched(generator: Generator, labels: list[int], places: list[int], **request: Any) -> tuple[Images, list[Images]]:
    """The finished images of some places, and the same images after each iteration."""
    shown: list[Images] = []

    def progress(done: int, total: int) -> None:
        shown.append(generator.partial_images(places))

    images = generator.generate(labels, progress=progress, **(SETTINGS | request)).images
    assert images is not None
    return images[places], shown


def test_known_tokens_are_those_of_the_finished_image_and_the_others_grey(pixels: Generator) -> None:
    finished, shown = watched(pixels, [0, 1, 0], [2, 0])
    assert len(shown) == 4
    known = [(each == finished).all(-1) for each in shown]
    for each, mask in zip(shown, known, strict=True):
        assert np.isin(each[~mask], GREY).all()
    counts = [int((each != GREY).any(-1).sum()) for each in shown]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]
    assert np.array_equal(shown[-1], finished)


def test_watching_changes_no_image(pixels: Generator) -> None:
    finished, _ = watched(pixels, [0, 1], [0, 1], seed=3)
    alone = pixels.generate([0, 1], seed=3, **SETTINGS).images
    assert np.array_equal(finished, alone)


def test_an_edit_shows_the_known_pixels_from_the_start(pixels: Generator) -> None:
    known = np.random.default_rng(0).integers(0, 256, (8, 8, pixels.manifest.model.vae_embed_dim), np.uint8)
    mask = np.zeros((8, 8), bool)
    mask[:4] = True
    finished, shown = watched(pixels, [1], [0], edit=Edit(known, mask))
    for each in shown:
        assert np.array_equal(each[0][~mask], known[~mask])
    assert np.array_equal(shown[-1], finished)


def test_a_decoder_decodes_what_is_known(kl_artifact: pathlib.Path) -> None:
    with Generator.load(kl_artifact, threads=1) as generator:
        finished, shown = watched(generator, [0, 2], [1])
    assert np.array_equal(shown[-1], finished)
    distances = [float(np.abs(each.astype(int) - finished).mean()) for each in shown]
    assert distances[0] > distances[-1] == 0


@pytest.mark.parametrize("place", [2, -1, 0.5])
def test_a_place_outside_the_batch_is_one_line(pixels: Generator, place: Any) -> None:
    with pytest.raises(RequestError, match=r"a place of partial_images must be a whole number in 0\.\.1"):
        watched(pixels, [0, 1], [0, place])


def test_it_is_for_progress_callbacks_only(pixels: Generator, golden_artifacts: dict[str, pathlib.Path]) -> None:
    refused: list[str] = []

    def attempt(*_: int) -> None:
        try:
            pixels.partial_images([0])
        except RequestError as error:
            refused.append(str(error))

    def from_another_thread(done: int, total: int) -> None:
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()

    attempt()
    pixels.generate([0], progress=from_another_thread, **(SETTINGS | {"iterations": 1}))
    attempt()
    assert len(refused) == 3
    assert all("call it in a progress callback" in line for line in refused)
    with (
        Generator.load(golden_artifacts["small"], threads=1) as without_decoder,
        pytest.raises(RequestError, match="no decoder"),
    ):
        watched(without_decoder, [0], [0])
