"""Drawing a part of an image anew: what is known stays as it is, and the rest is drawn to fit it."""

from __future__ import annotations

import math
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from runtime.errors import RequestError
from runtime.generator import Generator, Result
from runtime.loops.host_loop import Engines
from runtime.model.config import ModelConfig
from runtime.model.latents import from_uint8, patchify
from runtime.requests.inpainting import EditMask, check_mask, known_tokens, order_known_first
from runtime.sampling.plan import MASK_SCHEDULES, Plan, build_plan
from runtime.sampling.rng import TOKEN_ORDERS, seeded_noise, seeded_order
from runtime.sampling.settings import Sampling
from tests.helpers.distance import relative_l2

Bool = NDArray[np.bool_]

EXAMPLE = pathlib.Path(__file__).parents[3] / "examples" / "fashion-mnist"
FAST: dict[str, Any] = {"iterations": 3, "cfg_scale": 2.0, "diffusion_steps": "ddim5"}
# Images of 12x12 pixels, of 4x4 tokens.
CONFIG = ModelConfig(img_size=12, vae_stride=1, patch_size=3, vae_embed_dim=1, class_num=2)

untimed = settings(deadline=None)
drawn_few = settings(deadline=None, max_examples=25)


def bools(side: int) -> st.SearchStrategy[Bool]:
    """Masks of side x side with something in them."""
    cells = st.lists(st.booleans(), min_size=side**2, max_size=side**2).filter(any)
    return cells.map(lambda flat: np.array(flat).reshape(side, side))


def enlarged(tokens: Bool, step: int) -> Bool:
    return tokens.repeat(step, axis=0).repeat(step, axis=1)


# What a mask means.


@untimed
@given(bools(12))
def test_a_token_is_drawn_where_any_of_its_pixels_is(mask: Bool) -> None:
    hole = check_mask(mask, False, CONFIG)
    expected = [[bool(mask[3 * y : 3 * y + 3, 3 * x : 3 * x + 3].sum()) for x in range(4)] for y in range(4)]
    assert hole.tokens.reshape(4, 4).tolist() == expected
    assert hole.pixels.tolist() == mask.tolist()
    assert hole.known == 16 - sum(map(sum, expected))


@untimed
@given(bools(4))
def test_a_mask_of_tokens_marks_all_of_their_pixels(mask: Bool) -> None:
    hole = check_mask(mask, False, CONFIG)
    assert hole.tokens.tolist() == mask.reshape(-1).tolist()
    assert hole.pixels.tolist() == enlarged(mask, 3).tolist()


@untimed
@given(bools(4))
def test_dilating_adds_the_eight_neighbours_of_a_token_and_nothing_else(mask: Bool) -> None:
    """Not those across an edge, and no pixel: those were asked for one by one."""
    hole = check_mask(mask, True, CONFIG)
    marked = np.argwhere(mask)
    near = [[bool((np.abs(marked - (y, x)).max(axis=1) <= 1).any()) for x in range(4)] for y in range(4)]
    assert hole.tokens.reshape(4, 4).tolist() == near
    assert hole.pixels.tolist() == enlarged(mask, 3).tolist()


@untimed
@given(st.integers(0, 2**32))
def test_known_tokens_come_first_and_each_group_keeps_its_order(seed: int) -> None:
    """Of 16x16 tokens, since sorting keeps the order of a few as it is anyway."""
    random = np.random.default_rng(seed)
    orders, config = random.permuted(np.tile(np.arange(256), (2, 1)), axis=1), ModelConfig(vae_stride=1, patch_size=16)
    hole = check_mask(random.random((16, 16)) < 0.05 + random.random(), False, config)
    for order, row in zip(orders.tolist(), order_known_first(orders, hole).tolist(), strict=True):
        assert row[: hole.known] == [token for token in order if not hole.tokens[token]]
        assert row[hole.known :] == [token for token in order if hole.tokens[token]]


def test_known_tokens_are_those_at_the_beginning_of_each_order() -> None:
    latents = np.arange(2 * 8 * 4, dtype=np.float32).reshape(2, 2, 4, 4)
    order = np.array([[3, 1, 0, 2], [2, 0, 1, 3]])
    tokens = patchify(latents, 2)
    found = known_tokens(latents, order, 2, 2)
    assert found.tolist() == [tokens[0, [3, 1]].tolist(), tokens[1, [2, 0]].tolist()]


