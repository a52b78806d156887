"""The training loss of a rectified flow head, which predicts the velocity of a straight path from token to noise."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from runtime.sampling.noise_schedule import TRAIN_STEPS
from training.models.diffusion_head import HeadMLP


class FlowLoss(nn.Module):
    """The mean squared error of the velocity: E |v(x_t, t, z) - (noise - x)|^2 with x_t = (1 - t) x + t noise.

    This is equation 1 of arXiv 2209.03003. The network has the parameters of a diffusion head, so that either head can
    start from the weights of the other. The half of its output that is the variance of a diffusion head is not used.
    """

    def __init__(self, token_channels: int, z_channels: int, width: int, depth: int) -> None:
        super().__init__()
        self.net = HeadMLP(token_channels, z_channels, width, depth)

    def forward(self, target: Tensor, z: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """Return the loss of each token, [N].

        Args:
            target: Tokens, [N, D].
            z: The backbone's vectors, [N / Q, C]; each of Q repeats of the tokens uses the same ones.
            timesteps: Times in 0..1000, float32 [N].
            noise: Standard normal, [N, D].
        """
        return self.loss_of(target, timesteps, noise, lambda x: self.net.denoise(x, self.net.conditions(timesteps, z)))

    def loss_of(self, target: Tensor, timesteps: Tensor, noise: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the loss of each token, [N], of any network.

        Args:
            target: Tokens, [N, D].
            timesteps: Times in 0..1000, float32 [N].
            noise: Standard normal, [N, D].
            network: From noisy tokens [N, D] to [N, 2D]: the velocity, and D values that are ignored.
        """
        x = torch.lerp(target, noise, (timesteps / TRAIN_STEPS)[:, None])  # [N, D]
        velocity = network(x).to(x.dtype).chunk(2, dim=-1)[0]
        return (velocity - (noise - target)).square().mean(dim=-1)
