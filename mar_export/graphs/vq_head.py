"""A head of codes as the two engines of a head: logits take the place of modulation, and one step draws."""

from __future__ import annotations

from torch import Tensor, nn

from runtime.model.coefficients import COEFFICIENTS
from training.models.mar import MAR
from training.models.vq_head import sample_codes

_TEMPERATURE = COEFFICIENTS.index("noise_scale")


class VQConditioning(nn.Module):
    """z [GN, C] to logits [T, GN, codes], the same at every timestep; a plan has one."""

    def __init__(self, model: MAR) -> None:
        super().__init__()
        self.net = model.diffloss.net

    def forward(self, z: Tensor, timesteps: Tensor) -> Tensor:
        return self.net(z).expand(timesteps.shape[0], -1, -1)


class VQDenoise(nn.Module):
    """The token of the code that the first channel of the noise draws; x and previous x0 are not looked at."""

    def __init__(self, model: MAR) -> None:
        super().__init__()
        self.codebook = model.diffloss.codebook

    def forward(
        self, x: Tensor, previous_x0: Tensor, noise: Tensor, modulation: Tensor, coefficients: Tensor, guidance: Tensor
    ) -> tuple[Tensor, Tensor]:
        drawn = self.codebook[sample_codes(modulation, guidance, coefficients[_TEMPERATURE], noise[:, 0])]  # [N, D]
        return drawn, drawn.clone()
