"""One step after another of a KL autoencoder against a discriminator (arXiv 2012.09841, 2112.10752)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from training.data.loader import ImageBatch, MicroBatch
from training.distributed import Processes
from training.loop.optimizer_step import TrainStep
from training.models.autoencoder import AutoencoderKL
from training.models.numerics import autocast
from training.tokenizer.config import TokenizerConfig, TokenizerTraining
from training.tokenizer.discriminator import PatchDiscriminator, adaptive_weight, hinge
from training.tokenizer.perceptual import open_perceptual


class TokenizerModel(nn.Module):
    """What is trained together: the autoencoder and the discriminator of its images."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.vae = AutoencoderKL(config.model)
        self.discriminator = PatchDiscriminator(
            config.training.discriminator_width, config.training.discriminator_layers
        )


class TokenizerTrainStep(TrainStep):
    """An autoencoder in training.

    Both networks take their step at once, the discriminator's by the images that the autoencoder made before its own.
    Before `adversarial_from` the discriminator's gradient is zero, so that both have taken as many steps.
    """

    model: TokenizerModel
    config: TokenizerTraining

    def __init__(self, config: TokenizerConfig, processes: Processes) -> None:
        torch.manual_seed(config.training.seed)
        model = TokenizerModel(config).to(processes.device)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.training.learning_rate, betas=(0.5, 0.9), weight_decay=0.0, fused=True
        )
        super().__init__(model, model, optimizer, config.training, processes)
        perceptual = open_perceptual(config.training.perceptual)
        self.perceptual = None if perceptual is None else perceptual.to(processes.device)

    def averaged_model(self) -> AutoencoderKL:
        """An autoencoder of its own with the averaged weights, in evaluation mode."""
        averaged = AutoencoderKL(self.model.vae.config).to(self.processes.device)
        averaged.load_state_dict(
            {name.removeprefix("vae."): tensor for name, tensor in self.average.items() if name.startswith("vae.")}
        )
        return averaged.eval()

    def gradients(self, step: int, batches: Iterable[MicroBatch]) -> tuple[Tensor, list[Tensor], dict[str, float]]:
        adversarial = step >= self.config.adversarial_from
        losses, examples, told = [], [], dict[str, Tensor]()
        for batch, indices, _ in batches:
            assert isinstance(batch, ImageBatch)
            loss, parts = self._backward(batch, adversarial)
            losses.append(loss)
            examples.append(indices)
            for name, part in parts.items():
                told[name] = told.get(name, torch.zeros_like(part)) + part / self.config.accumulate
        for parameter in self.model.parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = self.processes.mean(gradient)
        return torch.stack(losses), examples, {name: self.processes.mean(part).item() for name, part in told.items()}

    def _backward(self, batch: ImageBatch, adversarial: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Add the gradient of a micro-batch to the parameters': its loss [], and what that is made of."""
        config, vae, discriminator = self.config, self.model.vae, self.model.discriminator
        images = batch.images
        with self.phase("forward"), autocast(config.precision, self.processes.device):
            reconstruction, mean, log_variance = vae.reconstruct(images, batch.noise)
        reconstruction, mean, log_variance = reconstruction.float(), mean.float(), log_variance.float()
        absolute = (images - reconstruction).abs().mean()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum()  # from N(0, 1)
        parts = {"l1": absolute, "kl": divergence / len(images)}  # the second of an image
        reconstructed = absolute
        if self.perceptual is not None:
            parts["perceptual"] = self.perceptual(reconstruction, images).mean()
            reconstructed = reconstructed + config.perceptual_weight * parts["perceptual"]
        loss = reconstructed + config.kl_weight * divergence / images.numel()
        if adversarial:
            discriminator.requires_grad_(False)
            with autocast(config.precision, self.processes.device):
                fooled = -discriminator(reconstruction).float().mean()
            parts["adaptive_weight"] = self._adaptive_weight(reconstructed, fooled)
            loss = loss + config.adversarial_weight * parts["adaptive_weight"] * fooled
            discriminator.requires_grad_(True)
        with self.phase("backward"):
            (loss / config.accumulate).backward()
        if adversarial:
            with autocast(config.precision, self.processes.device):
                scores = [discriminator(batch).float() for batch in (images, reconstruction.detach())]
            parts["discriminator"] = hinge(*scores)
            (parts["discriminator"] / config.accumulate).backward()
        return loss.detach(), {name: part.detach() for name, part in parts.items()}

    def _adaptive_weight(self, reconstructed: Tensor, fooled: Tensor) -> Tensor:
        last = self.model.vae.decoder.conv_out.weight
        gradients = [torch.autograd.grad(loss, last, retain_graph=True)[0] for loss in (reconstructed, fooled)]
        return adaptive_weight(*(self.processes.mean(gradient) for gradient in gradients))
