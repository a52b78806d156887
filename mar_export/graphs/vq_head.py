"""The VQ head as two engines: conditioning computes logits, and denoise samples a code in its only step."""

from __future__ import annotations

from torch import Tensor, nn

from runtime.model.coefficients import COEFFICIENTS
from training.models.mar import MAR
from training.models.vq_head import sample_codes

_TEMPERATURE = COEFFICIENTS.index("noise_scale")


class VQConditioning(nn.Module):
    """The engine `conditioning` of a VQ head: logits of the codes in place of modulation."""

    def __init__(self, model: MAR) -> None:
        super().__init__()
        self.net = model.diffloss.net

    def forward(self, z: Tensor, timesteps: Tensor) -> Tensor:
        """Compute logits [T, G*N, codes] for vectors z [G*N, C]; they are the same at each of the T timesteps."""
        return self.net(z).expand(timesteps.shape[0], -1, -1)


class VQDenoise(nn.Module):
    """The engine `denoise` of a VQ head: a code is sampled from the guided logits, and its token returned.

    The inputs and outputs are those of the diffusion head, so that one loop runs both.
    """

    def __init__(self, model: MAR) -> None:
        super().__init__()
        self.codebook = model.diffloss.codebook

    def forward(
        self, x: Tensor, previous_x0: Tensor, noise: Tensor, modulation: Tensor, coefficients: Tensor, guidance: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sample tokens [N, D], returned twice: as the next tokens and as the clean ones.

        Args:
            x: Not used.
            previous_x0: Not used.
            noise: Standard normal noise [N, D], of which the first channel selects the code.
            modulation: The logits [G*N, codes].
            coefficients: A row of the sampler's table, which contains the temperature as `noise_scale`.
            guidance: The guidance scale [1].
        """
        tokens = self.codebook[sample_codes(modulation, guidance, coefficients[_TEMPERATURE], noise[:, 0])]  # [N, D]
        return tokens, tokens.clone()
