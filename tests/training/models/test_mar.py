"""The model: its published names, its sizes, its loss against the formulas of the papers, its config."""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from runtime.errors import ConfigError
from runtime.model.config import ModelConfig
from runtime.model.latents import unpatchify
from tests.helpers.distance import relative_l2
from tests.helpers.golden_cases import GOLDEN
from tests.helpers.tiny_runs import TINY, one_sentence, one_thread, randomized
from training.data.draws import draw_example, draw_mask_ratio, example_stream
from training.models import reference_loop as published
from training.models.diffusion_head import DiffusionLoss
from training.models.mar import MAR
from training.models.model_sizes import MODEL_SIZES, model_config


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def _on_meta(config: ModelConfig) -> MAR:
    with torch.device("meta"):
        return MAR(**config.to_dict())


# Names and sizes


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
def test_published_presets_have_as_many_parameters_as_the_paper_says(
    name: str, shape: tuple[int, int, int, int], millions: int
) -> None:
    count = sum(parameter.numel() for parameter in _on_meta(model_config(name)).parameters())
    assert count == _expected_parameters(*shape)
    assert abs(count / 1e6 - millions) < 1


@pytest.mark.parametrize("name", MODEL_SIZES)
def test_every_preset_is_a_valid_config_of_whole_tokens(name: str) -> None:
    config = model_config(name)
    assert config.grid * config.patch_size * config.vae_stride == config.img_size
    assert config.tokens == config.grid**2


def test_a_preset_can_be_changed_field_by_field() -> None:
    assert model_config("pixel_small", img_size=16).tokens == 16
    assert model_config("pixel_small").tokens == 64


def test_an_unknown_preset_is_refused_with_the_known_names() -> None:
    with pytest.raises(ConfigError, match=r"mar_tiny.*mar_base, mar_large, mar_huge, pixel_small"):
        model_config("mar_tiny")


def test_an_impossible_change_of_a_preset_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"preset pixel_small: .*img_size"):
        model_config("pixel_small", img_size=30)


# The loss of the head, from the formulas alone


def _process(t: int) -> tuple[float, float, float, float]:
    """(beta, alpha bar, alpha bar before, variance of the posterior) of a step counted from 0.

    Improved DDPM (arXiv 2102.09672), eq. 17 for the schedule and eq. 10 for the variance, which is
    zero at the first step: there the published code, and so every checkpoint, uses the second's.
    """

    def f(step: int) -> float:
        return math.cos((step / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - f(step + 1) / f(step), 0.999) for step in range(max(t, 1) + 1)]
    bars = [1.0]
    for step_beta in betas:
        bars.append(bars[-1] * (1 - step_beta))
    shown = max(t, 1)
    variance = (1 - bars[shown]) / (1 - bars[shown + 1]) * betas[shown]
    return betas[t], bars[t + 1], bars[t], variance


def _noisy(target: Tensor, noise: Tensor, t: int) -> Tensor:
    bar = _process(t)[1]
    return math.sqrt(bar) * target + math.sqrt(1 - bar) * noise


def _literal_loss(target: Tensor, noise: Tensor, eps: Tensor, v: Tensor, t: int) -> Tensor:
    """The loss of one token [D]: eps MSE plus the bound in bits a dimension (DDPM, eqs. 14, 5 to 7, 11, 13)."""
    beta, bar, before, posterior_variance = _process(t)
    x = _noisy(target, noise, t)
    fixed_eps = eps.detach()  # the bound trains the variance only (Improved DDPM, section 3.1)
    mean = (x - beta / math.sqrt(1 - bar) * fixed_eps) / math.sqrt(1 - beta)
    share = (v + 1) / 2
    sigma = torch.exp(0.5 * (share * math.log(beta) + (1 - share) * math.log(posterior_variance)))
    if t == 0:
        upper = Normal(mean, sigma).cdf(target + 1 / 255)
        lower = Normal(mean, sigma).cdf(target - 1 / 255)
        upper = torch.where(target > 0.999, 1.0, upper)
        lower = torch.where(target < -0.999, 0.0, lower)
        bound = -torch.log(upper - lower)
    else:
        true_mean = math.sqrt(before) * beta / (1 - bar) * target + math.sqrt(1 - beta) * (1 - before) / (1 - bar) * x
        bound = kl_divergence(Normal(true_mean, math.sqrt(posterior_variance)), Normal(mean, sigma))
    return ((eps - noise) ** 2).mean() + bound.mean() / math.log(2)


