"""The PyTorch modules that are exported as engines, one for each spec of `runtime.model.engine_spec`."""

from __future__ import annotations

from torch import Tensor, nn

from mar_export.graphs.backbone import Backbone
from mar_export.graphs.causal_backbone import CausalBackbone
from mar_export.graphs.diffusion_head import Conditioning, Denoise
from mar_export.graphs.vq_head import VQConditioning, VQDenoise
from runtime.model.engine_spec import BACKBONE, CONDITIONING, DECODER, DENOISE, ENCODER
from training.models.autoencoder import AutoencoderKL
from training.models.mar import MAR


class Decoder(nn.Module):
    """The engine `decoder`: the decoder of the KL tokenizer, from scaled latents to pixels."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        """Decode latents [B, C, h, w] to an image [B, 3, H, W] with values of about -1 to 1."""
        return self.vae.decode(latents)


class Encoder(nn.Module):
    """The engine `encoder`: the encoder of the KL tokenizer, from pixels to the mean of their scaled latents."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, image: Tensor) -> Tensor:
        """Encode an image [B, 3, H, W] with values of -1 to 1 to latents [B, C, h, w]."""
        return self.vae.encode(image)


def loop_modules(model: MAR) -> dict[str, nn.Module]:
    """Return the modules of the engines that the sampling loop calls, in evaluation mode, by name."""
    causal, vq = model.config.attention == "causal", model.config.head == "vq"
    modules: dict[str, nn.Module] = {
        BACKBONE: CausalBackbone(model) if causal else Backbone(model),
        CONDITIONING: VQConditioning(model) if vq else Conditioning(model),
        DENOISE: VQDenoise(model) if vq else Denoise(model),
    }
    return {name: module.eval() for name, module in modules.items()}


def graph_modules(model: MAR, vae: AutoencoderKL | None, encoder: bool) -> dict[str, nn.Module]:
    """Return the module of every engine of an artifact, in evaluation mode, by name.

    Args:
        model: The backbone and the head.
        vae: The KL tokenizer, whose decoder becomes an engine; None for models of pixels.
        encoder: Whether the encoder of `vae` becomes an engine too, for editing images.
    """
    modules = loop_modules(model)
    if vae is not None:
        modules[DECODER] = Decoder(vae)
        if encoder:
            modules[ENCODER] = Encoder(vae)
    return {name: module.eval() for name, module in modules.items()}
