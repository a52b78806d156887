"""Edits by a trained model: what it generates has the requested class and fits the known pixels."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.generator import Generator
from runtime.model.latents import from_uint8
from runtime.requests.inpainting import Edit
from runtime.sampling.settings import Sampling
from tests.helpers.edits import Bool, enlarged, images_of

SAMPLING = Sampling(iterations=8, sampler="ddim", diffusion_steps=10, cfg_scale=3.0)


@pytest.fixture(scope="module")
def fashion(example_artifact: pathlib.Path) -> Iterator[Generator]:
    with Generator.load(example_artifact, threads=1) as generator:
        yield generator


def directions(images: NDArray[np.uint8], inside: Bool) -> NDArray[np.float64]:
    """The masked pixels of images [B, H, W, 1], as vectors of mean 0 and length 1."""
    vectors: NDArray[np.float64] = images[:, inside, 0].astype(np.float64)
    vectors -= vectors.mean(axis=1, keepdims=True)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def test_a_trained_model_turns_most_of_an_image_into_another_class_and_keeps_the_rest(fashion: Generator) -> None:
    """Trousers, pullovers and boots are turned into each other; the nearest class mean tells the class of a result."""
    classes, count, edits = [1, 2, 9], 6, 8
    examples = images_of(
        fashion.generate([label for label in classes for _ in range(count)], seed=1, sampling=SAMPLING)
    )
    mask = np.ones((8, 8), bool)
    mask[0] = False  # the uppermost eighth is known
    inside = enlarged(mask, 4)
    labels = np.repeat([0, 1, 2], edits)
    before = (labels + 1 + np.arange(3 * edits) % 2) % 3  # one of the other two
    known = examples[before * count + np.arange(3 * edits) % count]
    result = fashion.generate([classes[label] for label in labels], seed=2, edit=Edit(known, inside), sampling=SAMPLING)
    images = images_of(result)
    assert images[:, ~inside].tobytes() == known[:, ~inside].tobytes()
    assert result.latents[:, :, ~inside].tobytes() == from_uint8(known)[:, :, ~inside].tobytes()
    means = directions(examples, inside).reshape(3, count, -1).mean(axis=1)
    nearest = (directions(images, inside) @ means.T).argmax(axis=1)
    assert (nearest == labels).mean() >= 0.8
    assert (nearest == before).mean() <= 0.2


def test_a_trained_model_repairs_an_image_from_its_known_pixels(fashion: Generator) -> None:
    """The regenerated middle of a boot is nearer to the original than the middle of another generated boot."""
    boots = images_of(fashion.generate([9] * 6, seed=4, sampling=SAMPLING))
    mask = np.zeros((8, 8), bool)
    mask[3:5, 2:6] = True
    inside = enlarged(mask, 4)
    repaired, others = (
        images_of(fashion.generate([9] * 6, seed=7, edit=edit, sampling=SAMPLING)) for edit in (Edit(boots, mask), None)
    )
    distances = [np.abs(images[:, inside].astype(float) - boots[:, inside]).mean() for images in (repaired, others)]
    assert distances[0] < 0.8 * distances[1]
