"""The checks of an edit: which tokens a mask marks, and which tokens of an order are known."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from runtime.model.config import ModelConfig
from runtime.model.latents import patchify
from runtime.requests.inpainting import check_mask, order_known_first, select_known_tokens
from tests.helpers.edits import Bool, enlarged, masks

# Images of 12x12 pixels, of 4x4 tokens.
CONFIG = ModelConfig(img_size=12, vae_stride=1, patch_size=3, vae_embed_dim=1, class_num=2)


@given(masks(12))
def test_a_token_is_masked_if_any_of_its_pixels_is(mask: Bool) -> None:
    checked = check_mask(mask, False, CONFIG)
    expected = [[bool(mask[3 * y : 3 * y + 3, 3 * x : 3 * x + 3].sum()) for x in range(4)] for y in range(4)]
    assert checked.tokens.reshape(4, 4).tolist() == expected
    assert checked.pixels.tolist() == mask.tolist()
    assert checked.known == 16 - sum(map(sum, expected))


@given(masks(4))
def test_a_mask_of_tokens_contains_all_of_their_pixels(mask: Bool) -> None:
    checked = check_mask(mask, False, CONFIG)
    assert checked.tokens.tolist() == mask.reshape(-1).tolist()
    assert checked.pixels.tolist() == enlarged(mask, 3).tolist()


@given(masks(4))
def test_dilate_adds_the_eight_neighbours_of_a_token_and_nothing_else(mask: Bool) -> None:
    """It adds no neighbour across an edge of the image, and no pixel."""
    checked = check_mask(mask, True, CONFIG)
    cells = np.argwhere(mask)
    near = [[bool((np.abs(cells - (y, x)).max(axis=1) <= 1).any()) for x in range(4)] for y in range(4)]
    assert checked.tokens.reshape(4, 4).tolist() == near
    assert checked.pixels.tolist() == enlarged(mask, 3).tolist()


@given(st.integers(0, 2**32))
def test_known_tokens_come_first_and_each_group_keeps_its_order(seed: int) -> None:
    """The image has 16x16 tokens, because any sort keeps the order of a few."""
    random = np.random.default_rng(seed)
    orders, config = random.permuted(np.tile(np.arange(256), (2, 1)), axis=1), ModelConfig(vae_stride=1, patch_size=16)
    checked = check_mask(random.random((16, 16)) < 0.05 + random.random(), False, config)
    for order, row in zip(orders.tolist(), order_known_first(orders, checked).tolist(), strict=True):
        assert row[: checked.known] == [token for token in order if not checked.tokens[token]]
        assert row[checked.known :] == [token for token in order if checked.tokens[token]]


def test_known_tokens_are_the_first_of_each_order() -> None:
    latents = np.arange(2 * 8 * 4, dtype=np.float32).reshape(2, 2, 4, 4)
    order = np.array([[3, 1, 0, 2], [2, 0, 1, 3]])
    tokens = patchify(latents, 2)
    found = select_known_tokens(latents, order, 2, 2)
    assert found.tolist() == [tokens[0, [3, 1]].tolist(), tokens[1, [2, 0]].tolist()]