_TIMESTEPS = [0, 0, 0, 1, 2, 37, 250, 500, 750, 998, 999, 999]
# The head's loss is computed in float32, 6e-8 an operation; at the noisiest steps the bound squares a difference of
# means that is a hundred times smaller than its terms.
_LOSS_TOLERANCE = 1e-5


def _head_and_tokens() -> tuple[DiffusionLoss, Tensor, Tensor, Tensor]:
    """A random head, and targets [N, D], z [N, C] and noise [N, D] for each of _TIMESTEPS.

    Two values of each target at t = 0 lie in the outermost bins, which reach to infinity.
    """
    generator = torch.Generator().manual_seed(3)
    head = DiffusionLoss(token_channels=6, z_channels=10, width=16, depth=2)
    for parameter in head.parameters():
        parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    rows = len(_TIMESTEPS)
    target = torch.rand(rows, 6, generator=generator) * 2 - 1
    target[:3, 0], target[:3, 1] = 1.0, -1.0
    return head, target, torch.randn(rows, 10, generator=generator), torch.randn(rows, 6, generator=generator)


def _literal_losses(head: DiffusionLoss, target: Tensor, z: Tensor, noise: Tensor) -> Tensor:
    """The loss of every row in float64; gradients reach the head's parameters."""
    target, z, noise = target.double(), z.double(), noise.double()
    x = torch.stack([_noisy(target[row], noise[row], t) for row, t in enumerate(_TIMESTEPS)])
    eps, v = head.net(x, torch.tensor(_TIMESTEPS, dtype=torch.float64), z).chunk(2, dim=-1)
    return torch.stack(
        [_literal_loss(target[row], noise[row], eps[row], v[row], t) for row, t in enumerate(_TIMESTEPS)]
    )


def test_the_loss_of_the_head_is_the_papers_formula_at_every_timestep() -> None:
    head, target, z, noise = _head_and_tokens()
    with torch.no_grad():
        found = head(target, z, torch.tensor(_TIMESTEPS), noise)
        expected = _literal_losses(copy.deepcopy(head).double(), target, z, noise)
    assert found.shape == (len(_TIMESTEPS),)
    torch.testing.assert_close(found.double(), expected, rtol=_LOSS_TOLERANCE, atol=0)


