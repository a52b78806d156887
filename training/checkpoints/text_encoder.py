"""The text encoder of a model that draws from text: a causal language model of `transformers` and its tokenizer."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import torch
from torch import Tensor, nn

from runtime.checks import truncate
from runtime.errors import BackendError, CheckpointError, ConfigError
from runtime.model.nova_config import LEAST_VOCABULARY
from runtime.requests.prompt_tokenizer import PromptTokenizer
from training.checkpoints.checkpoint import hash_files
from training.checkpoints.published_files import read_json_object

TOKENIZER_FILE = "tokenizer.json"
_TOKENIZER_FOLDER = "tokenizer"  # beside the folder of the text encoder, in a pipeline of diffusers
_CAUSAL = "ForCausalLM"


class TextEncoder(nn.Module):
    """The engine `text_encoder`: tokens of prompts to the last hidden states, after the last normalization.

    Attributes:
        language_model: A causal language model of `transformers` without its head.
    """

    def __init__(self, language_model: nn.Module) -> None:
        super().__init__()
        self.language_model = language_model

    def forward(self, token_ids: Tensor) -> Tensor:
        """Return the rows [Q, U, text_token_dim] of tokens [Q, U]. No row depends on the tokens after it."""
        length = token_ids.shape[1]
        places = torch.arange(length, device=token_ids.device)
        later = places[None, :] > places[:, None]  # [U, U]
        mask = torch.zeros(length, length).masked_fill(later, torch.finfo(torch.float32).min)
        output: Tensor = self.language_model(
            input_ids=token_ids,
            attention_mask=mask[None, None].expand(token_ids.shape[0], 1, -1, -1),
            position_ids=places[None].expand(token_ids.shape[0], -1),
            use_cache=False,
        ).last_hidden_state
        return output


@dataclasses.dataclass(frozen=True)
class LoadedTextEncoder:
    """A text encoder that was read.

    Attributes:
        module: The engine, in evaluation mode and float32.
        tokenizer: The content of `tokenizer.json`.
        source: The name of the folder.
        sha256: The hash of its weights.
    """

    module: nn.Module
    tokenizer: bytes
    source: str
    sha256: str


def load_text_encoder(folder: pathlib.Path, config: Any) -> LoadedTextEncoder:
    """Read a folder that `transformers` has written: `config.json`, safetensors, and `tokenizer.json`.

    The tokenizer may also lie in the folder `tokenizer` beside it, as in a pipeline of diffusers.

    Args:
        folder: The folder.
        config: The config of the model that reads its rows, such as a `NovaConfig`.

    Raises:
        CheckpointError: A file is missing or damaged, or this is no causal language model.
        ConfigError: Its sizes are not those of the model.
        BackendError: `transformers` or `tokenizers` is not installed.
    """
    stored = read_json_object(folder / "config.json")
    architectures = stored.get("architectures")
    if not isinstance(architectures, list) or not any(str(name).endswith(_CAUSAL) for name in architectures):
        raise CheckpointError(
            f"{folder}: a text encoder must be a causal language model, with an architecture that ends in {_CAUSAL}; "
            f"found {truncate(architectures)}"
        )
    tokenizer = _read_tokenizer(folder)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise CheckpointError(f"{folder}: no weights; a text encoder is read from safetensors files")
    model = _load(folder)
    vocabulary, width = model.get_input_embeddings().weight.shape
    if width != config.text_token_dim:
        raise ConfigError(
            f"{folder}: its rows have {width} values, but the model reads rows of {config.text_token_dim}; give the "
            "text encoder that the model was trained with"
        )
    rows = getattr(model.config, "max_position_embeddings", None)
    if rows is not None and rows < config.text_token_len:
        raise ConfigError(f"{folder}: it reads {rows} tokens, but a prompt of the model has {config.text_token_len}")
    known = PromptTokenizer(tokenizer).size
    if known > vocabulary or vocabulary < LEAST_VOCABULARY:
        raise ConfigError(
            f"{folder}: it knows {vocabulary} tokens, and must know those of its tokenizer, {known}, and at least "
            f"{LEAST_VOCABULARY}"
        )
    return LoadedTextEncoder(TextEncoder(model).eval(), tokenizer, folder.resolve().name, hash_files(weights))


def _read_tokenizer(folder: pathlib.Path) -> bytes:
    places = [folder / TOKENIZER_FILE, folder.parent / _TOKENIZER_FOLDER / TOKENIZER_FILE]
    for place in places:
        if place.is_file():
            return place.read_bytes()
    raise CheckpointError(
        f"{folder}: no {TOKENIZER_FILE}, neither there nor at {places[1]}; save the tokenizer with "
        "AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER)"
    )


def _load(folder: pathlib.Path) -> Any:
    """Return the model without its head, in float32. Nothing is fetched, unpickled or executed."""
    try:
        from transformers import AutoModel
    except ImportError as error:
        raise BackendError(
            f"a text encoder needs the Python package {error.name}; pip install 'mar-runtime[text]'"
        ) from None
    try:
        return AutoModel.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            attn_implementation="eager",
        ).eval()
    except Exception as error:  # its exception classes share no narrower base
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise CheckpointError(f"{folder}: transformers cannot load it ({truncate(reason)})") from None
