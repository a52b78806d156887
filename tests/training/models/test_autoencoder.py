"""The autoencoder computes what the published one does, and its config is read off its parameters."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from runtime.errors import CheckpointError
from tests.helpers.distance import relative_l2
from tests.helpers.formula_weights import FULL, formula_weights
from tests.helpers.published_forms import VAE, vae_shapes, vae_weights
from tests.helpers.tiny_runs import one_sentence
from training.checkpoints.tensor_files import assign_weights
from training.models.autoencoder import AutoencoderKL, VAEConfig, vae_config

_KL16 = {name: tuple(shape) for name, shape in json.loads((FULL / "kl16_parameters.json").read_text()).items()}
_KL8 = VAEConfig(latent_channels=4, width=128, multipliers=(1, 2, 4, 4), blocks=2, attention_levels=())


@pytest.fixture(scope="module")
def kl16() -> AutoencoderKL:
    """The published autoencoder, its weights by formula."""
    with torch.device("meta"):
        vae = AutoencoderKL(vae_config(_KL16, "kl16.ckpt"))
    assign_weights(vae, formula_weights(_KL16), "kl16.ckpt")
    return vae


@pytest.fixture(scope="module")
def golden() -> dict[str, NDArray[np.float32]]:
    """What the published code computes with these weights."""
    with np.load(FULL / "kl16.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def small() -> AutoencoderKL:
    vae = AutoencoderKL(VAE)
    vae.load_state_dict(vae_weights())
    return vae.eval().requires_grad_(False)


# What it computes


def test_a_golden_image_is_decoded_as_published(kl16: AutoencoderKL, golden: dict[str, NDArray[np.float32]]) -> None:
    latents = torch.from_numpy(golden["latents"]) * 0.2325  # as MAR draws them
    assert relative_l2(kl16.decode(latents).numpy(), golden["decoded"]) < 1e-5


def test_a_golden_image_is_encoded_as_published(kl16: AutoencoderKL, golden: dict[str, NDArray[np.float32]]) -> None:
    image = torch.from_numpy(golden["image"])
    moments = kl16.moments(image)
    assert relative_l2(moments.numpy(), golden["moments"]) < 1e-5


def test_latents_are_scaled_between_the_model_and_the_autoencoder(small: AutoencoderKL) -> None:
    image = torch.rand(2, 3, 16, 16) * 2 - 1
    latents = small.encode(image)
    mean, log_variance = small.moments(image).chunk(2, dim=1)
    torch.testing.assert_close(latents, 0.2325 * mean)
    assert not torch.allclose(latents, 0.2325 * log_variance)
    torch.testing.assert_close(small.decode(latents), small.decoder(small.post_quant_conv(mean)))


def test_images_need_not_be_square_and_do_not_influence_each_other(small: AutoencoderKL) -> None:
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    latents = small.encode(images)
    assert latents.shape == (2, 4, 4, 6)
    decoded = small.decode(latents)
    assert decoded.shape == images.shape
    for number in range(2):
        torch.testing.assert_close(small.encode(images[number : number + 1])[0], latents[number])
        torch.testing.assert_close(small.decode(latents[number : number + 1])[0], decoded[number])


def test_every_parameter_influences_the_output(small: AutoencoderKL) -> None:
    """One that is never read would be lost on the way to an engine, and nobody would see it."""
    vae = AutoencoderKL(VAE)
    vae.load_state_dict(vae_weights())
    image = torch.rand(1, 3, 16, 16)
    torch.autograd.backward([vae.moments(image).square().sum(), vae.decode(torch.randn(1, 4, 4, 4)).square().sum()])
    untouched = [name for name, value in vae.named_parameters() if value.grad is None or not value.grad.abs().max() > 0]
    assert [name for name in untouched if not name.endswith("k.bias")] == []  # adding to all keys changes no weight


# Its config


def test_the_parameters_are_the_published_ones(kl16: AutoencoderKL) -> None:
    assert kl16.config == VAEConfig()
    actual = {name: tuple(tensor.shape) for name, tensor in kl16.state_dict().items()}
    assert actual == _KL16


def test_kl16_has_a_stride_of_16_and_kl8_one_of_8() -> None:
    assert (VAEConfig().stride, _KL8.stride) == (16, 8)


def test_the_config_of_kl8_is_inferred_from_its_parameters() -> None:
    shapes = vae_shapes(_KL8)
    assert vae_config(shapes, "kl8.ckpt") == _KL8
    # Known of the published one: its size, and that attention stands in the middle only.
    assert sum(math.prod(shape) for shape in shapes.values()) == 83_653_863
    assert {name.split(".attn")[0] for name in shapes if "attn" in name} == {"encoder.mid", "decoder.mid"}
    assert shapes["decoder.up.0.block.0.nin_shortcut.weight"] == (128, 256, 1, 1)
    assert shapes["encoder.conv_out.weight"] == (8, 512, 3, 3)


@st.composite
def _configs(draw: st.DrawFn) -> VAEConfig:
    multipliers = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    levels = draw(st.sets(st.integers(0, len(multipliers) - 1)))
    return VAEConfig(
        latent_channels=draw(st.integers(1, 20)),
        width=32 * draw(st.integers(1, 3)),
        multipliers=multipliers,
        blocks=draw(st.integers(1, 3)),
        attention_levels=tuple(sorted(levels)),
        patch_size=draw(st.integers(1, 3)),
        linear_path=draw(st.booleans()),
    )


@given(_configs())
@settings(max_examples=12)
def test_any_config_is_inferred_from_its_parameters(config: VAEConfig) -> None:
    assert vae_config(vae_shapes(config), "vae.ckpt") == config


# What is none of its kind


@pytest.mark.parametrize(
    "name", ["encoder.conv_in.weight", "encoder.down.1.block.0.conv2.weight", "post_quant_conv.weight"]
)
def test_the_error_about_missing_parameters_names_one_that_determines_the_config(name: str) -> None:
    shapes = vae_shapes(VAE)
    del shapes[name]
    with pytest.raises(CheckpointError, match=rf"^vae\.ckpt: not a KL autoencoder.*{name}") as caught:
        vae_config(shapes, "vae.ckpt")
    one_sentence(caught)


@pytest.mark.parametrize("shape", [(), (32,), (0, 3, 3, 3), (48, 3, 3, 3), (32, 1, 3, 3), (32, 4, 3, 3)], ids=str)
def test_a_first_layer_of_a_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(CheckpointError, match=r"^vae\.ckpt: ") as caught:
        vae_config({**vae_shapes(VAE), "encoder.conv_in.weight": shape}, "vae.ckpt")
    one_sentence(caught)


def test_the_groups_of_normalizations_are_a_field_and_no_shape_tells_them() -> None:
    """With 32 groups a width of 32 would have a mean and a variance for every single channel."""
    narrow = dataclasses.replace(VAE, norm_groups=8)
    assert vae_shapes(narrow) == vae_shapes(VAE)
    assert vae_config(vae_shapes(narrow), "vae.ckpt", 8) == narrow
    norms = [module for module in AutoencoderKL(narrow).modules() if isinstance(module, torch.nn.GroupNorm)]
    assert {norm.num_groups for norm in norms} == {8}
    with pytest.raises(CheckpointError, match="a multiple of 24, found 3 and 32"):
        vae_config(vae_shapes(VAE), "vae.ckpt", 24)


def test_a_patch_becomes_the_channels_of_one_position() -> None:
    """The stride grows with it, and an image moved by a patch gives moved features of the first convolution."""
    config = dataclasses.replace(VAE, patch_size=2, multipliers=(1, 2))
    vae = AutoencoderKL(config)
    assert config.stride == 4
    image = torch.rand(1, 3, 16, 24)
    assert vae.encode(image).shape == (1, 4, 4, 6)
    assert vae.decode(vae.encode(image)).shape == image.shape
    first = [vae.encoder.conv_in(vae.encoder.patchify(each)) for each in (image, image.roll(2, dims=3))]
    torch.testing.assert_close(first[0][..., 2:-2], first[1][..., 3:-1])


def test_a_network_beside_a_linear_path_begins_with_zeros() -> None:
    vae = AutoencoderKL(dataclasses.replace(VAE, linear_path=True))
    assert vae.linear is not None
    image, latents = torch.rand(2, 3, 16, 16), torch.randn(2, 4, 4, 4)
    torch.testing.assert_close(vae.moments(image), vae.linear.encode(image))
    torch.testing.assert_close(vae.decode(latents * vae.latent_scale), vae.linear.decode(latents))
    vae.moments(image).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in vae.encoder.conv_out.parameters())


@pytest.mark.parametrize("width", [16, 48])
def test_the_error_about_a_width_that_is_no_multiple_of_the_groups_says_so(width: int) -> None:
    shapes = {**vae_shapes(VAE), "encoder.conv_in.weight": (width, 3, 3, 3)}
    with pytest.raises(CheckpointError, match=rf"a multiple of 32, found 3 and {width}") as caught:
        vae_config(shapes, "vae.ckpt")
    one_sentence(caught)


def test_the_names_of_diffusers_own_autoencoder_are_refused() -> None:
    """Its parameters have other names, of which some are the same."""
    shapes = {
        name.replace("encoder.down.", "encoder.down_blocks.").replace(".block.", ".resnets."): shape
        for name, shape in vae_shapes(VAE).items()
    }
    with pytest.raises(CheckpointError, match="not a KL autoencoder under the published parameter names") as caught:
        vae_config(shapes, "vae")
    one_sentence(caught)


def test_a_missing_level_is_refused() -> None:
    shapes = {name: shape for name, shape in vae_shapes(VAE).items() if not name.startswith("encoder.down.1.")}
    with pytest.raises(CheckpointError, match=r"encoder\.down\.1\.block\.0\.conv2\.weight"):
        vae_config(shapes, "vae.ckpt")


def test_different_configs_have_different_parameters() -> None:
    """Or reading it off them would prove nothing."""
    changes: list[dict[str, Any]] = [
        {"latent_channels": 5},
        {"width": 64},
        {"multipliers": (1, 2, 3)},
        {"blocks": 2},
        {"attention_levels": ()},
        {"patch_size": 2},
        {"linear_path": True},
    ]
    made = [vae_shapes(dataclasses.replace(VAE, **change)) for change in ({}, *changes)]
    assert all(one != other for number, one in enumerate(made) for other in made[:number])
