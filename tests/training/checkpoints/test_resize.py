"""A model for images of another size: its places interpolated, and nothing else changed."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.errors import ConfigError
from tests.helpers.published_forms import CONFIG, mar_weights
from tests.helpers.tiny_runs import one_sentence
from training.checkpoints.resize import resize_model
from training.models.mar import MAR

_POSITIONS = {"encoder_pos_embed_learned": 3, "decoder_pos_embed_learned": 3, "diffusion_pos_embed_learned": 0}
_LARGE = dataclasses.replace(CONFIG, img_size=40)  # 5x5 tokens of 8x8 pixels


@pytest.fixture
def model() -> MAR:
    model = MAR(**_LARGE.to_dict())
    model.load_state_dict(mar_weights(_LARGE))
    return model


def _places(model: MAR, name: str) -> Tensor:
    """The embeddings of the tokens as an image, [h, w, E]."""
    embedding: Tensor = model.state_dict()[name]
    return embedding[0, _POSITIONS[name] :].reshape(model.config.grid, model.config.grid, -1)


def _weights_of_one_axis(size: int, new_size: int) -> NDArray[np.float64]:
    """Bicubic interpolation (a = -0.75) between centers, the border repeated: [new_size, size]."""

    def kernel(x: float) -> float:
        x, a = abs(x), -0.75
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    matrix = np.zeros((new_size, size))
    for row in range(new_size):
        place = (row + 0.5) * size / new_size - 0.5
        for tap in range(math.floor(place) - 1, math.floor(place) + 3):
            matrix[row, min(max(tap, 0), size - 1)] += kernel(place - tap)
    return matrix


@pytest.mark.parametrize("grid", [1, 2, 3, 4, 6, 8, 11])
@pytest.mark.parametrize("name", _POSITIONS)
def test_position_embeddings_are_interpolated_between_the_centers_of_tokens(model: MAR, name: str, grid: int) -> None:
    axis = _weights_of_one_axis(5, grid)
    expected = np.einsum("ip,jq,pqe->ije", axis, axis, _places(model, name).double().numpy())
    actual = _places(resize_model(model, 8 * grid), name)
    assert actual.shape == (grid, grid, _places(model, name).shape[-1])
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_rows_stay_rows_and_columns_stay_columns(model: MAR) -> None:
    with torch.no_grad():
        model.encoder_pos_embed_learned[0, 3:] = torch.arange(5.0).repeat_interleave(5)[:, None]  # the row of each
        model.decoder_pos_embed_learned[0, 3:] = torch.arange(5.0).repeat(5)[:, None]  # the column of each
    larger = resize_model(model, 80)
    rows, columns = (_places(larger, f"{half}_pos_embed_learned")[..., 0] for half in ("encoder", "decoder"))
    torch.testing.assert_close(rows, rows[:, :1].expand(-1, 10))
    torch.testing.assert_close(columns, columns[:1].expand(10, -1))
    assert (rows[:, 0].diff() > 0).all()
    assert (columns[0].diff() > 0).all()


@pytest.mark.parametrize("size", [8, 24, 40, 64])
def test_all_other_parameters_stay_bit_for_bit(model: MAR, size: int) -> None:
    before, after = model.state_dict(), resize_model(model, size).state_dict()
    assert after.keys() == before.keys()
    for name in before.keys() - _POSITIONS.keys():
        assert torch.equal(after[name], before[name]), name
    for name, buffer in _POSITIONS.items():
        assert torch.equal(after[name][:, :buffer], before[name][:, :buffer]), name


def test_resizing_to_the_same_size_gives_the_same_model(model: MAR) -> None:
    same = resize_model(model, 40)
    assert same.config == model.config
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(same.state_dict()[name], tensor, rtol=1e-6, atol=1e-6)


def test_the_config_differs_in_the_size_of_the_image_only(model: MAR) -> None:
    assert resize_model(model, 64).config == dataclasses.replace(_LARGE, img_size=64)


def test_the_original_model_stays_unchanged(model: MAR) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    other = resize_model(model, 64)
    assert model.config == _LARGE
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not other.training


@pytest.mark.parametrize("size", [16, 64])
def test_a_resized_model_predicts_every_token_of_the_new_size(model: MAR, size: int) -> None:
    other = resize_model(model, size)
    tokens = other.config.tokens
    positions = torch.arange(tokens)[None]
    z = other.predict(torch.zeros(1, 0, 16), positions[:, :0], positions, positions[:, :0], torch.tensor([2]))
    assert z.shape == (1, tokens, 32)
    assert z.isfinite().all()
    assert other.patchify(torch.zeros(1, 4, size // 4, size // 4)).shape == (1, tokens, 16)


@pytest.mark.parametrize("size", [0, -8, 12, 41, 100_000])
def test_a_size_that_is_no_multiple_of_a_token_is_refused(model: MAR, size: int) -> None:
    with pytest.raises(ConfigError, match=rf"img_size.*{size}") as caught:
        resize_model(model, size)
    one_sentence(caught)
