"""The MAR model: parameters, named sizes, the training loss, and patches."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from runtime.errors import ConfigError
from runtime.model.config import ModelConfig
from runtime.model.latents import unpatchify
from tests.helpers.distance import relative_l2
from tests.helpers.golden_cases import GOLDEN
from tests.helpers.tiny_runs import TINY, randomized
from training.data.draws import draw_example, example_stream
from training.models import reference_loop as published
from training.models.diffusion_head import DiffusionLoss
from training.models.mar import MAR
from training.models.model_sizes import MODEL_SIZES, model_config


def _on_meta(config: ModelConfig) -> MAR:
    with torch.device("meta"):
        return MAR(**config.to_dict())


def test_mar_base_has_the_published_parameters_in_the_published_order() -> None:
    published = json.loads((GOLDEN / "full" / "mar_base_parameters.json").read_text())
    ours = {name: list(parameter.shape) for name, parameter in _on_meta(model_config("mar_base")).named_parameters()}
    assert list(ours.items()) == list(published.items())


def test_a_checkpoint_of_the_model_holds_its_parameters_and_nothing_else() -> None:
    model = _on_meta(model_config("mar_base"))
    assert list(model.state_dict()) == [name for name, _ in model.named_parameters()]


def _transformer_parameters(width: int, depth: int, mlp_ratio: int = 4) -> int:
    attention = width * 3 * width + 3 * width + width * width + width
    feed_forward = width * mlp_ratio * width + mlp_ratio * width + mlp_ratio * width * width + width
    return depth * (attention + feed_forward + 2 * 2 * width)


def _head_parameters(width: int, depth: int, z: int, token: int) -> int:
    embeddings = 256 * width + width + width * width + width + z * width + width + token * width + width
    block = 2 * width + 2 * (width * width + width) + width * 3 * width + 3 * width
    last = width * 2 * token + 2 * token + width * 2 * width + 2 * width
    return embeddings + depth * block + last


def _expected_parameters(width: int, depth: int, head_width: int, head_depth: int) -> int:
    positions = 2 * (256 + 64) * width + 256 * width
    embeddings = 1000 * width + 2 * width + 16 * width + width + width * width + width  # classes, z_proj, decoder_embed
    norms = 3 * 2 * width
    halves = 2 * _transformer_parameters(width, depth)
    return positions + embeddings + norms + halves + _head_parameters(head_width, head_depth, width, 16)


# Rows: preset, width, depth, head width, head depth (arXiv 2406.11838, table 4), millions of parameters in all. The
# paper counts 943 M for MAR-H; the table's own shape has 942.4 M.
@pytest.mark.parametrize(
    ("name", "shape", "millions"),
    [
        ("mar_base", (768, 12, 1024, 6), 208),
        ("mar_large", (1024, 16, 1280, 8), 479),
        ("mar_huge", (1280, 20, 1536, 12), 943),
    ],
)
def test_published_sizes_have_as_many_parameters_as_the_paper_says(
    name: str, shape: tuple[int, int, int, int], millions: int
) -> None:
    count = sum(parameter.numel() for parameter in _on_meta(model_config(name)).parameters())
    assert count == _expected_parameters(*shape)
    assert abs(count / 1e6 - millions) < 1


@pytest.mark.parametrize("name", MODEL_SIZES)
def test_every_size_is_a_valid_config(name: str) -> None:
    config = model_config(name)
    assert config.tokens == math.prod(config.grid_shape)
    if config.class_num:
        assert config.grid * config.patch_size * config.vae_stride == config.img_size


@pytest.mark.parametrize("name", MODEL_SIZES)
def test_no_head_is_narrower_than_the_tokens_that_it_denoises(name: str) -> None:
    """What a head predicts has the noise of the token in it. A narrower head could never say all of it."""
    config = model_config(name)
    widths = [getattr(config, field, None) for field in ("diffloss_w", "diffloss_act_w", "head_width")]
    (width,) = [width for width in widths if width is not None]
    assert width >= config.token_channels


def test_fields_of_a_size_can_be_changed() -> None:
    assert model_config("pixel_small", img_size=16).tokens == 16
    assert model_config("pixel_small").tokens == 64


def test_the_error_about_an_unknown_size_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"mar_tiny.*mar_base, mar_large, mar_huge, pixel_small"):
        model_config("mar_tiny")


def test_an_impossible_change_of_a_size_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model pixel_small: .*img_size"):
        model_config("pixel_small", img_size=30)


def _without_dropout(**changes: Any) -> MAR:
    """A tiny random model, its dropout off, so that its loss depends on nothing but the generator."""
    config = {**TINY.to_dict(), "img_size": 16, "attn_dropout": 0.0, "proj_dropout": 0.0, **changes}
    return randomized(MAR(**config))


def _images(count: int = 5, channels: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(count, channels, 16, 16, generator=generator), torch.arange(count) % TINY.class_num


def _loss(model: MAR, latents: Tensor, labels: Tensor, mask_ratio: float = 0.6, seed: int = 9) -> Tensor:
    masked = max(1, math.ceil(model.config.tokens * mask_ratio))
    draws = [draw_example(model.config, masked, example_stream(seed, 0, place)) for place in range(len(latents))]
    dropped = torch.tensor([drawn.dropped for drawn in draws])
    return model(
        latents,
        torch.where(dropped, model.config.class_num, labels),
        torch.tensor(np.stack([drawn.order for drawn in draws])),
        torch.tensor(np.stack([drawn.timesteps for drawn in draws], axis=1)),
        torch.tensor(np.stack([drawn.noise for drawn in draws], axis=1)),
    )


def _head_inputs(model: MAR, latents: Tensor, labels: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    """What the loss hands to the head: targets [N, D], z [N, C] and timesteps [N]."""
    seen: list[tuple[Tensor, ...]] = []
    handle = model.diffloss.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    with torch.no_grad():
        _loss(model, latents, labels, mask_ratio)
    handle.remove()
    [(target, z, timesteps, _)] = seen
    return target, z.repeat(len(target) // len(z), 1), timesteps


def _position_of(token: Tensor, tokens: Tensor) -> tuple[int, int]:
    """(image, position) of the one token [D] in tokens [B, L, D] that has these very values."""
    [[image, position]] = (tokens == token).all(dim=-1).nonzero().tolist()
    return image, position


@pytest.mark.parametrize(
    ("mask_ratio", "masked"), [(1.0, 16), (0.95, 16), (0.75, 12), (0.7, 12), (0.0625, 1), (0.0, 1)]
)
def test_the_head_receives_each_masked_token_as_often_as_configured(mask_ratio: float, masked: int) -> None:
    model, (latents, labels) = _without_dropout(diffusion_batch_mul=3), _images()
    target, z, timesteps = _head_inputs(model, latents, labels, mask_ratio)
    assert len(target) == len(z) == len(timesteps) == 3 * len(latents) * masked
    tokens = model.patchify(latents)
    times_seen = Counter(_position_of(token, tokens) for token in target)
    assert set(times_seen.values()) == {3}
    assert Counter(image for image, _ in times_seen) == dict.fromkeys(range(len(latents)), masked)


def test_each_image_has_masked_tokens_and_each_token_timesteps_of_its_own() -> None:
    model, (latents, labels) = _without_dropout(), _images()
    target, _, timesteps = _head_inputs(model, latents, labels, 0.5)
    tokens = model.patchify(latents)
    masked_of: dict[int, set[int]] = {}
    for token in target:
        image, position = _position_of(token, tokens)
        masked_of.setdefault(image, set()).add(position)
    assert len({frozenset(positions) for positions in masked_of.values()}) == len(latents)
    first, second = timesteps.chunk(2)
    assert (first != second).any()
    assert len(timesteps.unique()) > len(timesteps) / 2
    assert timesteps.min() >= 0
    assert timesteps.max() <= 999


def test_z_depends_on_visible_tokens_and_on_no_masked_one() -> None:
    """Were it otherwise, the loss would fall and the samples would be noise."""
    model, (latents, labels) = _without_dropout(), _images(count=1)
    target, z, _ = _head_inputs(model, latents, labels, 0.75)
    tokens = model.patchify(latents)
    masked = {_position_of(token, tokens)[1] for token in target}
    for position in range(16):
        row, column = divmod(position, 4)
        changed = latents.clone()
        changed[:, :, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4] += 1
        same = torch.equal(_head_inputs(model, changed, labels, 0.75)[1], z)
        assert same == (position in masked)


def test_every_token_is_paired_with_the_z_of_its_own_image_and_position() -> None:
    """As the published form of the backbone gives them, which knows positions by their place alone."""
    model, (latents, labels) = _without_dropout(label_drop_prob=0.0, diffusion_batch_mul=3), _images()
    target, z, _ = _head_inputs(model, latents, labels, 0.75)
    tokens = model.patchify(latents)
    images, positions = torch.tensor([_position_of(token, tokens) for token in target]).T
    masked = torch.zeros(len(latents), 16, dtype=torch.bool)
    masked[images, positions] = True
    with torch.no_grad():
        expected = published._backbone(model, tokens, masked, labels)[images, positions]
    assert relative_l2(z.numpy(), expected.numpy()) < 1e-5  # float32


def test_the_loss_is_the_mean_over_what_the_head_returns() -> None:
    model, (latents, labels) = _without_dropout(), _images()
    returned: list[Tensor] = []
    model.diffloss.register_forward_hook(lambda module, inputs, output: returned.append(output))
    loss = _loss(model, latents, labels)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(returned[0].double().mean().item(), rel=1e-6)


def test_the_gradient_of_the_loss_reaches_every_parameter_of_backbone_and_head() -> None:
    model, (latents, labels) = _without_dropout(label_drop_prob=0.5), _images(count=20)
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(_loss(model, latents, labels), parameters)
    without = [name for name, gradient in zip(names, gradients, strict=True) if not gradient.any()]
    assert without == []


def test_the_same_generator_gives_the_same_loss_and_another_gives_another() -> None:
    model, (latents, labels) = _without_dropout(), _images()
    assert _loss(model, latents, labels, seed=1).item() == _loss(model, latents, labels, seed=1).item()
    assert _loss(model, latents, labels, seed=1).item() != _loss(model, latents, labels, seed=2).item()


@pytest.mark.parametrize(("probability", "labels_matter"), [(0.0, True), (1.0, False)])
def test_labels_matter_unless_they_are_all_dropped(probability: float, labels_matter: bool) -> None:
    model, (latents, labels) = _without_dropout(label_drop_prob=probability), _images()
    others = (labels + 1) % TINY.class_num
    assert (_loss(model, latents, labels).item() != _loss(model, latents, others).item()) == labels_matter


def test_a_dropped_label_becomes_the_class_of_no_label() -> None:
    """The embedding that sampling without guidance uses is the one that dropped labels have trained."""
    always, never = (_without_dropout(label_drop_prob=probability) for probability in (1.0, 0.0))
    latents, labels = _images()
    no_class = torch.full_like(labels, TINY.class_num)
    assert _loss(always, latents, labels).item() == _loss(never, latents, no_class).item()


class _LabelsHeard(MAR):
    """A model that remembers the labels it has embedded last."""

    heard: list[int]

    def class_embedding(self, labels: Tensor) -> Tensor:
        self.heard = labels.tolist()
        return super().class_embedding(labels)


def test_labels_are_dropped_as_often_as_configured() -> None:
    model = _LabelsHeard(**{**TINY.to_dict(), "label_drop_prob": 0.3})
    with torch.no_grad():
        _loss(model, torch.zeros(2000, 1, 12, 12), torch.ones(2000, dtype=torch.int64), mask_ratio=0.1)
    counts = Counter(model.heard)
    assert set(counts) == {1, TINY.class_num}
    assert abs(counts[TINY.class_num] / 2000 - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 2000)


def test_a_fresh_head_predicts_zero_so_that_its_first_error_is_the_noise_itself() -> None:
    head = DiffusionLoss(token_channels=6, z_channels=10, width=16, depth=2)
    x, z = torch.randn(4, 6), torch.randn(4, 10)
    assert not head.net(x, torch.tensor([0.0, 1.0, 500.0, 999.0]), z).any()


@pytest.mark.parametrize("patch_size", [1, 2, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_unpatchify_of_the_runtime_inverts_patchify(patch_size: int, channels: int) -> None:
    model = MAR(**{**TINY.to_dict(), "img_size": 16, "patch_size": patch_size, "vae_embed_dim": channels})
    latents, _ = _images(channels=channels)
    tokens = model.patchify(latents)
    assert tokens.shape == (5, model.config.tokens, model.config.token_channels)
    assert np.array_equal(unpatchify(tokens.numpy(), model.config.grid_shape, patch_size), latents.numpy())


def test_a_token_is_a_patch_in_raster_order_with_channels_outermost() -> None:
    model = MAR(**{**TINY.to_dict(), "img_size": 16, "patch_size": 4, "vae_embed_dim": 3})
    latents, _ = _images(channels=3)
    patch = latents[2, :, 4:8, 12:16]  # the second row of the grid, its last column
    assert torch.equal(model.patchify(latents)[2, 7], patch.flatten())