@pytest.mark.parametrize("rows", [12, 1200])
def test_conditions_are_those_of_each_row_whatever_is_computed_once(rows: int) -> None:
    """With more rows than timesteps these come from a table."""
    net = _head_and_tokens()[0].net
    generator = torch.Generator().manual_seed(1)
    timesteps, z = torch.randint(0, 1000, (rows,), generator=generator), torch.randn(rows // 4, 10, generator=generator)
    x = torch.randn(rows, 6, generator=generator)
    expected = net(x, timesteps.float(), z.repeat(4, 1))
    torch.testing.assert_close(net.denoise(x, net.conditions(timesteps, z)), expected, rtol=1e-4, atol=1e-5)


def _gradients(loss: Tensor, head: DiffusionLoss) -> tuple[Tensor, Tensor]:
    """What the loss of one token tells eps and v, [D] each: the bias of the last layer gets it unchanged."""
    [gradient] = torch.autograd.grad(loss, [head.net.final_layer.linear.bias])
    of_eps, of_v = gradient.double().chunk(2)
    return of_eps, of_v


@pytest.mark.parametrize("row", range(len(_TIMESTEPS)), ids=[f"t={t}" for t in _TIMESTEPS])
def test_the_gradient_of_the_loss_is_that_of_the_papers_formula(row: int) -> None:
    head, target, z, noise = _head_and_tokens()
    exact = copy.deepcopy(head).double()
    of_eps, of_v = _gradients(head(target, z, torch.tensor(_TIMESTEPS), noise)[row], head)
    exact_of_eps, exact_of_v = _gradients(_literal_losses(exact, target, z, noise)[row], exact)
    assert relative_l2(of_eps.numpy(), exact_of_eps.numpy()) < _LOSS_TOLERANCE
    if 37 < _TIMESTEPS[row] < 999:
        # The two variances that v interpolates differ by less than one percent here, and so does what it is told.
        assert of_v.abs().max() < 1e-4 * of_eps.abs().max()
        assert exact_of_v.abs().max() < 1e-4 * exact_of_eps.abs().max()
    else:  # a difference of two distribution functions, or of two means: float32 leaves four digits of it
        assert relative_l2(of_v.numpy(), exact_of_v.numpy()) < 10 * _LOSS_TOLERANCE


def test_the_bound_trains_the_variance_and_not_the_mean() -> None:
    head, target, z, noise = _head_and_tokens()
    of_eps, of_v = _gradients(head(target, z, torch.tensor(_TIMESTEPS), noise).sum(), head)
    with torch.no_grad():
        timesteps = torch.tensor(_TIMESTEPS, dtype=torch.float64)
        x = torch.stack([_noisy(target[row].double(), noise[row].double(), t) for row, t in enumerate(_TIMESTEPS)])
        eps = copy.deepcopy(head).double().net(x, timesteps, z.double()).chunk(2, dim=-1)[0]
    mse_alone = (2 * (eps - noise) / eps.shape[1]).sum(dim=0)
    torch.testing.assert_close(
        of_eps, mse_alone, rtol=_LOSS_TOLERANCE, atol=_LOSS_TOLERANCE * float(of_eps.abs().max())
    )
    assert (of_v != 0).all()


# The loss of the model


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
def test_the_head_sees_the_masked_tokens_of_each_image_as_often_as_configured(mask_ratio: float, masked: int) -> None:
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


def test_what_predicts_a_token_depends_on_visible_tokens_and_on_no_masked_one() -> None:
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


def test_every_token_meets_the_z_of_its_own_image_and_position() -> None:
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


def test_the_same_generator_gives_the_same_loss_and_another_one_another() -> None:
    model, (latents, labels) = _without_dropout(), _images()
    assert _loss(model, latents, labels, seed=1).item() == _loss(model, latents, labels, seed=1).item()
    assert _loss(model, latents, labels, seed=1).item() != _loss(model, latents, labels, seed=2).item()


@pytest.mark.parametrize(("probability", "labels_matter"), [(0.0, True), (1.0, False)])
def test_labels_matter_unless_they_are_all_dropped(probability: float, labels_matter: bool) -> None:
    model, (latents, labels) = _without_dropout(label_drop_prob=probability), _images()
    others = (labels + 1) % TINY.class_num
    assert (_loss(model, latents, labels).item() != _loss(model, latents, others).item()) == labels_matter


def test_a_dropped_label_is_the_class_of_no_label() -> None:
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


# The mask ratio


def _truncated_normal(smallest: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(x, distribution function at x) of the normal around 1 with std 0.25 on smallest..1, integrated numerically."""
    x = np.linspace(smallest, 1, 200_001)
    density = np.exp(-0.5 * ((x - 1) / 0.25) ** 2)
    area = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return x, area / area[-1]


@pytest.mark.parametrize("smallest", [0.7, 0.0, 0.95])
def test_mask_ratios_are_drawn_from_the_truncated_normal(smallest: float) -> None:
    stream = np.random.default_rng(4)
    drawn = np.sort([draw_mask_ratio(smallest, stream) for _ in range(4000)])
    assert drawn[0] >= smallest
    assert drawn[-1] <= 1
    x, below = _truncated_normal(smallest)
    # Kolmogorov and Smirnov: all quantiles at once; a right generator exceeds this once in a thousand seeds.
    steps = np.arange(len(drawn) + 1) / len(drawn)
    expected = np.interp(drawn, x, below)
    distance = max(np.abs(expected - steps[1:]).max(), np.abs(expected - steps[:-1]).max())
    assert distance < 1.95 / math.sqrt(len(drawn))
    mean = np.trapezoid(1 - below, x) + smallest
    spread = math.sqrt(2 * np.trapezoid((1 - below) * (x - smallest), x) - (mean - smallest) ** 2)
    assert abs(drawn.mean() - mean) < 4 * spread / math.sqrt(len(drawn))


# Patches


@pytest.mark.parametrize("patch_size", [1, 2, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_patchify_is_undone_by_the_runtimes_unpatchify(patch_size: int, channels: int) -> None:
    model = MAR(**{**TINY.to_dict(), "img_size": 16, "patch_size": patch_size, "vae_embed_dim": channels})
    latents, _ = _images(channels=channels)
    tokens = model.patchify(latents)
    assert tokens.shape == (5, model.config.tokens, model.config.token_channels)
    assert np.array_equal(unpatchify(tokens.numpy(), model.config.grid, patch_size), latents.numpy())


def test_a_token_is_a_patch_in_raster_order_with_channels_outermost() -> None:
    model = MAR(**{**TINY.to_dict(), "img_size": 16, "patch_size": 4, "vae_embed_dim": 3})
    latents, _ = _images(channels=3)
    patch = latents[2, :, 4:8, 12:16]  # the second row of the grid, its last column
    assert torch.equal(model.patchify(latents)[2, 7], patch.flatten())


# The config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("img_size", "32"),
        ("img_size", 32.0),
        ("img_size", None),
        ("img_size", 0),
        ("img_size", -32),
        ("img_size", 1 << 20),
        ("img_size", 100),  # not a multiple of the stride of 16
        ("vae_stride", True),
        ("vae_stride", 0),
        ("patch_size", [1]),
        ("patch_size", 3),  # 16 latents to a side are not a multiple
        ("vae_embed_dim", 0),
        ("class_num", 0),
        ("class_num", 1e3),
        ("buffer_size", 0),
        ("encoder_embed_dim", 1000),  # not a multiple of 16 heads
        ("encoder_num_heads", 5),
        ("encoder_num_heads", 0),
        ("encoder_depth", 0),
        ("decoder_embed_dim", 1000),
        ("decoder_num_heads", 5),
        ("decoder_depth", -1),
        ("mlp_ratio", math.nan),
        ("mlp_ratio", math.inf),
        ("mlp_ratio", "4"),
        ("mlp_ratio", 0),
        ("diffloss_d", 0),
        ("diffloss_w", {}),
        ("mask_ratio_min", math.nan),
        ("mask_ratio_min", 1),
        ("mask_ratio_min", -0.1),
        ("label_drop_prob", 1.1),
        ("label_drop_prob", -1),
        ("attn_dropout", 1.0),
        ("proj_dropout", math.nan),
        ("diffusion_batch_mul", 0),
        ("diffusion_batch_mul", 2.5),
    ],
)
def test_an_impossible_config_is_refused_by_the_name_of_its_field(field: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfig(**{field: value})  # type: ignore[arg-type]
    message = one_sentence(caught)
    related = {"encoder_num_heads": "encoder_embed_dim", "decoder_num_heads": "decoder_embed_dim"}
    assert field in message or related.get(field, field) in message
    assert str(value) in message or repr(value) in message


def test_a_config_read_from_a_file_names_the_file_in_its_error() -> None:
    with pytest.raises(ConfigError, match=r"^shape\.json: .*depth") as caught:
        ModelConfig.from_dict({"encoder_depth": 0}, "shape.json")
    one_sentence(caught)


def test_a_key_the_config_does_not_know_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^shape\.json: .*\bencoder_dept\b"):
        ModelConfig.from_dict({"encoder_dept": 2}, "shape.json")


def test_whole_numbers_are_taken_where_a_fraction_is_meant() -> None:
    assert ModelConfig(mlp_ratio=4, attn_dropout=0).to_dict() == ModelConfig(attn_dropout=0.0).to_dict()


def test_a_config_survives_its_way_through_json() -> None:
    assert ModelConfig.from_dict(json.loads(json.dumps(TINY.to_dict())), "here") == TINY
