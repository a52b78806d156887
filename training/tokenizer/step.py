"""The training step of a KL autoencoder with a discriminator (VQGAN, arXiv 2012.09841; LDM, arXiv 2112.10752)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from training.data.loader import ImageBatch, MicroBatch
from training.distributed import Processes
from training.loop.optimizer_step import TrainStep
from training.models.autoencoder import AutoencoderKL
from training.models.numerics import autocast
from training.tokenizer.config import TokenizerConfig, TokenizerTraining
from training.tokenizer.discriminator import PatchDiscriminator, adaptive_weight, hinge_loss
from training.tokenizer.perceptual import open_perceptual


class TokenizerModel(nn.Module):
    """The autoencoder and the discriminator, which are trained together."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.vae = AutoencoderKL(config.model)
        self.discriminator = PatchDiscriminator(
            config.training.discriminator_width, config.training.discriminator_layers
        )


class TokenizerTrainStep(TrainStep):
    """One optimizer step of the autoencoder and the discriminator together.

    The gradient of the discriminator is computed from reconstructions by the autoencoder before its own step. Before
    step `adversarial_from` that gradient is zero, so that both networks always have taken the same number of steps.
    """

    model: TokenizerModel
    config: TokenizerTraining

    def __init__(self, config: TokenizerConfig, processes: Processes) -> None:
        torch.manual_seed(config.training.seed)
        model = TokenizerModel(config).to(processes.device)
        if config.training.decoder_only:
            for part in model.vae.encoding_parts():
                part.requires_grad_(False)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.training.learning_rate, betas=(0.5, 0.9), weight_decay=0.0, fused=True
        )
        super().__init__(model, model, optimizer, config.training, processes)
        perceptual = open_perceptual(config.training.perceptual)
        self.perceptual = None if perceptual is None else perceptual.to(processes.device)

    def set_autoencoder(self, weights: Mapping[str, Tensor]) -> None:
        """Set parameters of the autoencoder, by their names in it; every process must pass the same."""
        parameters = dict(self.model.vae.named_parameters())
        with torch.no_grad():
            for name, weight in weights.items():
                for copy in (parameters[name], self.average[f"vae.{name}"]):
                    copy.copy_(weight)

    def averaged_model(self) -> AutoencoderKL:
        """Return a new autoencoder with the moving average of the weights, in evaluation mode."""
        averaged = AutoencoderKL(self.model.vae.config).to(self.processes.device)
        averaged.load_state_dict(
            {name.removeprefix("vae."): tensor for name, tensor in self.average.items() if name.startswith("vae.")}
        )
        return averaged.eval()

    def gradients(self, step: int, batches: Iterable[MicroBatch]) -> tuple[Tensor, list[Tensor], dict[str, float]]:
        """Compute the gradients of both networks, see `TrainStep.gradients`.

        The terms of the loss are `l1`, `kl`, `perceptual`, `adaptive_weight` and `discriminator`, as far as they take
        part in this step.
        """
        adversarial = step >= self.config.adversarial_from
        losses, examples, terms = [], [], dict[str, Tensor]()
        for batch, indices, _ in batches:
            assert isinstance(batch, ImageBatch)
            loss, batch_terms = self._backward(batch, adversarial)
            losses.append(loss)
            examples.append(indices)
            for name, term in batch_terms.items():
                terms[name] = terms.get(name, torch.zeros_like(term)) + term / self.config.accumulate
        for parameter in self.model.parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = self.processes.mean(gradient)
        return torch.stack(losses), examples, {name: self.processes.mean(term).item() for name, term in terms.items()}

    def _backward(self, batch: ImageBatch, adversarial: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Add the gradients of a micro-batch to those of the parameters.

        Returns:
            The loss of the autoencoder, [], and its terms by name, [] each.
        """
        config = self.config
        images, noise = (part.contiguous(memory_format=torch.channels_last) for part in batch)  # faster convolutions
        with self.phase("forward"), autocast(config.precision, self.processes.device):
            output, mean, log_variance = self.model.vae.reconstruct(images, noise)
        output, mean, log_variance = output.float(), mean.float(), log_variance.float()
        reconstruction = output.detach().requires_grad_()  # so that each loss is differentiated once, down to here
        loss = (images - reconstruction).abs().mean()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum()  # KL divergence from N(0, 1)
        terms = {"l1": loss, "kl": divergence / len(images)}
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(reconstruction, images).mean()
            loss = loss + config.perceptual_weight * terms["perceptual"]
        with self.phase("backward"):
            (gradient,) = torch.autograd.grad(loss, reconstruction)
        if adversarial:
            adversarial_loss, adversarial_gradient = self._adversarial_loss(reconstruction)
            terms["adaptive_weight"] = self._adaptive_weight(output, gradient, adversarial_gradient)
            weight = config.adversarial_weight * terms["adaptive_weight"]
            loss, gradient = loss + weight * adversarial_loss, gradient + weight * adversarial_gradient
        regularization = config.kl_weight * divergence / images.numel()
        with self.phase("backward"):
            (((output * gradient).sum() + regularization) / config.accumulate).backward()
        if adversarial:
            terms["discriminator"] = self._discriminator_loss(images, output.detach())
            (terms["discriminator"] / config.accumulate).backward()
        return (loss + regularization).detach(), {name: term.detach() for name, term in terms.items()}

    def _adversarial_loss(self, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the adversarial loss [] of the autoencoder and its gradient, [B, 3, H, W] as `reconstruction`."""
        with autocast(self.config.precision, self.processes.device):
            loss = -self.model.discriminator(reconstruction).float().mean()
        (gradient,) = torch.autograd.grad(loss, reconstruction)
        return loss, gradient

    def _adaptive_weight(self, output: Tensor, *gradients: Tensor) -> Tensor:
        """Compute the weight [] of the adversarial loss.

        Args:
            output: The output of the autoencoder.
            *gradients: The gradients of the reconstruction loss and of the adversarial loss with respect to it.
        """
        last_layer = self.model.vae.decoder.conv_out.weight
        of_layer = (torch.autograd.grad(output, last_layer, each, retain_graph=True)[0] for each in gradients)
        return adaptive_weight(*(self.processes.mean(each) for each in of_layer))

    def _discriminator_loss(self, images: Tensor, reconstruction: Tensor) -> Tensor:
        """Compute the loss [] of the discriminator."""
        with autocast(self.config.precision, self.processes.device):
            real, fake = self.model.discriminator(torch.cat((images, reconstruction))).float().chunk(2)
        return hinge_loss(real, fake)
