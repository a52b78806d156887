"""The command `mar export`."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import click

from mar_export.artifact.export import export_artifact
from runtime.artifact.manifest import FIRST_PASS, FLOAT_PRECISIONS
from runtime.cli.options import PATH, preset_option, sampling_options
from runtime.cli.result_files import force_option, is_forced
from runtime.errors import RequestError
from runtime.log import LOG
from runtime.model.engine_spec import ENCODER, TEXT_ENCODER
from runtime.model.families import check_supported, optional_specs
from runtime.model.family_config import FamilyConfig
from runtime.model.recap_engines import RECAP_ENGINES
from runtime.sampling.constraints import default_sampling
from runtime.sampling.presets import resolve_sampling
from runtime.storage.files import holding
from training.checkpoints.checkpoint import Checkpoint
from training.checkpoints.resize import resize_model
from training.checkpoints.text_encoder import LoadedTextEncoder, load_text_encoder
from training.cli.named_checkpoint import load_named_checkpoint
from training.cli.options import checkpoint_options


@click.command()
@click.argument("checkpoint", type=PATH)
@click.option("--out", type=PATH, required=True, help="The artifact folder to write.")
@checkpoint_options
@click.option(
    "--text-encoder",
    "text_encoder_folder",
    type=PATH,
    help="For a model that draws from text: the folder of a causal language model in the format of transformers, with "
    "its tokenizer.json. The artifact then takes prompts.",
)
@click.option("--encoder", is_flag=True, help="Export the encoder of the tokenizer too, for mar edit.")
@click.option("--recap", is_flag=True, help="Export the engines that --recap-local-iterations needs too.")
@click.option(
    "--first-pass",
    is_flag=True,
    help="Store the first pass of the backbone for each class too, so that --reuse-first-pass need not compute it.",
)
@click.option(
    "--precision",
    type=click.Choice(FLOAT_PRECISIONS),
    default="fp32",
    show_default=True,
    help="The precision of weights and matrix products.",
)
@click.option(
    "--image-size", type=int, help="Width and height of the images in pixels, if they differ from the checkpoint's."
)
@preset_option
@sampling_options
@force_option("Export again, and replace another artifact at --out. Its presets are kept if the model is the same.")
def export(
    checkpoint: pathlib.Path,
    out: pathlib.Path,
    text_encoder_folder: pathlib.Path | None,
    encoder: bool,
    recap: bool,
    first_pass: bool,
    precision: str,
    image_size: int | None,
    **options: Any,
) -> None:
    """Export CHECKPOINT as an artifact, and compare it with eager PyTorch.

    CHECKPOINT is a run folder or a published model: a .pth, .ckpt or .safetensors file, or a folder in the format of
    diffusers. The size of the model is inferred from the weights; give --model or --model-config where that is not
    possible. --preset and the sampling options become the artifact's own settings: those of requests without any.
    """
    loaded = load_named_checkpoint(checkpoint, options, any_family=True)
    loaded = _resize(loaded, image_size)
    config = loaded.model.config
    sampling = resolve_sampling(default_sampling(config), config, options)
    text_encoder = _text_encoder(text_encoder_folder, config)
    references = [loaded]
    del loaded  # the export releases weights as it proceeds, so this function must keep no reference to them
    with holding(out):
        export_artifact(
            references.pop(),
            out,
            click.echo,
            sampling,
            precision=precision,
            optional=_optional(encoder, recap, first_pass),
            text_encoder=text_encoder,
            force=is_forced(),
        )


def _optional(encoder: bool, recap: bool, first_pass: bool) -> list[str]:
    """Return what the artifact has beside the engines that every one has."""
    return [*([ENCODER] if encoder else ()), *(RECAP_ENGINES if recap else ()), *([FIRST_PASS] if first_pass else ())]


def _text_encoder(folder: pathlib.Path | None, config: FamilyConfig) -> LoadedTextEncoder | None:
    """Return the text encoder of a model that draws from text."""
    if folder is None:
        return None
    if TEXT_ENCODER not in optional_specs(config):
        raise RequestError("--text-encoder is for a model that draws from text, and this one does not; remove it")
    return load_text_encoder(folder, config)


def _resize(loaded: Checkpoint, image_size: int | None) -> Checkpoint:
    if image_size is None or image_size == check_supported(loaded.model.config, "mar export --image-size").img_size:
        return loaded
    trained, other = loaded.model.config.img_size, resize_model(loaded.model, image_size)
    LOG.warning(
        f"warning: trained at {trained}x{trained}; position embeddings are interpolated to {image_size}x{image_size}, "
        "and how good its images are there is for you to check"
    )
    return dataclasses.replace(loaded, model=other)