# The plan of what is left.

HOLES = st.integers(2, 300).flatmap(lambda length: st.tuples(st.just(length), st.integers(0, length - 1)))


@untimed
@given(HOLES, st.data(), st.sampled_from(MASK_SCHEDULES))
def test_a_plan_with_known_tokens_covers_exactly_the_hole(
    sizes: tuple[int, int], data: st.DataObject, mask_schedule: str
) -> None:
    length, known = sizes
    iterations = data.draw(st.integers(1, length))
    sampling = Sampling(iterations=iterations, mask_schedule=mask_schedule, diffusion_steps="ddim5")
    plan = build_plan(length, sampling, known)
    counts = [iteration.count for iteration in plan.iterations]
    assert plan.length == length
    assert len(counts) == min(iterations, length - known)
    assert min(counts) >= 1
    assert [iteration.known for iteration in plan.iterations] == [known + sum(counts[:k]) for k in range(len(counts))]
    assert known + sum(counts) == length


def scales(plan: Plan) -> list[float]:
    return [iteration.guidance_scale for iteration in plan.iterations]


def test_linear_guidance_counts_the_tokens_that_were_known_from_the_start() -> None:
    sampling = Sampling(iterations=4, mask_schedule="linear", cfg_scale=3.0)
    # After each iteration 10, 12, 14 and 16 tokens are known, the last of which counts as one less, as published.
    assert scales(build_plan(16, sampling, 8)) == [1 + 2 * known / 16 for known in (10, 12, 14, 15)]


def test_a_guidance_interval_counts_them_too() -> None:
    asked: dict[str, Any] = {"iterations": 4, "mask_schedule": "linear", "cfg_scale": 3.0, "cfg_schedule": "constant"}
    # KnownImages before each iteration: 8, 10, 12 and 14 of 16.
    assert scales(build_plan(16, Sampling(**asked, cfg_interval=(0.6, 0.8)), 8)) == [1.0, 3.0, 3.0, 1.0]
    assert scales(build_plan(16, Sampling(**asked, cfg_interval=(0.0, 0.4)), 8)) == [1.0] * 4


def test_chains_shrink_over_the_iterations_that_are_left() -> None:
    sampling = Sampling(iterations=16, diffusion_steps=20, last_diffusion_steps=4)
    assert [iteration.table.steps for iteration in build_plan(16, sampling, 13).iterations] == [20, 12, 4]


@pytest.mark.parametrize("known", [-1, 16, 17, 1.0, "1", None, True, math.nan])
def test_a_number_of_known_tokens_that_leaves_nothing_to_draw_or_is_none_is_refused(known: Any) -> None:
    with pytest.raises(RequestError, match=r"known_tokens must be a whole number in 0\.\.15, found") as refusal:
        build_plan(16, Sampling(), known)
    assert repr(known) in str(refusal.value)


# The images.


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


def latents_of(generator: Generator, count: int, seed: int = 0) -> NDArray[np.float32]:
    """Any latents [count, C, h, w]."""
    config = generator.manifest.model
    side = config.img_size // config.vae_stride
    return np.random.default_rng(seed).standard_normal((count, config.vae_embed_dim, side, side), np.float32)


