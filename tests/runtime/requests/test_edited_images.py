"""Images that are edited: known tokens and pixels stay as they are, the others are generated to fit them."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from runtime.generator import Generator
from runtime.model.latents import from_uint8
from runtime.requests.inpainting import EditMask, check_mask
from runtime.sampling.plan import Plan
from runtime.sampling.rng import TOKEN_ORDERS, seeded_noise, seeded_order
from tests.helpers.distance import relative_l2
from tests.helpers.edits import (
    FAST,
    Bool,
    enlarged,
    generate_edit,
    identical,
    images_of,
    masks,
    random_images,
    random_latents,
)

few_examples = settings(max_examples=25)


@pytest.fixture(scope="module")
def generators(
    golden_artifacts: dict[str, pathlib.Path], pixel_artifact: pathlib.Path
) -> Iterator[dict[str, Generator]]:
    """`small`, latents of 4x4 tokens; `patch2`, latents whose tokens are 2x2; `pixel`, images of 8x8 pixels."""
    loaded = {
        name: Generator.load(path, threads=1) for name, path in {**golden_artifacts, "pixel": pixel_artifact}.items()
    }
    yield loaded
    for generator in loaded.values():
        generator.close()


@pytest.fixture(scope="module", params=["small", "patch2", "pixel"])
def generator(request: pytest.FixtureRequest, generators: dict[str, Generator]) -> Generator:
    return generators[request.param]


@pytest.fixture(scope="module")
def pixel(generators: dict[str, Generator]) -> Generator:
    """Four tokens of 4x4 pixels, one value each."""
    return generators["pixel"]


def scales(plan: Plan) -> list[float]:
    return [iteration.guidance_scale for iteration in plan.iterations]


def generated_latents(mask: EditMask, generator: Generator) -> Bool:
    """The latents of masked tokens, bool [h, w]."""
    config = generator.manifest.model
    return enlarged(mask.tokens.reshape(config.grid, config.grid), config.patch_size)


@few_examples
@given(data=st.data())
def test_latents_outside_the_mask_keep_their_bits_and_all_others_are_generated(
    generator: Generator, data: st.DataObject
) -> None:
    config, known = generator.manifest.model, random_latents(generator, 2)
    mask = data.draw(masks(config.grid) | masks(config.img_size if config.img_size < 16 else config.grid))
    dilate = data.draw(st.booleans())
    masked = generated_latents(check_mask(mask, dilate, config), generator)
    found = generate_edit(generator, [0, 1], known=known, mask=mask, dilate=dilate).latents
    assert found.dtype == np.float32
    assert found[..., ~masked].tobytes() == known[..., ~masked].tobytes()
    assert (found[..., masked] != known[..., masked]).all()


def test_a_mask_of_pixels_regenerates_only_the_tokens_that_contain_them(
    generators: dict[str, Generator],
) -> None:
    """A token is 16x16 of the 64x64 pixels: the masked pixels are in the tokens (0, 0) and (2, 3)."""
    generator = generators["small"]
    mask, known = np.zeros((64, 64), bool), random_latents(generator, 1)
    mask[15, 15] = mask[32, 63] = True
    found = generate_edit(generator, [3], known=known, mask=mask).latents
    changed = (found != known).any(axis=1)[0]
    assert np.argwhere(changed).tolist() == [[0, 0], [2, 3]]


@few_examples
@given(mask=masks(8) | masks(2))
def test_pixels_outside_the_mask_keep_their_bits(pixel: Generator, mask: Bool) -> None:
    known = random_images(2)
    images = images_of(generate_edit(pixel, [0, 1], known=known, mask=mask))
    inside = mask if mask.shape == (8, 8) else enlarged(mask, 4)
    assert images.shape == known.shape
    assert images[:, ~inside].tobytes() == known[:, ~inside].tobytes()
    assert (images[:, inside] != known[:, inside]).any()


def test_known_pixels_are_pasted_into_a_token_that_is_partly_masked(pixel: Generator) -> None:
    """Only masked pixels of the pasted image are new, and they are those of the image without pasting."""
    mask, known = np.zeros((8, 8), bool), random_images(1)[0]
    mask[1, 5] = mask[3, 6] = True  # both in the upper right token
    pasted, complete = (generate_edit(pixel, [1], known=known, mask=mask, paste=paste) for paste in (True, False))
    new = images_of(complete)[0]
    assert pasted.latents.tobytes() == complete.latents.tobytes()
    assert images_of(pasted)[0].tobytes() == np.where(mask[..., None], new, known).tobytes()
    assert (new != known)[:4, 4:].mean() > 0.8  # a few pixels may be equal by chance
    new[:4, 4:] = known[:4, 4:]
    assert new.tobytes() == known.tobytes()


def test_a_mask_of_tokens_is_the_same_as_the_mask_of_their_pixels(pixel: Generator) -> None:
    mask, known = np.array([[True, False], [False, True]]), random_images(1)[0]
    tokens, pixels = (generate_edit(pixel, [1], known=known, mask=shape) for shape in (mask, enlarged(mask, 4)))
    assert identical(tokens, pixels)


def test_dilate_regenerates_the_tokens_of_the_dilated_mask(generators: dict[str, Generator]) -> None:
    generator = generators["small"]
    known, corner, dilated = random_latents(generator, 1), np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    corner[3, 0] = dilated[2:, :2] = True
    found = generate_edit(generator, [2], known=known, mask=corner, dilate=True)
    assert identical(found, generate_edit(generator, [2], known=known, mask=dilated))
    assert not identical(found, generate_edit(generator, [2], known=known, mask=corner))


def test_dilate_keeps_the_pixels_outside_the_mask(pixel: Generator) -> None:
    mask, known = np.zeros((8, 8), bool), random_images(1)[0]
    mask[0, 0] = True
    image = images_of(generate_edit(pixel, [1], known=known, mask=mask, dilate=True))[0]
    assert image[~mask].tobytes() == known[~mask].tobytes()


@pytest.mark.parametrize("order", TOKEN_ORDERS)
def test_a_mask_of_the_complete_image_generates_the_same_image_as_no_mask(generator: Generator, order: str) -> None:
    size = generator.manifest.model.img_size
    edited = generate_edit(
        generator,
        [1, 0],
        seed=5,
        token_order=order,
        known=random_latents(generator, 1)[0],
        mask=np.ones((size, size), bool),
    )
    plain = generate_edit(generator, [1, 0], seed=5, token_order=order)
    assert identical(edited, plain)
    assert scales(edited.plan) == scales(plain.plan)


def test_the_last_iterations_are_repeated_if_all_earlier_tokens_are_known(
    generators: dict[str, Generator],
) -> None:
    """Order, guidance and noise of these tokens are the same, and so are the tokens before them."""
    generator = generators["small"]
    request: dict[str, Any] = {"seed": 3, "cfg_scale": 3.0, "mask_schedule": "linear"}
    complete = generate_edit(generator, [4], iterations=4, **request)
    order = seeded_order(3, [0], generator.manifest.model)[0]
    for regenerated in (4, 8, 12):
        mask = np.zeros(16, bool)
        mask[order[-regenerated:]] = True
        forgotten = np.where(mask.reshape(4, 4), np.float32(7), complete.latents[0])
        again = generate_edit(
            generator, [4], iterations=regenerated // 4, known=forgotten, mask=mask.reshape(4, 4), **request
        )
        assert [(step.known, step.count) for step in again.plan.iterations] == [
            (step.known, step.count) for step in complete.plan.iterations[-regenerated // 4 :]
        ]
        assert scales(again.plan) == scales(complete.plan)[-regenerated // 4 :]
        assert relative_l2(again.latents, complete.latents) <= 1e-6


def test_the_generated_part_depends_on_the_known_part(generator: Generator) -> None:
    grid = generator.manifest.model.grid
    mask = np.zeros((grid, grid), bool)
    mask[0, 0] = True
    masked = generated_latents(check_mask(mask, False, generator.manifest.model), generator)
    one, other = (
        generate_edit(generator, [1], known=random_latents(generator, 1, seed=seed), mask=mask).latents[..., masked]
        for seed in (0, 1)
    )
    assert relative_l2(one, other) > 1e-3


def test_known_values_under_the_mask_are_never_read(generator: Generator) -> None:
    grid = generator.manifest.model.grid
    mask = np.zeros((grid, grid), bool)
    mask[0, -1] = mask[-1, 0] = True
    masked = generated_latents(check_mask(mask, False, generator.manifest.model), generator)
    known = random_latents(generator, 2)
    other = np.where(masked, np.float32(100), known)
    assert identical(*(generate_edit(generator, [1, 0], known=latents, mask=mask) for latents in (known, other)))


def test_known_latents_can_be_shared_or_one_for_each_image(generator: Generator) -> None:
    grid, known = generator.manifest.model.grid, random_latents(generator, 2)
    mask = np.zeros((grid, grid), bool)
    mask[0] = True
    for_all = generate_edit(generator, [1, 0], known=known[0], mask=mask)
    assert identical(for_all, generate_edit(generator, [1, 0], known=known[[0, 0]], mask=mask))
    each = generate_edit(generator, [1, 0], known=known, mask=mask)
    assert relative_l2(each.latents[0], for_all.latents[0]) <= 1e-6
    alone = generate_edit(generator, [0], index=[1], known=known[1:], mask=mask)
    assert relative_l2(each.latents[1], alone.latents[0]) <= 1e-5


def test_known_pixels_can_be_shared_or_one_for_each_image(pixel: Generator) -> None:
    known, mask = random_images(2), np.array([[True, True], [False, False]])
    for_all, each, twice = (
        images_of(generate_edit(pixel, [1, 0], known=given, mask=mask)) for given in (known[0], known, known[[0, 0]])
    )
    assert for_all.tobytes() == twice.tobytes()
    assert for_all[:, 4:].tolist() == known[[0, 0], 4:].tolist()
    assert each[:, 4:].tolist() == known[:, 4:].tolist()


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_known_latents_can_have_any_floating_point_dtype_or_be_lists(generator: Generator, dtype: type) -> None:
    grid, known = generator.manifest.model.grid, random_latents(generator, 1)[0].astype(dtype)
    mask = np.zeros((grid, grid), bool)
    mask[0] = True
    found = generate_edit(generator, [1], known=known, mask=mask)
    assert identical(found, generate_edit(generator, [1], known=known.astype(np.float32), mask=mask))
    assert identical(found, generate_edit(generator, [1], known=known.tolist(), mask=mask.tolist()))


def test_a_known_image_gives_the_same_edit_as_its_latents(pixel: Generator) -> None:
    known, mask = random_images(2), np.array([[True, False], [False, False]])
    from_pixels, from_latents = (
        generate_edit(pixel, [1, 0], known=given, mask=mask) for given in (known, from_uint8(known))
    )
    assert identical(from_pixels, from_latents)


def test_an_edit_does_not_depend_on_its_batch_and_differs_by_index(generators: dict[str, Generator]) -> None:
    generator, mask = generators["small"], np.zeros((4, 4), bool)
    mask[1:3, 1:3] = True
    known = random_latents(generator, 1)[0]
    together = generate_edit(generator, [2, 2, 2], seed=3, known=known, mask=mask).latents
    for index in range(3):
        alone = generate_edit(generator, [2], seed=3, index=[index], known=known, mask=mask).latents
        assert relative_l2(together[index], alone[0]) <= 1e-5
    assert len({image.tobytes() for image in together}) == 3


def test_the_order_and_noise_of_a_seed_give_the_same_edit_as_the_seed(generators: dict[str, Generator]) -> None:
    generator, mask = generators["small"], np.zeros((4, 4), bool)
    mask[:3] = True
    config, known = generator.manifest.model, random_latents(generator, 2)
    order, noise = seeded_order(3, [0, 1], config), seeded_noise(3, [0, 1], 5, config)

    def latents(**request: Any) -> NDArray[np.float32]:
        return generate_edit(generator, [1, 2], known=known, mask=mask, **request).latents

    seeded = latents(seed=3)
    assert seeded.tobytes() == latents(order=order, noise=noise).tobytes()
    assert seeded.tobytes() != latents(order=order[:, ::-1], noise=noise).tobytes()
    assert latents(order=order[:, ::-1], noise=noise)[:, :, 3].tobytes() == known[:, :, 3].tobytes()
    # Noise is indexed by position, and only the noise of masked tokens matters.
    outside, inside = noise.copy(), noise.copy()
    outside[:, :, 12:] = 9
    inside[:, :, :12] *= -1
    assert seeded.tobytes() == latents(order=order, noise=outside).tobytes()
    assert seeded.tobytes() != latents(order=order, noise=inside).tobytes()


def test_the_places_of_known_tokens_in_a_given_order_do_not_matter(generators: dict[str, Generator]) -> None:
    """Tokens 12 to 15 are known: they are at the end of one order and between others in the second."""
    generator, mask = generators["small"], np.ones((4, 4), bool)
    mask[3] = False
    known, end = random_latents(generator, 1), list(range(16))
    between = [0, 1, 12, 2, 3, 13, *range(4, 10), 14, 15, 10, 11]
    assert identical(
        *(generate_edit(generator, [1], known=known, mask=mask, order=[order]) for order in (end, between))
    )


def test_progress_is_called_after_each_iteration_of_the_edit(generators: dict[str, Generator]) -> None:
    calls: list[tuple[int, int]] = []
    mask, generator = np.zeros((4, 4), bool), generators["small"]
    mask[0, :2] = True
    request: dict[str, Any] = {"iterations": 9, "known": random_latents(generator, 1), "mask": mask}
    result = generate_edit(generator, [1], **request, progress=lambda done, of: calls.append((done, of)))
    assert calls == [(1, 2), (2, 2)]
    assert [(step.known, step.count) for step in result.plan.iterations] == [(14, 1), (15, 1)]
    assert generator.plan(known_tokens=14, **(FAST | {"iterations": 9})).length == 16
