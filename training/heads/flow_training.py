"""A flow head in place of the head of a model, and its loss on real tokens."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from training.data.draws import draw_timesteps
from training.heads.dataset import HeadDataset
from training.heads.train_step import Loss
from training.models.mar import MAR


def with_flow_head(model: MAR, distilled_steps: int = 0) -> MAR:
    """Copy `model` with a flow head that has the weights of its head.

    They are a good start for training: at high noise the velocity is nearly the noise itself, and the head's time input
    has the same scale for diffusion and for flow.
    """
    copy = MAR(**{**model.config.to_dict(), "head": "flow", "distilled_steps": distilled_steps})
    copy.load_state_dict(model.state_dict())
    return copy.eval()


def flow_loss(model: MAR, dataset: HeadDataset) -> Loss:
    """Return the loss of the flow head of `model` on the rows of a dataset.

    Labels are dropped as often as in the training of the model, for classifier-free guidance.
    """
    diffloss, drop_probability = model.diffloss, model.config.label_drop_prob

    def loss(indices: Tensor, random: np.random.Generator) -> Tensor:
        rows = dataset.rows(indices)
        dropped = torch.from_numpy(random.random((len(indices), 1)) < drop_probability)
        timesteps = torch.from_numpy(draw_timesteps("flow", (len(indices),), random))
        noise = torch.from_numpy(random.standard_normal(rows.target.shape, np.float32))
        z = torch.where(dropped, rows.unconditional_z, rows.z)
        mean: Tensor = diffloss(rows.target, z, timesteps, noise).mean()
        return mean

    return loss