def random_images(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Any images [count, 8, 8, 1]."""
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 1), np.uint8)


def edit(generator: Generator, labels: list[int], **request: Any) -> Result:
    short = FAST | {"iterations": min(3, generator.manifest.model.tokens)}
    return generator.generate(labels, **(short | request))


def images_of(result: Result) -> NDArray[np.uint8]:
    assert result.images is not None
    return result.images


def same(one: Result, other: Result) -> bool:
    """Whether two results are the same to the last bit."""
    pairs: list[tuple[NDArray[Any], NDArray[Any]]] = [(one.latents, other.latents)]
    if one.images is not None and other.images is not None:
        pairs.append((one.images, other.images))
    return all(a.tobytes() == b.tobytes() for a, b in pairs)


def where(hole: EditMask, generator: Generator) -> Bool:
    """Bool [h, w], true for the latents of drawn tokens."""
    config = generator.manifest.model
    return enlarged(hole.tokens.reshape(config.grid, config.grid), config.patch_size)


@drawn_few
@given(data=st.data())
def test_latents_of_tokens_outside_any_mask_are_kept_bit_for_bit_and_all_others_are_drawn(
    generator: Generator, data: st.DataObject
) -> None:
    config, known = generator.manifest.model, latents_of(generator, 2)
    mask = data.draw(bools(config.grid) | bools(config.img_size if config.img_size < 16 else config.grid))
    dilate = data.draw(st.booleans())
    drawn = where(check_mask(mask, dilate, config), generator)
    found = edit(generator, [0, 1], known=known, mask=mask, dilate=dilate).latents
    assert found.dtype == np.float32
    assert found[..., ~drawn].tobytes() == known[..., ~drawn].tobytes()
    assert (found[..., drawn] != known[..., drawn]).all()


def test_a_pixel_mask_of_a_latent_model_keeps_every_token_that_it_does_not_touch(
    generators: dict[str, Generator],
) -> None:
    """64x64 pixels, 16x16 a token: the marked pixels lie in tokens (0, 0) and (2, 3)."""
    generator = generators["small"]
    mask, known = np.zeros((64, 64), bool), latents_of(generator, 1)
    mask[15, 15] = mask[32, 63] = True
    found = edit(generator, [3], known=known, mask=mask).latents
    changed = (found != known).any(axis=1)[0]
    assert np.argwhere(changed).tolist() == [[0, 0], [2, 3]]


@drawn_few
@given(mask=bools(8) | bools(2))
def test_pixels_outside_any_mask_are_kept_bit_for_bit(pixel: Generator, mask: Bool) -> None:
    known = random_images(2)
    images = images_of(edit(pixel, [0, 1], known=known, mask=mask))
    inside = mask if mask.shape == (8, 8) else enlarged(mask, 4)
    assert images.shape == known.shape
    assert images[:, ~inside].tobytes() == known[:, ~inside].tobytes()
    assert (images[:, inside] != known[:, inside]).any()


def test_a_token_of_which_a_part_is_marked_is_drawn_whole_and_then_pasted(pixel: Generator) -> None:
    """Of the paste_known_pixels image only the marked pixels are new; they are those of the image without pasting."""
    mask, known = np.zeros((8, 8), bool), random_images(1)[0]
    mask[1, 5] = mask[3, 6] = True  # both in the token on the right above
    paste_known_pixels, whole = (edit(pixel, [1], known=known, mask=mask, paste=paste) for paste in (True, False))
    new = images_of(whole)[0]
    assert paste_known_pixels.latents.tobytes() == whole.latents.tobytes()
    assert images_of(paste_known_pixels)[0].tobytes() == np.where(mask[..., None], new, known).tobytes()
    assert (new != known)[:4, 4:].mean() > 0.8  # but for pixels that came out as they were by chance
    new[:4, 4:] = known[:4, 4:]
    assert new.tobytes() == known.tobytes()


def test_a_mask_of_tokens_draws_what_the_mask_of_their_pixels_draws(pixel: Generator) -> None:
    mask, known = np.array([[True, False], [False, True]]), random_images(1)[0]
    tokens, pixels = (edit(pixel, [1], known=known, mask=shape) for shape in (mask, enlarged(mask, 4)))
    assert same(tokens, pixels)


def test_dilating_draws_the_tokens_of_the_dilated_mask(generators: dict[str, Generator]) -> None:
    generator = generators["small"]
    known, corner, dilated = latents_of(generator, 1), np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    corner[3, 0] = dilated[2:, :2] = True
    found = edit(generator, [2], known=known, mask=corner, dilate=True)
    assert same(found, edit(generator, [2], known=known, mask=dilated))
    assert not same(found, edit(generator, [2], known=known, mask=corner))


def test_dilating_leaves_the_pixels_that_were_not_marked(pixel: Generator) -> None:
    mask, known = np.zeros((8, 8), bool), random_images(1)[0]
    mask[0, 0] = True
    image = images_of(edit(pixel, [1], known=known, mask=mask, dilate=True))[0]
    assert image[~mask].tobytes() == known[~mask].tobytes()


@pytest.mark.parametrize("order", TOKEN_ORDERS)
def test_a_mask_of_the_whole_image_draws_the_image_that_no_mask_draws(generator: Generator, order: str) -> None:
    size = generator.manifest.model.img_size
    edited = edit(
        generator,
        [1, 0],
        seed=5,
        token_order=order,
        known=latents_of(generator, 1)[0],
        mask=np.ones((size, size), bool),
    )
    plain = edit(generator, [1, 0], seed=5, token_order=order)
    assert same(edited, plain)
    assert scales(edited.plan) == scales(plain.plan)


def test_what_an_iteration_drew_is_drawn_again_where_all_before_it_is_known(generators: dict[str, Generator]) -> None:
    """The same tokens in the same order, under the same guidance and noise, after the same known ones."""
    generator = generators["small"]
    asked: dict[str, Any] = {"seed": 3, "cfg_scale": 3.0, "mask_schedule": "linear"}
    whole = edit(generator, [4], iterations=4, **asked)
    order = seeded_order(3, [0], generator.manifest.model)[0]
    for redrawn in (4, 8, 12):
        mask = np.zeros(16, bool)
        mask[order[-redrawn:]] = True
        forgotten = np.where(mask.reshape(4, 4), np.float32(7), whole.latents[0])
        again = edit(generator, [4], iterations=redrawn // 4, known=forgotten, mask=mask.reshape(4, 4), **asked)
        assert [(step.known, step.count) for step in again.plan.iterations] == [
            (step.known, step.count) for step in whole.plan.iterations[-redrawn // 4 :]
        ]
        assert scales(again.plan) == scales(whole.plan)[-redrawn // 4 :]
        assert relative_l2(again.latents, whole.latents) <= 1e-6


def test_what_is_drawn_depends_on_what_is_known(generator: Generator) -> None:
    grid = generator.manifest.model.grid
    mask = np.zeros((grid, grid), bool)
    mask[0, 0] = True
    drawn = where(check_mask(mask, False, generator.manifest.model), generator)
    one, other = (
        edit(generator, [1], known=latents_of(generator, 1, seed=seed), mask=mask).latents[..., drawn]
        for seed in (0, 1)
    )
    assert relative_l2(one, other) > 1e-3


def test_what_is_known_of_the_hole_itself_is_never_read(generator: Generator) -> None:
    grid = generator.manifest.model.grid
    mask = np.zeros((grid, grid), bool)
    mask[0, -1] = mask[-1, 0] = True
    drawn = where(check_mask(mask, False, generator.manifest.model), generator)
    known = latents_of(generator, 2)
    other = np.where(drawn, np.float32(100), known)
    assert same(*(edit(generator, [1, 0], known=latents, mask=mask) for latents in (known, other)))


def test_known_latents_may_be_given_for_all_images_or_for_each(generator: Generator) -> None:
    grid, known = generator.manifest.model.grid, latents_of(generator, 2)
    mask = np.zeros((grid, grid), bool)
    mask[0] = True
    for_all = edit(generator, [1, 0], known=known[0], mask=mask)
    assert same(for_all, edit(generator, [1, 0], known=known[[0, 0]], mask=mask))
    each = edit(generator, [1, 0], known=known, mask=mask)
    assert relative_l2(each.latents[0], for_all.latents[0]) <= 1e-6
    alone = edit(generator, [0], index=[1], known=known[1:], mask=mask)
    assert relative_l2(each.latents[1], alone.latents[0]) <= 1e-5


def test_known_images_may_be_given_for_all_images_or_for_each(pixel: Generator) -> None:
    known, mask = random_images(2), np.array([[True, True], [False, False]])
    for_all, each, twice = (
        images_of(edit(pixel, [1, 0], known=given, mask=mask)) for given in (known[0], known, known[[0, 0]])
    )
    assert for_all.tobytes() == twice.tobytes()
    assert for_all[:, 4:].tolist() == known[[0, 0], 4:].tolist()
    assert each[:, 4:].tolist() == known[:, 4:].tolist()


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_latents_may_be_of_any_floating_type_or_lists(generator: Generator, dtype: type) -> None:
    grid, known = generator.manifest.model.grid, latents_of(generator, 1)[0].astype(dtype)
    mask = np.zeros((grid, grid), bool)
    mask[0] = True
    found = edit(generator, [1], known=known, mask=mask)
    assert same(found, edit(generator, [1], known=known.astype(np.float32), mask=mask))
    assert same(found, edit(generator, [1], known=known.tolist(), mask=mask.tolist()))


def test_a_known_image_is_known_as_its_latents(pixel: Generator) -> None:
    known, mask = random_images(2), np.array([[True, False], [False, False]])
    from_pixels, latents = (edit(pixel, [1, 0], known=given, mask=mask) for given in (known, from_uint8(known)))
    assert same(from_pixels, latents)


def test_an_edit_is_the_same_alone_as_in_a_batch_and_differs_by_index(generators: dict[str, Generator]) -> None:
    generator, mask = generators["small"], np.zeros((4, 4), bool)
    mask[1:3, 1:3] = True
    known = latents_of(generator, 1)[0]
    together = edit(generator, [2, 2, 2], seed=3, known=known, mask=mask).latents
    for index in range(3):
        alone = edit(generator, [2], seed=3, index=[index], known=known, mask=mask).latents
        assert relative_l2(together[index], alone[0]) <= 1e-5
    assert len({image.tobytes() for image in together}) == 3


def test_the_order_and_noise_of_a_seed_may_be_given_instead_of_it(generators: dict[str, Generator]) -> None:
    generator, mask = generators["small"], np.zeros((4, 4), bool)
    mask[:3] = True
    config, known = generator.manifest.model, latents_of(generator, 2)
    order, noise = seeded_order(3, [0, 1], config), seeded_noise(3, [0, 1], 5, config)

    def drawn(**request: Any) -> NDArray[np.float32]:
        return edit(generator, [1, 2], known=known, mask=mask, **request).latents

    seeded = drawn(seed=3)
    assert seeded.tobytes() == drawn(order=order, noise=noise).tobytes()
    assert seeded.tobytes() != drawn(order=order[:, ::-1], noise=noise).tobytes()
    assert drawn(order=order[:, ::-1], noise=noise)[:, :, 3].tobytes() == known[:, :, 3].tobytes()
    # Noise counts by position, and only where something is drawn.
    outside, inside = noise.copy(), noise.copy()
    outside[:, :, 12:] = 9
    inside[:, :, :12] *= -1
    assert seeded.tobytes() == drawn(order=order, noise=outside).tobytes()
    assert seeded.tobytes() != drawn(order=order, noise=inside).tobytes()


def test_where_known_tokens_stand_in_a_given_order_changes_nothing(generators: dict[str, Generator]) -> None:
    """Only the order of those drawn counts: 12 to 15 are known, at the end of one and in between in the other."""
    generator, mask = generators["small"], np.ones((4, 4), bool)
    mask[3] = False
    known, end = latents_of(generator, 1), list(range(16))
    between = [0, 1, 12, 2, 3, 13, *range(4, 10), 14, 15, 10, 11]
    assert same(*(edit(generator, [1], known=known, mask=mask, order=[order]) for order in (end, between)))


def test_progress_is_told_once_an_iteration_of_what_is_left(generators: dict[str, Generator]) -> None:
    told: list[tuple[int, int]] = []
    mask, generator = np.zeros((4, 4), bool), generators["small"]
    mask[0, :2] = True
    asked: dict[str, Any] = {"iterations": 9, "known": latents_of(generator, 1), "mask": mask}
    result = edit(generator, [1], **asked, progress=lambda done, of: told.append((done, of)))
    assert told == [(1, 2), (2, 2)]
    assert [(step.known, step.count) for step in result.plan.iterations] == [(14, 1), (15, 1)]
    assert generator.plan(known_tokens=14, **(FAST | {"iterations": 9})).length == 16


# What is refused.


@pytest.fixture
def idle(generators: dict[str, Generator]) -> dict[str, Generator]:
    """Generators whose engines must not run."""

    def ran(**inputs: object) -> NoReturn:
        raise AssertionError("an engine ran for a wrong request")

    return {
        name: Generator(generator.manifest, Engines(ran, ran, ran), "none") for name, generator in generators.items()
    }


LATENTS = np.zeros((8, 4, 4), np.float32)
IMAGE = np.zeros((8, 8, 1), np.uint8)
TOKENS = np.ones((4, 4), bool)
PIXELS = np.ones((8, 8), bool)


def with_one(array: NDArray[Any], value: float) -> NDArray[Any]:
    changed: NDArray[Any] = array.copy()
    changed.flat[-1] = value
    return changed


def bad(known: object = LATENTS, mask: object = TOKENS) -> dict[str, object]:
    return {"known": known, "mask": mask}


MASK_OF_SMALL = "mask must be bool [64, 64] (pixels) or [4, 4] (tokens), found "
BAD_EDITS: list[tuple[str, dict[str, object], str]] = [
    ("small", {"mask": TOKENS}, "give both known and mask"),
    ("small", {"known": LATENTS}, "give both known and mask"),
    ("pixel", {"mask": PIXELS}, "give both known and mask"),
    ("pixel", {"known": IMAGE}, "give both known and mask"),
    *(
        ("small", bad(mask=mask), MASK_OF_SMALL + told)
        for mask, told in (
            (np.ones((4, 5), bool), "bool [4, 5]"),
            (np.ones((16,), bool), "bool [16]"),
            (np.ones((1, 4, 4), bool), "bool [1, 4, 4]"),
            (np.ones((8, 8), bool), "bool [8, 8]"),
            (np.ones((0, 0), bool), "bool [0, 0]"),
            (np.ones((4, 4), np.uint8), "uint8 [4, 4]"),
            (np.ones((4, 4), np.float32), "float32 [4, 4]"),
            ([[1] * 4] * 4, "int64 [4, 4]"),
            ([[None] * 4] * 4, "object [4, 4]"),
            ("mask", "<U4 []"),
            (True, "bool []"),
            ([], "float64 [0]"),
        )
    ),
    ("small", bad(mask=[[True, False], [True]]), "mask: "),
    ("small", bad(mask=np.zeros((4, 4), bool)), "mask marks nothing to draw"),
    ("small", bad(mask=np.zeros((64, 64), bool)), "mask marks nothing to draw"),
    *(
        ("small", bad(known), f"latents, floating point of shape [8, 4, 4], alone or 1 of them; found {told}")
        for known, told in (
            (LATENTS[0], "float32 [4, 4]"),
            (LATENTS[:7], "float32 [7, 4, 4]"),
            (LATENTS.transpose(1, 2, 0), "float32 [4, 4, 8]"),
            (np.stack([LATENTS] * 2), "float32 [2, 8, 4, 4]"),
            (LATENTS[None, None], "float32 [1, 1, 8, 4, 4]"),
            (LATENTS.astype(int), "int64 [8, 4, 4]"),
            (LATENTS.astype(bool), "bool [8, 4, 4]"),
            (LATENTS.astype(complex), "complex128 [8, 4, 4]"),
            (LATENTS.astype(str), "<U32 [8, 4, 4]"),
            (LATENTS.astype(object), "object [8, 4, 4]"),
            (LATENTS.astype(np.uint8), "uint8 [8, 4, 4]"),
            (0.5, "float64 []"),
        )
    ),
    ("small", bad([[0.0], [0.0, 1.0]]), "known: "),
    *(
        ("small", bad(with_one(LATENTS, value)), "known holds values that are not finite")
        for value in (math.nan, math.inf)
    ),
    ("small", bad(with_one(LATENTS.astype(np.float64), 1e39)), "not finite in float32"),
    *(
        ("pixel", bad(known, PIXELS), f"alone or 1 of them; found {told}")
        for known, told in (
            (IMAGE[:, :, 0], "uint8 [8, 8]"),
            (IMAGE[:7], "uint8 [7, 8, 1]"),
            (IMAGE.repeat(3, axis=2), "uint8 [8, 8, 3]"),
            (IMAGE.transpose(2, 0, 1), "uint8 [1, 8, 8]"),
            (np.stack([IMAGE] * 2), "uint8 [2, 8, 8, 1]"),
            (IMAGE.astype(np.int16), "int16 [8, 8, 1]"),
            (IMAGE.astype(np.float32), "float32 [8, 8, 1]"),
        )
    ),
    ("small", bad(np.zeros((64, 64, 3), np.uint8)), "cannot read images"),
    ("small", bad() | {"iterations": 17}, "iterations must lie in 1..16"),
    ("small", bad(mask=np.eye(4, dtype=bool)) | {"iterations": 0}, "iterations must lie in 1..16"),
    ("small", bad() | {"order": [[0] * 16]}, "permutation"),
    ("small", bad() | {"labels": [6]}, "class 6 is out of range"),
]


@pytest.mark.parametrize(("model", "request_", "told"), BAD_EDITS, ids=lambda part: " ".join(str(part).split())[-40:])
def test_a_wrong_edit_is_refused_in_one_line_before_anything_runs(
    idle: dict[str, Generator], model: str, request_: dict[str, Any], told: str
) -> None:
    with warnings.catch_warnings(), pytest.raises(RequestError) as refusal:
        warnings.simplefilter("error")
        idle[model].generate(**({"labels": [0]} | FAST | {"iterations": 2} | request_))
    assert told in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert refusal.value.exit_code == 2


def test_as_many_known_images_as_labels_are_wanted(idle: dict[str, Generator]) -> None:
    for count in (1, 2, 4):
        with pytest.raises(RequestError, match=rf"alone or 3 of them; found float32 \[{count}, 8, 4, 4\]"):
            idle["small"].generate([0, 1, 2], **FAST, known=np.stack([LATENTS] * count), mask=TOKENS)


# A model that was trained.


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Generator]:
    from mar_export.artifact.export import export_artifact
    from training.checkpoints.checkpoint import load_checkpoint

    artifact = tmp_path_factory.mktemp("fashion") / "artifact"
    sampling = Sampling(iterations=8, sampler="ddim", diffusion_steps=10, cfg_scale=3.0)
    export_artifact(load_checkpoint(EXAMPLE), artifact, lambda text: None, sampling)
    with Generator.load(artifact, threads=1) as generator:
        yield generator


def directions(images: NDArray[np.uint8], inside: Bool) -> NDArray[np.float64]:
    """The marked pixels of images [B, H, W, 1], as vectors of mean 0 and length 1."""
    vectors: NDArray[np.float64] = images[:, inside, 0].astype(np.float64)
    vectors -= vectors.mean(axis=1, keepdims=True)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def test_a_trained_model_redraws_most_of_a_image_as_another_class_and_keeps_the_rest(fashion: Generator) -> None:
    """Trousers, pullovers and boots, each from the others. Whom a redrawn part is nearest to, in the mean, it is."""
    classes, drawn, edits = [1, 2, 9], 6, 8
    examples = images_of(fashion.generate([label for label in classes for _ in range(drawn)], seed=1))
    mask = np.ones((8, 8), bool)
    mask[0] = False  # the uppermost eighth is known
    inside = enlarged(mask, 4)
    labels = np.repeat([0, 1, 2], edits)
    before = (labels + 1 + np.arange(3 * edits) % 2) % 3  # one of the other two
    known = examples[before * drawn + np.arange(3 * edits) % drawn]
    result = fashion.generate([classes[label] for label in labels], seed=2, known=known, mask=inside)
    images = images_of(result)
    assert images[:, ~inside].tobytes() == known[:, ~inside].tobytes()
    assert result.latents[:, :, ~inside].tobytes() == from_uint8(known)[:, :, ~inside].tobytes()
    means = directions(examples, inside).reshape(3, drawn, -1).mean(axis=1)
    nearest = (directions(images, inside) @ means.T).argmax(axis=1)
    assert (nearest == labels).mean() >= 0.8
    assert (nearest == before).mean() <= 0.2


def test_a_trained_model_repairs_a_image_better_than_one_that_does_not_know_the_rest(fashion: Generator) -> None:
    """The middle of boots, from their surroundings, is nearer to what was there than that of other boots."""
    boots = images_of(fashion.generate([9] * 6, seed=4))
    mask = np.zeros((8, 8), bool)
    mask[3:5, 2:6] = True
    inside = enlarged(mask, 4)
    requests: list[dict[str, Any]] = [{"known": boots, "mask": mask}, {}]
    repaired, others = (images_of(fashion.generate([9] * 6, seed=7, **request)) for request in requests)
    distances = [np.abs(images[:, inside].astype(float) - boots[:, inside]).mean() for images in (repaired, others)]
    assert distances[0] < 0.8 * distances[1]
