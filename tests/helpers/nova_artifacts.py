"""The golden models of NOVA as artifacts, one of them with a tiny text encoder of random weights."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch

from mar_export.artifact.export import export_artifact
from tests.helpers.artifacts import all_made_once, made_once
from tests.helpers.nova_cases import nova_checkpoint
from training.checkpoints.text_encoder import load_text_encoder


def write_text_encoder(folder: pathlib.Path, width: int, tokens: int = 300) -> None:
    """Write a Phi of two blocks, whose tokenizer has a token for each byte, as `transformers` and `tokenizers` do."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PhiConfig, PhiForCausalLM

    sizes: dict[str, Any] = {
        "vocab_size": tokens,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "partial_rotary_factor": 0.4,
        "max_position_embeddings": 64,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        PhiForCausalLM(PhiConfig(**sizes)).save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="session")
def nova_text_encoder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder of a text encoder for `case0`. Read only."""
    pytest.importorskip("transformers")
    return made_once(tmp_path_factory, "nova-text-encoder", lambda folder: write_text_encoder(folder, 40))


@pytest.fixture(scope="session")
def nova_artifacts(
    nova_text_encoder: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, pathlib.Path]:
    """The golden models as artifacts by name: `case0` has text encoder, encoder and decoder. Read only."""

    def export_case0(folder: pathlib.Path) -> None:
        checkpoint = nova_checkpoint("case0")
        text_encoder = load_text_encoder(nova_text_encoder, checkpoint.model.config)
        out = folder / "artifact"
        export_artifact(checkpoint, out, lambda line: None, optional=("encoder",), text_encoder=text_encoder)

    def export_case1(folder: pathlib.Path) -> None:
        export_artifact(nova_checkpoint("case1"), folder / "artifact", lambda line: None)

    # One folder each, so that two processes of pytest make them side by side: together they take two minutes.
    folders = all_made_once(tmp_path_factory, {"nova-case0": export_case0, "nova-case1": export_case1})
    return {name: folders[f"nova-{name}"] / "artifact" for name in ("case0", "case1")}
