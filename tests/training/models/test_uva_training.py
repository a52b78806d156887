"""The loss of UVA: a model that has seen one batch of recorded chunks often samples them back."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from runtime.model.uva_config import FRAMES, UvaConfig
from runtime.sampling.constraints import default_sampling, plan_for
from training.models.uva import Uva
from training.models.uva_reference import sample_actions

CONFIG = UvaConfig(
    encoder_embed_dim=16,
    encoder_depth=1,
    encoder_num_heads=2,
    decoder_embed_dim=16,
    decoder_depth=1,
    decoder_num_heads=2,
    diffloss_act_d=2,
    diffloss_act_w=64,
    action_dim=2,
    text_dim=8,
)
STEPS, REPEATS, RATE = 120, 32, 0.01


def test_one_batch_of_chunks_is_learned_and_sampled_back() -> None:
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    latents = random.standard_normal((2, FRAMES, *CONFIG.latent_shape), np.float32)
    text = random.standard_normal((2, CONFIG.text_dim), np.float32)
    time = np.linspace(0, 2 * np.pi, CONFIG.tokens, dtype=np.float32)
    phases = np.array([[0.0, 1.0], [2.0, 3.0]], np.float32)
    actions = 0.7 * np.sin(time[None, :, None] + phases[:, None])  # [2, 16, 2], another path for each robot
    model, recorded = Uva(**CONFIG.to_dict()), torch.from_numpy(actions)
    inputs = torch.from_numpy(latents), torch.from_numpy(text), None
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    losses = []
    for _ in range(STEPS):
        rows = REPEATS * recorded.shape[0] * recorded.shape[1]
        loss = model(*inputs, recorded, torch.randint(0, 1000, (rows,)), torch.randn(rows, CONFIG.action_dim))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    assert np.mean(losses[-20:]) < 0.1 * np.mean(losses[:5])
    sampling = dataclasses.replace(default_sampling(CONFIG), diffusion_steps=25, sampler="ddim")
    table = plan_for(CONFIG, sampling).iterations[0].table
    noise = random.standard_normal((table.steps + 1, 2, CONFIG.tokens, CONFIG.action_dim), np.float32)
    sampled = sample_actions(model.eval(), {"latents": latents, "text": text}, table, noise)
    assert np.abs(sampled - actions).mean() < 0.06
    swapped = sample_actions(model, {"latents": latents[::-1].copy(), "text": text[::-1].copy()}, table, noise)
    assert np.abs(swapped - actions[::-1]).mean() < 0.06  # what a robot sees decides its path
    assert np.abs(actions - actions[::-1]).mean() > 0.3
