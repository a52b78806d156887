"""The training step of a tokenizer: its losses, the discriminator and micro-batches."""

from __future__ import annotations

import pathlib

import pytest
import torch

from tests.helpers.tiny_runs import (
    tiny_tokenizer,
    write_idx_dataset,
)
from training.data.datasets import open_dataset, to_rgb
from training.data.latent_dataset import PixelLatents
from training.data.loader import ImageBatches, MicroBatch
from training.distributed import Processes
from training.tokenizer.config import TokenizerConfig
from training.tokenizer.discriminator import PatchDiscriminator, adaptive_weight, hinge_loss
from training.tokenizer.step import TokenizerTrainStep

_SIZE = 16


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_idx_dataset(tmp_path_factory.mktemp("noise") / "data", side=_SIZE)


def _part(config: TokenizerConfig, number: int = 0) -> MicroBatch:
    source = PixelLatents(to_rgb(open_dataset(pathlib.Path(config.data), _SIZE)))
    return ImageBatches(source, (2, _SIZE // 2), config.training, 0, 1)[number]


def test_the_discriminator_is_trained_from_its_first_step_on(data: pathlib.Path) -> None:
    config = tiny_tokenizer(data, 4)
    train_step = TokenizerTrainStep(config, Processes())
    before = {name: weight.clone() for name, weight in train_step.model.discriminator.named_parameters()}
    autoencoder = train_step.model.vae.decoder.conv_out.weight.clone()
    first = train_step.update(0, [_part(config)])
    assert all(torch.equal(before[name], weight) for name, weight in train_step.model.discriminator.named_parameters())
    assert not torch.equal(autoencoder, train_step.model.vae.decoder.conv_out.weight)
    assert set(first.parts) == {"l1", "kl"}
    later = train_step.update(2, [_part(config)])
    moved = {n: not torch.equal(before[n], weight) for n, weight in train_step.model.discriminator.named_parameters()}
    assert all(moved[name] for name in moved if name.endswith("weight"))
    assert set(later.parts) == {"l1", "kl", "adaptive_weight", "discriminator"}


def test_the_loss_is_that_of_the_paper(data: pathlib.Path) -> None:
    """The mean absolute error and the closed form of the KL divergence, both per pixel value."""
    config = tiny_tokenizer(data, 4, kl_weight=0.5)
    train_step, part = TokenizerTrainStep(config, Processes()), _part(config)
    with torch.no_grad():
        mean, log_variance = train_step.model.vae.moments(part.batch[0]).double().chunk(2, dim=1)
        latents = mean + (0.5 * log_variance).exp() * part.batch[1]
        reconstruction = train_step.model.vae.decoder(train_step.model.vae.post_quant_conv(latents.float()))
        posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
        divergence = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum()
        expected = (reconstruction - part.batch[0]).abs().mean() + 0.5 * divergence / part.batch[0].numel()
    assert train_step.update(0, [part]).loss == pytest.approx(expected.item(), rel=1e-5)


def test_micro_batches_give_the_same_step_as_one_batch(data: pathlib.Path) -> None:
    whole, halves = (tiny_tokenizer(data, 4, batch_size=4, accumulate=accumulate) for accumulate in (1, 2))
    outcomes = [
        TokenizerTrainStep(config, Processes()).update(0, [_part(config, number) for number in range(parts)])
        for config, parts in ((whole, 1), (halves, 2))
    ]
    assert outcomes[0].loss == pytest.approx(outcomes[1].loss, rel=1e-5)
    assert outcomes[0].gradient_norm == pytest.approx(outcomes[1].gradient_norm, rel=1e-4)


def test_the_gradient_is_that_of_the_sum_of_the_losses(data: pathlib.Path) -> None:
    """VQGAN's loss of both networks, written down in one piece and differentiated as a whole."""
    weights = {"kl_weight": 0.5, "adversarial_weight": 0.7, "perceptual_weight": 0.3}
    config = tiny_tokenizer(data, 4, adversarial_from=0, perceptual="efficientnet-lite0", **weights)
    train_step, part = TokenizerTrainStep(config, Processes()), _part(config)
    assert train_step.perceptual is not None
    vae, discriminator = train_step.model.vae, train_step.model.discriminator
    images, noise = part.batch
    reconstruction, mean, log_variance = vae.reconstruct(images, noise)
    near = (images - reconstruction).abs().mean() + 0.3 * train_step.perceptual(reconstruction, images).mean()
    adversarial = -discriminator(reconstruction).mean()
    weight = adaptive_weight(
        *(torch.autograd.grad(loss, vae.decoder.conv_out.weight, retain_graph=True)[0] for loss in (near, adversarial))
    )
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum() / images.numel()
    whole = near + 0.5 * divergence + 0.7 * weight * adversarial
    expected = list(torch.autograd.grad(whole, list(vae.parameters())))
    hinge = hinge_loss(discriminator(images), discriminator(reconstruction.detach()))
    expected += torch.autograd.grad(hinge, list(discriminator.parameters()))
    [loss], _, terms = train_step.gradients(0, [part])
    assert loss.item() == pytest.approx(whole.item(), rel=1e-5)
    assert terms["adaptive_weight"] == pytest.approx(weight.item(), rel=1e-4)
    for parameter, gradient in zip(train_step.model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_the_adaptive_weight_the_hinge_loss_and_the_scores_of_patches() -> None:
    gradient = torch.full((3, 4), 2.0)
    assert adaptive_weight(gradient, gradient / 10).item() == pytest.approx(10, rel=1e-3)
    assert adaptive_weight(gradient, torch.zeros(3)).item() == 1e4
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0])
    assert hinge_loss(real, fake).item() == pytest.approx(0.5 * (0.25 + 0.5))
    network = PatchDiscriminator(8, 2).eval()
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(network(images)[:1], network(images[:1]))  # a score depends on one image only
    assert network(images).shape == (3, 1, 6, 6)
