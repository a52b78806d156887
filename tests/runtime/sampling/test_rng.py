"""The random numbers of an image: a function of seed, index and stream, and of nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from runtime.model.config import ModelConfig
from runtime.sampling.rng import TOKEN_ORDERS, image_noise, image_order, seeded_order

COUNTERS = st.integers(0, 2**64 - 1)
IMAGES = st.tuples(COUNTERS, COUNTERS)
TWO_IMAGES = st.lists(IMAGES, min_size=2, max_size=2, unique=True)
LAST = 2**64 - 1

# Seed 3, index 7: its random order of 16 positions, and its noise [T + 1, L, D].
ORDER = [5, 13, 0, 11, 6, 9, 10, 8, 7, 4, 15, 2, 3, 14, 1, 12]
NOISE = [
    [[0.7381452322006226, 0.07551407068967819], [-0.060062915086746216, 0.07988236844539642]],
    [[0.4932601749897003, 0.6999940872192383], [-2.0508229732513428, -0.6438935995101929]],
]


@given(IMAGES)
def test_an_image_has_the_same_random_bits_every_time(image: tuple[int, int]) -> None:
    first, second = image_noise(*image, steps=2, length=5, channels=3), image_noise(*image, 2, 5, 3)
    assert first.shape == (3, 5, 3)
    assert first.dtype == np.float32
    assert first.tobytes() == second.tobytes()
    assert image_order(*image, (8, 8)).tobytes() == image_order(*image, (8, 8)).tobytes()


@given(IMAGES, st.integers(0, 6), st.integers(0, 6))
def test_the_noise_of_a_step_does_not_depend_on_the_length_of_the_chain(
    image: tuple[int, int], steps: int, more: int
) -> None:
    short, long = image_noise(*image, steps, 4, 2), image_noise(*image, steps + more, 4, 2)
    assert short.tobytes() == long[: steps + 1].tobytes()


@given(TWO_IMAGES)
def test_two_images_have_different_random_numbers(images: list[tuple[int, int]]) -> None:
    first, second = (image_noise(*image, 1, 4, 2) for image in images)
    assert first.tobytes() != second.tobytes()
    for kind in ("random", "checkerboard"):
        first_order, second_order = (image_order(*image, (8, 8), kind) for image in images)
        assert first_order.tolist() != second_order.tolist()


@given(IMAGES)
def test_no_two_streams_of_an_image_are_equal(image: tuple[int, int]) -> None:
    rows = image_noise(*image, 5, 4, 2)
    assert len({row.tobytes() for row in rows}) == len(rows)


@given(IMAGES, st.integers(1, 16), st.sampled_from(TOKEN_ORDERS))
def test_an_order_is_a_permutation(image: tuple[int, int], grid: int, kind: str) -> None:
    order = image_order(*image, (grid, grid), kind)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(grid * grid))


def test_every_seed_and_index_of_64_bits_gives_another_image() -> None:
    corners = [(0, 0), (LAST, 0), (0, LAST), (LAST, LAST), (2**63, 0), (2**63 - 1, 0)]
    assert len({image_noise(*corner, 1, 4, 2).tobytes() for corner in corners}) == len(corners)
    assert len({image_order(*corner, (8, 8)).tobytes() for corner in corners}) == len(corners)


def test_the_random_numbers_of_a_fixed_image_have_not_changed() -> None:
    """A version of numpy with other numbers would change every image that users can reproduce."""
    assert image_order(3, 7, (4, 4)).tolist() == image_order(3, 7, (4, 4), "random").tolist() == ORDER
    assert image_noise(3, 7, 1, 2, 2).tolist() == NOISE


@pytest.fixture(scope="module")
def million() -> NDArray[np.float64]:
    """1,000,000 numbers of one image, [streams, numbers]: fixed, so each bound below holds or not, every time."""
    return image_noise(11, 5, steps=9, length=1000, channels=100).reshape(10, -1).astype(np.float64)


# Five standard deviations of each estimate: a right generator misses one of them for one seed in a million.
@pytest.mark.parametrize(
    ("moment", "expected", "variance"),
    [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)],  # of x^n, for x standard normal
)
def test_noise_has_the_moments_of_a_standard_normal(
    million: NDArray[np.float64], moment: int, expected: float, variance: float
) -> None:
    assert abs((million**moment).mean() - expected) < 5 * np.sqrt(variance / million.size)


def test_the_streams_of_an_image_are_uncorrelated(million: NDArray[np.float64]) -> None:
    products = million @ million.T / million.shape[1]  # [streams, streams]
    apart = products[~np.eye(len(products), dtype=bool)]
    assert np.abs(apart).max() < 5 / np.sqrt(million.shape[1])


def assert_any_comes_as_often(found: list[int], among: list[int]) -> None:
    share = 1 / len(among)
    counts = np.array([found.count(position) for position in among])
    assert counts.sum() == len(found)
    assert np.abs(counts - len(found) * share).max() < 5 * np.sqrt(len(found) * share * (1 - share))


def test_any_position_can_come_first() -> None:
    assert_any_comes_as_often([image_order(1, index, (4, 4))[0] for index in range(4000)], list(range(16)))


# Orders of another kind.


@given(IMAGES, st.integers(1, 16))
def test_raster_order_is_the_same_for_every_image(image: tuple[int, int], grid: int) -> None:
    assert image_order(*image, (grid, grid), "raster").tolist() == list(range(grid * grid))


def checkerboard_stages(grid: int) -> list[list[int]]:
    """Every other diagonal of one colour, the others of that colour, the other colour."""
    stages: list[list[int]] = [[], [], []]
    for row in range(grid):
        for column in range(grid):
            stage = {0: 0, 2: 1}.get((row + column) % 4, 2)
            stages[stage].append(row * grid + column)
    return stages


@given(IMAGES, st.integers(1, 16))
def test_a_checkerboard_order_has_three_stages(image: tuple[int, int], grid: int) -> None:
    order = image_order(*image, (grid, grid), "checkerboard").tolist()
    for stage in checkerboard_stages(grid):
        assert sorted(order[: len(stage)]) == stage
        order = order[len(stage) :]
    assert order == []


def test_the_stages_of_a_checkerboard_of_sixteen_tokens() -> None:
    assert checkerboard_stages(4) == [[0, 7, 10, 13], [2, 5, 8, 15], [1, 3, 4, 6, 9, 11, 12, 14]]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_checkerboard_is_random_within_each_stage(number: int) -> None:
    stages = checkerboard_stages(4)
    start = sum(map(len, stages[:number]))
    found = [image_order(1, index, (4, 4), "checkerboard")[start] for index in range(4000)]
    assert_any_comes_as_often(found, stages[number])


@pytest.mark.parametrize("kind", TOKEN_ORDERS)
def test_the_orders_of_a_batch_are_those_of_its_images(kind: str) -> None:
    config = ModelConfig(img_size=20, vae_stride=4, patch_size=1, vae_embed_dim=2, class_num=3, buffer_size=2)
    orders = seeded_order(3, [7, 0, 7], config, kind)
    assert orders.tolist() == [image_order(3, index, (5, 5), kind).tolist() for index in (7, 0, 7)]
