"""Export of the naive graphs of the benchmark from PyTorch; `mar_export.benchmark.naive_onnx` runs them."""

from __future__ import annotations

import pathlib

import torch
from torch import Tensor, nn

from mar_export.benchmark.naive_onnx import naive_specs
from mar_export.onnx_export.exporter import export_graph
from runtime.storage.files import replacing_folder
from training.models.mar import MAR


class NaiveBackbone(nn.Module):
    """The published backbone: tokens [B, L, D] in raster order and the known positions [B, V] to z [B, L, C]."""

    def __init__(self, model: MAR) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, visible: Tensor, labels: Tensor) -> Tensor:
        """Compute z for every position, known or not."""
        model, buffer = self.model, self.model.config.buffer_size
        class_embedding = model.class_embedding(labels)[:, None].expand(-1, buffer, -1)
        x = torch.cat([class_embedding, model.z_proj(tokens)], dim=1) + model.encoder_pos_embed_learned
        x = model.z_proj_ln(x)  # [B, buffer + L, E]
        width = x.shape[-1]
        x = torch.cat([x[:, :buffer], x[:, buffer:].gather(1, visible[..., None].expand(-1, -1, width))], dim=1)
        for block in model.encoder_blocks:
            x = block(x)
        x = model.decoder_embed(model.encoder_norm(x))  # [B, buffer + V, C]
        places = visible[..., None].expand(-1, -1, x.shape[-1])
        padded = model.mask_token.expand(tokens.shape[0], tokens.shape[1], -1).scatter(1, places, x[:, buffer:])
        x = torch.cat([x[:, :buffer], padded], dim=1) + model.decoder_pos_embed_learned  # [B, buffer + L, C]
        for block in model.decoder_blocks:
            x = block(x)
        return model.decoder_norm(x)[:, buffer:] + model.diffusion_pos_embed_learned


class NaiveHead(nn.Module):
    """The published head: noisy tokens [N, D], timesteps [N] and vectors z [N, C] to eps and v, [N, 2D]."""

    def __init__(self, model: MAR) -> None:
        super().__init__()
        self.net = model.diffloss.net

    def forward(self, x: Tensor, timesteps: Tensor, z: Tensor) -> Tensor:
        """Compute the predicted noise eps and the variance fraction v of each token."""
        return self.net(x, timesteps, z)


def export_naive(model: MAR, folder: pathlib.Path) -> None:
    """Write both graphs of a model to `folder`; after a failure the folder is as before."""
    with replacing_folder(folder) as temporary:
        modules = (NaiveBackbone(model), NaiveHead(model))
        for spec, module in zip(naive_specs(model.config).values(), modules, strict=True):
            export_graph(module.eval(), spec, model.config, temporary / f"{spec.name}.onnx")
