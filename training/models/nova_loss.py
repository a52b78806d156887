"""What the head of a NOVA is trained to predict: a velocity or a noise, by the scheduler of the model."""

from __future__ import annotations

import torch
from torch import Tensor

from runtime.model.nova_config import FLOW, NovaScheduler
from runtime.sampling.noise_schedule import TRAIN_STEPS
from runtime.sampling.nova_sampling import alphas_cumprod


def noisy_and_target(
    scheduler: NovaScheduler, clean: Tensor, noise: Tensor, timesteps: Tensor
) -> tuple[Tensor, Tensor]:
    """Return tokens at their noise levels, and what the head should say of them, both [..., D].

    A flow is the straight path x = (1 - s) x0 + s noise with s = t/1000, whose velocity is noise - x0 (arXiv
    2209.03003, equation 1). DDPM is x = sqrt(a) x0 + sqrt(1 - a) noise (arXiv 2006.11239, equation 4), whose prediction
    is the noise, or v = sqrt(a) noise - sqrt(1 - a) x0 (arXiv 2202.00512, section 4).

    Args:
        scheduler: The noise process.
        clean: Tokens x0, [..., D].
        noise: Standard normal, [..., D].
        timesteps: [...]: float32 in 0..1000 for a flow, int64 in 0..999 for DDPM.
    """
    if scheduler.kind == FLOW:
        return torch.lerp(clean, noise, timesteps[..., None] / TRAIN_STEPS), noise - clean
    levels = torch.from_numpy(alphas_cumprod(scheduler)).float().to(clean.device)[timesteps][..., None]
    signal, sigma = levels.sqrt(), (1 - levels).sqrt()
    target = noise if scheduler.prediction_type == "epsilon" else signal * noise - sigma * clean
    return signal * clean + sigma * noise, target
