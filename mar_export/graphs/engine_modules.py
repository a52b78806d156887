"""The PyTorch modules that are exported as engines, one for each spec of `runtime.model.engine_spec`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from runtime.model.engine_spec import DECODER, ENCODER
from runtime.model.families import family_of, imported, loop_specs, recap_specs_of
from training.models.autoencoder import AutoencoderKL


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


def loop_modules(model: Any, engines: Collection[str] = ()) -> dict[str, nn.Module]:
    """Return the modules of the engines that the sampling loop calls, in evaluation mode, by name.

    Args:
        model: A model of any family; `runtime.model.families` names the modules.
        engines: The names of an artifact's engines. Those of ReCAP are among the modules if they are among these.
    """
    modules = family_of(model.config).modules
    return {name: imported(modules[name])(model).eval() for name in loop_specs(model.config, engines)}


def graph_modules(model: Any, vae: AutoencoderKL | None, encoder: bool, recap: bool = False) -> dict[str, nn.Module]:
    """Return the module of every engine of an artifact, in evaluation mode, by name.

    Args:
        model: The backbone and the head.
        vae: The KL tokenizer, whose engines are those that the family needs; None for models of pixels.
        encoder: Whether the engines of `vae` that are optional are there too: the encoder, for editing images.
        recap: Whether the engines of ReCAP are there too, which the family has.
    """
    modules = loop_modules(model, recap_specs_of(model.config) if recap else ())
    if vae is not None:
        kinds = {DECODER: Decoder, ENCODER: Encoder}
        for name, needed in family_of(model.config).tokenizer.items():
            if needed or encoder:
                modules[name] = kinds[name](vae)
    return {name: module.eval() for name, module in modules.items()}
